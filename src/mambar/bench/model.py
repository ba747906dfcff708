"""Throughput of whole models in inference and training."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambar.bench.table import Row
from mambar.bench.timing import interleaved, peak_memory
from mambar.hub.create import create_model
from mambar.ops import use_backend

COLUMNS = ("inference img/s", "inference ms", "inference GiB", "training img/s", "training ms", "training GiB")


@dataclass(frozen=True, kw_only=True)
class ModelBench:
    """A model to measure.

    Attributes:
        name: Model name, or timm/NAME for a model of timm.
        batch: Images per step.
        img_size: Image size in pixels.
        compiled: Measure the model under torch.compile.
    """

    name: str
    batch: int
    img_size: int = 224
    compiled: bool = False


def build(bench: ModelBench) -> nn.Module | None:
    """The model with random weights, or None if its package is not installed."""
    if bench.name.startswith("timm/"):
        if importlib.util.find_spec("timm") is None:
            return None
        import timm

        return timm.create_model(bench.name.removeprefix("timm/"), img_size=bench.img_size)
    return create_model(bench.name, img_size=bench.img_size)


def parity(model: nn.Module, images: Tensor) -> float:
    """The largest difference of the logits to the plain PyTorch backend in float32, relative to their maximum."""
    model.eval()
    with torch.inference_mode():
        fast = model(images)
        with use_backend("doubling"):
            plain = model(images)
    return float((fast - plain).abs().max() / plain.abs().max())


def measure(bench: ModelBench, *, device: str, training: bool = True, rounds: int = 5) -> Row:
    """One row of `COLUMNS`, after a parity check: bfloat16 autocast on a GPU, float32 on a CPU."""
    title = f"{bench.name} {bench.img_size} px, batch {bench.batch}{', compiled' if bench.compiled else ''}"
    model = build(bench)
    if model is None:
        return Row(name=title)
    model = model.to(device)
    images = torch.randn(bench.batch, 3, bench.img_size, bench.img_size, device=device)
    if not bench.name.startswith("timm/"):
        deviation = parity(model, images[:2])
        if not deviation < 1e-4:
            raise ArithmeticError(f"{bench.name}: logits differ by {deviation:.1e} from plain PyTorch; not timed.")
    run = torch.compile(model) if bench.compiled else model
    autocast = _autocast(device)
    cells: list[float | None] = []
    model.eval()
    cells += _figures(lambda: _infer(run, images, autocast), bench.batch, device, rounds)
    if training:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.startswith("cuda"))
        labels = torch.randint(0, 1000, (bench.batch,), device=device)
        cells += _figures(lambda: _step(run, images, labels, optimizer, autocast), bench.batch, device, rounds)
    return Row(name=title, cells=cells)


def _figures(work: Callable[[], object], batch: int, device: str, rounds: int) -> list[float | None]:
    timing = interleaved({"work": work}, device=device, rounds=rounds, min_seconds=0.2)["work"]
    peak = peak_memory(work, device=device)
    return [batch / timing.median, timing.milliseconds, None if peak is None else peak / 2**30]


def _autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    if device.startswith("cuda"):
        return lambda: torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext


def _infer(model: Callable[[Tensor], Tensor], images: Tensor, autocast: Callable) -> None:
    with torch.inference_mode(), autocast():
        model(images)


def _step(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    autocast: Callable,
) -> None:
    with autocast():
        loss = nn.functional.cross_entropy(model(images).float(), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
