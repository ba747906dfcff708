"""A pytest plugin that lets timm's tests/test_models.py run on the names of this package; see test_upstream_suites."""

import fnmatch

import pytest
import timm

import mambar.hub.timm_register  # noqa: F401

NAMES = timm.list_models(module="timm_register")

NOT_APPLICABLE = {
    "test_model_default_cfgs": "for feature maps (batch, channels, rows, cols); test_model_default_cfgs_non_std is for "
    "tokens, as of timm's ViT",
    "test_model_forward_torchscript": "TorchScript is deprecated; custom operators with fallbacks cannot be scripted",
    "test_model_forward_fx_torchscript": "the same",
}


def our_models(filter="", *_, pretrained=False, **__):
    """The models of this package, for every list of the suite that is not of other names or of released weights."""
    patterns = [filter] if isinstance(filter, str) else ["*"]
    return [] if pretrained else [name for name in NAMES if fnmatch.fnmatch(name, patterns[0] or "*")]


timm.list_models = our_models
timm.list_pretrained = lambda *_, **__: []


def pytest_collection_modifyitems(items):
    """Keeps the tests that are parametrized with the names of this package."""
    items[:] = [
        item
        for item in items
        if hasattr(item, "callspec")
        and item.callspec.params.get("model_name") in NAMES
        and item.originalname not in NOT_APPLICABLE
    ]
    for item in items:
        # timm's limits are for many processors: the 48 backward passes of a Large model take longer on one.
        item.add_marker(pytest.mark.timeout(3000), append=False)
