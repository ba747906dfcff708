"""Throughput of inference with and without collecting the token norms of all layers.

    python benchmarks/models/norm_collection.py                                        # Tiny, on the CPU
    python benchmarks/models/norm_collection.py --model mambar_base_patch16_224 --device cuda --batch 128

Random images on the device, float32 weights, bfloat16 autocast on a GPU. Medians of interleaved rounds are printed.
"""

import argparse
from collections.abc import Callable

import torch

import mambar
from mambar.analysis import collect_norms
from mambar.bench.machine import describe
from mambar.bench.timing import interleaved
from mambar.memory import keep_freed_memory


def main() -> None:
    """Measures and prints one line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mambar_tiny_patch16_224", help="model name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16, help="images per batch")
    parser.add_argument("--batches", type=int, default=4, help="batches per call")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model = mambar.create_model(options.model).to(options.device).eval()
    images = torch.randn(options.batch, 3, *model.config.size, device=options.device)
    batches = [images] * options.batches

    def plain() -> None:
        for each in batches:
            model(each)

    def collect() -> None:
        collect_norms(model, batches, keep=0)

    def under(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
                work()

        return run

    found = interleaved(
        {"plain": under(plain), "all norms": under(collect)}, device=options.device, rounds=options.rounds
    )
    count = options.batch * options.batches
    print(describe(options.device), f"{options.model}, batch {options.batch}", sep="; ")
    for name, timing in found.items():
        print(f"{name:10} {count / timing.median:9.1f} images/s  {found['plain'].median / timing.median:6.1%} of plain")


if __name__ == "__main__":
    main()
