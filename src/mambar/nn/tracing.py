"""Symbolic tracing with torch.fx, as in torchvision's and timm's feature extraction."""

import functools
from collections.abc import Callable
from typing import Any

from torch import fx


def leaf_module(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the module of this `forward` one node of a symbolically traced graph, whatever tracer is used.

    For modules whose code depends on shapes and types, which are not known while a graph is traced.
    """

    @functools.wraps(forward)
    def traceable(self: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(x, fx.Proxy):
            tracer: Any = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *arguments), options)
        return forward(self, x, *arguments, **options)

    return traceable
