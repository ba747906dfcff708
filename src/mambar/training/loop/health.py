"""Statistics of the layers (activation norms, outliers, step sizes), and a search for the first non-finite tensor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.analysis.measure.outliers import MedianDeviation
from mambar.nn.mixer import DirectionalScan


def first_non_finite_module(model: nn.Module, run: Callable[[], Tensor]) -> str | None:
    """The name of the first parameter, module or gradient with NaN or Inf, None if all are finite.

    Checked in this order: parameters, module outputs of the forward pass `run` (which returns the loss), gradients in
    the order of the backward pass. `.grad` is not changed.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"parameter {name}"
    with _record_non_finite(model) as found, torch.enable_grad():
        loss = run()
    if found:
        return f"module {found[0]}"
    if not _finite(loss):
        return "the loss"
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in parameters], allow_unused=True)
    for (name, _), gradient in reversed(list(zip(parameters, gradients, strict=True))):
        if gradient is not None and not _finite(gradient):
            return f"gradient of {name}"
    return None


@contextmanager
def _record_non_finite(model: nn.Module) -> Iterator[list[str]]:
    found: list[str] = []

    def check(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not _finite(output):
            found.append(name)

    modules = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(partial(check, name)) for name, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


@torch.inference_mode()
def layer_statistics(model: Any, images: Float[Tensor, "batch channels height width"]) -> dict[str, list[float]]:
    """One number per layer: mean and maximum norm of the patch tokens, share of outliers, range of dt and of A.

    The norms are those of the residual stream in evaluation mode. An outlier has a norm above the median plus ten
    times the median absolute deviation of its layer. `dt_*` is softplus of the bias of `dt_proj`, `A_*` is
    -exp(A_log). The training mode is restored, and no random number is drawn.
    """
    was_training = model.training
    model.eval()
    rule = MedianDeviation()
    found: dict[str, list[float]] = {
        name: [] for name in ("norm_mean", "norm_max", "outlier_share", "dt_min", "dt_max", "A_min", "A_max")
    }
    for tokens in model.tokens(images):
        norms = tokens.patches.float().norm(dim=-1).flatten().cpu()
        found["norm_mean"].append(float(norms.mean()))
        found["norm_max"].append(float(norms.max()))
        found["outlier_share"].append(float((norms > rule.threshold(norms)).float().mean()))
    for block in getattr(model, "blocks", ()):
        scans = [scan for scan in block.modules() if isinstance(scan, DirectionalScan)]
        if not scans:
            # A mixer without selective scans has no step sizes.
            continue
        steps = torch.cat([nn.functional.softplus(scan.dt_proj.bias.float()) for scan in scans])
        rates = torch.cat([-torch.exp(scan.A_log.float()) for scan in scans])
        for name, values in (("dt", steps), ("A", rates)):
            found[f"{name}_min"].append(float(values.min()))
            found[f"{name}_max"].append(float(values.max()))
    model.train(was_training)
    return {name: values for name, values in found.items() if values}
