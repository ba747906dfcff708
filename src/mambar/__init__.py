"""Mamba-R: vision Mamba with register tokens.

Public names are imported when they are first used, so that `import mambar` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

from mambar.version import __version__ as __version__

if TYPE_CHECKING:
    from mambar.analysis import outlier_statistics as outlier_statistics
    from mambar.analysis import token_norms as token_norms
    from mambar.data import Preprocessing as Preprocessing
    from mambar.data import open_dataset as open_dataset
    from mambar.data import register_dataset as register_dataset
    from mambar.errors import MambarError as MambarError
    from mambar.hub import create_model as create_model
    from mambar.hub import list_models as list_models
    from mambar.hub import load as load
    from mambar.hub import load_official as load_official
    from mambar.hub import save_model as save_model
    from mambar.memory import keep_freed_memory as keep_freed_memory
    from mambar.models import TokenModel as TokenModel
    from mambar.models import VisionMamba as VisionMamba
    from mambar.models import VisionMambaConfig as VisionMambaConfig
    from mambar.models import complexity as complexity
    from mambar.models import register_backbone as register_backbone
    from mambar.nn import Tokens as Tokens
    from mambar.nn import use_cuda_graphs as use_cuda_graphs
    from mambar.ops import available_backends as available_backends
    from mambar.ops import use_backend as use_backend
    from mambar.recipes import run as run
    from mambar.training import Recipe as Recipe
    from mambar.training import register_task as register_task

_PUBLIC = {
    "analysis": ("outlier_statistics", "token_norms"),
    "data": ("Preprocessing", "open_dataset", "register_dataset"),
    "errors": ("MambarError",),
    "hub": ("create_model", "list_models", "load", "load_official", "save_model"),
    "memory": ("keep_freed_memory",),
    "models": ("TokenModel", "VisionMamba", "VisionMambaConfig", "complexity", "register_backbone"),
    "nn": ("Tokens", "use_cuda_graphs"),
    "ops": ("available_backends", "use_backend"),
    "recipes": ("run",),
    "training": ("Recipe", "register_task"),
}
_PACKAGES = {name: package for package, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_PACKAGES)]


def __getattr__(name: str) -> object:
    """Imports a public name from its package on first use."""
    if name not in _PACKAGES:
        raise AttributeError(f"module 'mambar' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mambar.{_PACKAGES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return list(__all__)
