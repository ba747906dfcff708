"""Speed of UPerNet and of dense features with Mamba-R Base and with timm's ViT-Base.

    python benchmarks/segmentation/throughput.py --device cuda
    python benchmarks/segmentation/throughput.py --device cpu --smoke           # smoke test with tiny models

Training: forward, losses and backward of 8 crops of 512 pixels. Inference: windows of 512 every 341 pixels over an
image of 2,000 pixels, with `use_cuda_graphs` as in `mambar segment`; 8 whole images of 512 pixels; features of four
layers of 8 images of 1,024 pixels (`forward_intermediates`). bf16 autocast on a GPU, where all but the windows are
replayed from CUDA graphs. Medians of interleaved rounds.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from mambar.bench.machine import describe
from mambar.bench.timing import interleaved
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.hub.create import create_model
from mambar.models.timm_vit import TimmViT
from mambar.nn.cuda_graph import use_cuda_graphs
from mambar.segmentation import Inference, Segmenter, predict
from mambar.segmentation.losses import pixel_cross_entropy
from mambar.segmentation.training_model import SegmenterInTraining

CLASSES = 150


def mamba(side: int, *, smoke: bool) -> Any:
    """Mamba-R Base, or a tiny variant for --smoke."""
    small = {"embed_dim": 48, "depth": 4, "num_registers": 4} if smoke else {}
    name = "mambar_tiny_patch16_224" if smoke else "mambar_base_patch16_224"
    return create_model(name, img_size=side, num_classes=0, **small)


def vit(side: int, *, smoke: bool) -> Any:
    """timm's ViT-Base, or a tiny variant for --smoke."""
    import timm

    small = {"embed_dim": 48, "depth": 4, "num_heads": 3} if smoke else {}
    model = timm.create_model("vit_base_patch16_224", img_size=side, dynamic_img_size=True, num_classes=0, **small)
    return TimmViT(model)


def training_step(
    model: SegmenterInTraining,
    images: torch.Tensor,
    labels: torch.Tensor,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Forward, both losses, backward; no update."""
    with autocast():
        logits, auxiliary = model(images)
    loss = pixel_cross_entropy(logits, labels) + 0.4 * pixel_cross_entropy(auxiliary, labels)
    loss.backward()
    model.zero_grad(set_to_none=True)


def captured(work: Callable[[], object], device: str) -> Callable[[], object]:
    """The call as a CUDA graph; itself on a CPU."""
    if device != "cuda":
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(work: Callable[[], object] = work) -> None:
        graph.replay()  # It reads the tensors of `work`.

    return replay


def works(
    model: Any, autocast: Callable[[], AbstractContextManager[object]], given: argparse.Namespace
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name: images per call, and the call, for each kind of work."""
    side, batch, large, device = given.side, given.batch, given.image, given.device
    channels = 32 if given.smoke else 512
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(0, CLASSES, (batch, side, side), device=device)
    double = torch.randn(batch, 3, 2 * side, 2 * side, device=device)
    pixels = torch.randint(0, 256, (3, large, large), dtype=torch.uint8)
    segmenter = Segmenter(model, num_classes=CLASSES, channels=channels)
    training = SegmenterInTraining(segmenter, auxiliary=channels // 2, layer=2, dropout=0.1).to(device).train()
    evaluated = use_cuda_graphs(copy.deepcopy(segmenter).eval())
    windows = Inference(crop=side, stride=side * 341 // 512, batch_size=batch)
    backbone: Any = evaluated.backbone
    layers = [backbone.num_layers * (i + 1) // 4 - 1 for i in range(4)]
    if isinstance(backbone, TimmViT):
        backbone = backbone.model

    def whole() -> None:
        with torch.no_grad(), autocast():
            evaluated(images)

    def features() -> None:
        with torch.no_grad(), autocast():
            backbone.forward_intermediates(double, indices=layers, intermediates_only=True)

    def sliding() -> None:
        with autocast():
            predict(evaluated, pixels, windows, preprocessing=Preprocessing(img_size=side))

    return {
        f"training, {batch} crops of {side}": (
            batch,
            captured(partial(training_step, training, images, labels, autocast), device),
        ),
        f"windows of {side} over {large}x{large}": (1, sliding),
        f"{batch} whole images of {side}": (batch, captured(whole, device)),
        f"features of four layers, {batch} images of {2 * side}": (batch, captured(features, device)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="images per batch")
    parser.add_argument("--image", type=int, default=2000, help="size of the large image in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--smoke", action="store_true", help="tiny models and sizes")
    given = parser.parse_args()
    given.side, given.batch, given.image = (64, 2, 150) if given.smoke else (512, given.batch, given.image)
    gpu = given.device == "cuda"
    autocast = partial(torch.autocast, "cuda", dtype=torch.bfloat16, cache_enabled=False) if gpu else nullcontext
    torch.manual_seed(0)
    by_model = {
        name: works(make(given.side, smoke=given.smoke), autocast, given)
        for name, make in {"Mamba-R Base": mamba, "ViT-Base": vit}.items()
    }
    print(describe(given.device))
    if given.smoke:
        print("Smoke run of tiny models under the names of the large ones: the numbers are meaningless.")
    first, second = by_model
    print(f"\n| images/s, {CLASSES} classes | {first} | {second} | ratio |\n|---|---|---|---|")
    for kind, (images, _) in by_model[first].items():
        calls = {name: found[kind][1] for name, found in by_model.items()}
        took = interleaved(calls, device=given.device, rounds=given.rounds)
        rates = [images / took[name].median for name in calls]
        print(f"| {kind} | {rates[0]:.4g} | {rates[1]:.4g} | {rates[0] / rates[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
