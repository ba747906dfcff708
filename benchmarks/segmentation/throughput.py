"""Speed and memory of UPerNet with Mamba-R Base and with timm's ViT-Base.

    python benchmarks/segmentation/throughput.py --device cuda                  # 512-pixel crops, 2,000-pixel images
    python benchmarks/segmentation/throughput.py --device cpu --smoke           # smoke test with tiny models

Training: forward, loss and backward of a batch of crops. Inference: sliding windows of 512 every 341 pixels over one
large image. bf16 autocast on a GPU. Medians of interleaved rounds; peak memory of each model. The table is printed.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn

from mambar.bench.machine import describe
from mambar.bench.timing import interleaved
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.hub.create import create_model
from mambar.models.timm_vit import TimmViT
from mambar.segmentation import Inference, Segmenter, predict
from mambar.segmentation.losses import pixel_cross_entropy
from mambar.segmentation.training_model import SegmenterInTraining

CLASSES = 150


def mamba(side: int, *, smoke: bool) -> nn.Module:
    """Mamba-R Base, or a tiny variant for --smoke."""
    small = {"embed_dim": 48, "depth": 4, "num_registers": 4} if smoke else {}
    name = "mambar_tiny_patch16_224" if smoke else "mambar_base_patch16_224"
    return create_model(name, img_size=side, num_classes=0, **small)


def vit(side: int, *, smoke: bool) -> nn.Module:
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


def peak(work: Callable[[], object], device: str) -> str:
    """Peak GPU memory of the call, in GiB."""
    if device != "cuda":
        return "not measured"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="crops per batch")
    parser.add_argument("--image", type=int, default=2000, help="size of the large image in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--smoke", action="store_true", help="tiny models and sizes")
    given = parser.parse_args()
    side, batch, large = (64, 2, 150) if given.smoke else (512, given.batch, given.image)
    channels = 32 if given.smoke else 512
    autocast = partial(torch.autocast, "cuda", dtype=torch.bfloat16) if given.device == "cuda" else nullcontext
    torch.manual_seed(0)
    images = torch.randn(batch, 3, side, side, device=given.device)
    labels = torch.randint(0, CLASSES, (batch, side, side), device=given.device)
    pixels = torch.randint(0, 256, (3, large, large), dtype=torch.uint8)
    settings = Inference(crop=side, stride=side * 341 // 512, batch_size=batch)
    steps, inferences, memory = {}, {}, {}
    for name, make in {"Mamba-R Base": mamba, "ViT-Base": vit}.items():
        segmenter = Segmenter(make(side, smoke=given.smoke), num_classes=CLASSES, channels=channels)
        model = SegmenterInTraining(segmenter, auxiliary=channels // 2, layer=2, dropout=0.1).to(given.device).train()
        steps[name] = partial(training_step, model, images, labels, autocast)
        # Windows in evaluation mode; the same weights.
        inferences[name] = partial(infer, segmenter, model, pixels, settings, autocast)
        memory[name] = (peak(steps[name], given.device), peak(inferences[name], given.device))
    print(describe(given.device))
    if given.smoke:
        print("Smoke run of tiny models under the names of the large ones: the numbers are meaningless.")
    print(f"training: {batch} crops of {side}; inference: {large}x{large} pixels, windows of {side}, {CLASSES} classes")
    trained = interleaved(steps, device=given.device, rounds=given.rounds)
    inferred = interleaved(inferences, device=given.device, rounds=given.rounds)
    print("| model | training crops/s | peak | seconds per image | peak (both models' weights included) |")
    print("|---|---|---|---|---|")
    for name in steps:
        rate = batch / trained[name].median
        print(f"| {name} | {rate:.1f} | {memory[name][0]} | {inferred[name].median:.3f} | {memory[name][1]} |")


def infer(
    segmenter: Segmenter,
    model: nn.Module,
    pixels: torch.Tensor,
    settings: Inference,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Sliding windows over one image."""
    model.eval()
    predict(segmenter, pixels, settings, preprocessing=Preprocessing(img_size=512), autocast=autocast)
    model.train()


if __name__ == "__main__":
    main()
