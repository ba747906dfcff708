"""The public names exist, lazily."""

import importlib

import pytest

import mambar


@pytest.mark.parametrize("name", mambar.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(mambar, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mambar.nothing


@pytest.mark.parametrize("package", ["ops", "data", "nn", "models", "hub", "evaluation", "analysis", "training"])
def test_packages_export_documented_names(package):
    module = importlib.import_module(f"mambar.{package}")
    names = [name for name in vars(module) if not name.startswith("_")]
    assert names
    for name in names:
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith("mambar"):
            assert value.__doc__, f"mambar.{package}.{name}"
