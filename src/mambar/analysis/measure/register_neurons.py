"""Channels with the largest effect on outliers, and the effect of test-time registers on norms and accuracy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mambar.analysis.measure.activations import eval_without_gradients, layer_indices, model_device
from mambar.analysis.measure.added_registers import RegisterNeurons, TestTimeRegisters
from mambar.analysis.measure.norms import l2_norms
from mambar.analysis.measure.outliers import MedianDeviation, OutlierRule, median, outlier_mask
from mambar.analysis.measure.probes import wilson_interval
from mambar.analysis.measure.token_changes import ChangedOutliers
from mambar.errors import InputError
from mambar.models.protocol import TokenModel
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import MambaBlock, Tokens


def find_register_neurons(
    model: VisionMamba,
    batches: Iterable[Float[Tensor, "_ channels height width"]],
    *,
    layer: int = -1,
    count: int = 10,
    rule: OutlierRule | None = None,
) -> RegisterNeurons:
    """The `count` inner channels, in layers up to `layer`, with the largest effect on outliers.

    A channel's score is its mean absolute activation at outliers minus that at other patches, times the norm of its
    column in the output projection. `rule` finds the outliers of each batch; raises `InputError` if there are none.
    """
    rule = rule or MedianDeviation()
    last = layer_indices(model, [layer])[0]
    sums = torch.zeros(2, last + 1, model.config.d_inner, dtype=torch.float64)
    totals = [0, 0]
    device = model_device(model)
    with eval_without_gradients(model):
        for images in batches:
            inner, grid, norms = _inner_activations(model, images.to(device), last)
            outliers = outlier_mask(norms[None], rule)[0].flatten(1).cpu()
            for index, values in enumerate(inner):
                sizes = model.registers.split(values, grid).patches.abs().double().cpu()
                sums[0, index] += sizes[outliers].sum(0)
                sums[1, index] += sizes[~outliers].sum(0)
            totals = [totals[0] + int(outliers.sum()), totals[1] + int((~outliers).sum())]
    if not totals[0]:
        raise InputError(f"No token is an outlier by the rule {rule.name!r}; there is nothing to move.")
    difference = sums[0] / totals[0] - sums[1] / max(totals[1], 1)
    columns = [block.mixer.out_proj.weight.detach().norm(dim=0) for block in _blocks(model, last)]
    scores = difference * torch.stack(columns).double().cpu()
    best = scores.flatten().topk(min(count, scores.numel()))
    pairs = [divmod(int(flat), scores.shape[1]) for flat in best.indices]
    return RegisterNeurons(channels=tuple(pairs), scores=tuple(best.values.tolist()))


def _blocks(model: VisionMamba, last: int) -> list[MambaBlock]:
    blocks = [block for block in model.blocks[: last + 1] if isinstance(block, MambaBlock)]
    if not all(hasattr(block.mixer, "out_proj") for block in blocks):
        raise InputError(
            f"Register neurons need a mixer with an out_proj layer; mixer={model.config.mixer!r} has none."
        )
    return blocks


def _inner_activations(
    model: VisionMamba, images: Tensor, last: int
) -> tuple[list[Tensor], tuple[int, int], Float[Tensor, "batch rows cols"]]:
    """The input of each output projection (batch, length, inner), the grid, and the norms after layer `last`."""
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach())

    handles = [block.mixer.out_proj.register_forward_pre_hook(remember) for block in _blocks(model, last)]
    try:
        tokens = model.tokens(images, [last])[0]
    finally:
        for handle in handles:
            handle.remove()
    return seen, tokens.grid, l2_norms(tokens.patches).unflatten(1, tokens.grid)


@dataclass(frozen=True, kw_only=True)
class AddedRegistersResult:
    """Accuracy and norms of a model with or without registers added at test time.

    Attributes:
        name: Name of the variant.
        top1, top1_low, top1_high: Top-1 accuracy (0-1) and its 95 % interval; NaN without labels.
        num_images: Number of images.
        layer: Layer of the norms.
        median, maximum, ratio: Median and maximum norm of image tokens, and their ratio.
        outlier_share: Share of image tokens above the threshold of the first variant.
        register_median: Median norm of all registers, trained and added.
    """

    name: str
    top1: float
    top1_low: float
    top1_high: float
    num_images: int
    layer: int
    median: float
    maximum: float
    ratio: float
    outlier_share: float
    register_median: float


def register_variants(model: VisionMamba, neurons: RegisterNeurons | None, num_registers: int) -> dict[str, TokenModel]:
    """The unchanged model, the model with added registers of every fill, and with activations moved to them."""
    fills = ["zero", "mean", *(["copy"] if model.config.num_registers else [])]
    variants: dict[str, TokenModel] = {"as trained": model}
    for fill in fills:
        variants[f"{num_registers} added ({fill})"] = TestTimeRegisters(model, num_registers, fill=fill)
    if neurons is not None:
        moved = TestTimeRegisters(model, num_registers, fill="zero", neurons=neurons)
        variants[f"{num_registers} added (zero), {len(neurons.channels)} channels moved"] = moved
    return variants


def evaluate_added_registers(
    variants: Mapping[str, TokenModel],
    batches: Sequence[tuple[Float[Tensor, "_ channels height width"], Int64[Tensor, "_"]]],
    *,
    layer: int = -1,
    rule: OutlierRule | None = None,
) -> list[AddedRegistersResult]:
    """Accuracy and norms of every variant on the same labeled images (a label below 0: no label)."""
    rule = rule or MedianDeviation()
    limit: float | None = None
    results = []
    for name, model in variants.items():
        norms, registers, num_correct, num_labeled = _measure(model, batches, layer)
        limit = rule.threshold(norms) if limit is None else limit
        middle, highest = median(norms), float(norms.max())
        low, high = wilson_interval(num_correct, num_labeled)
        results.append(
            AddedRegistersResult(
                name=name,
                top1=num_correct / num_labeled if num_labeled else math.nan,
                top1_low=low,
                top1_high=high,
                num_images=sum(len(images) for images, _ in batches),
                layer=layer_indices(model, [layer])[0],
                median=middle,
                maximum=highest,
                ratio=highest / middle if middle else math.nan,
                outlier_share=float((norms > limit).double().mean()),
                register_median=median(registers),
            )
        )
    return results


def _measure(
    model: TokenModel, batches: Sequence[tuple[Tensor, Tensor]], layer: int
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "registers"], int, int]:
    device = model_device(model)
    norms, registers, num_correct, num_labeled = [], [], 0, 0
    with eval_without_gradients(model):
        for images, labels in batches:
            moved = images.to(device)
            tokens, last = model.tokens(moved, [layer, -1])
            norms.append(l2_norms(tokens.patches).flatten().double().cpu())
            registers.append(l2_norms(tokens.registers).flatten().double().cpu())
            known = labels >= 0
            if known.any():
                predicted = _logits(model, last, moved).argmax(1).cpu()
                num_correct += int((predicted == labels.cpu())[known].sum())
                num_labeled += int(known.sum())
    return torch.cat(norms), torch.cat(registers), num_correct, num_labeled


def _logits(model: TokenModel, last: Tokens, images: Tensor) -> Float[Tensor, "batch classes"]:
    """The logits, from the residual stream of the last layer where the head's input is known: half the time."""
    network = model.model if isinstance(model, TestTimeRegisters | ChangedOutliers) else model
    if not isinstance(network, VisionMamba) or not network.config.head:
        return model.forward(images)
    # Added registers follow the trained ones; the head does not read them.
    registers = last.registers[:, : network.config.num_registers]
    normed = network.norm(registers) if registers.shape[1] else registers
    return network.head(Tokens(patches=network.norm(last.patches), registers=normed, grid=last.grid))
