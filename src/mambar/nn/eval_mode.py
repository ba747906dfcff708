"""Evaluation mode for the duration of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; its previous mode is restored afterwards, also after an error."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
