"""What looking costs: images a second of plain inference, and with the norms of all layers collected.

    python benchmarks/models/looking.py                                        # Tiny, on the CPU
    python benchmarks/models/looking.py --model mambar_base_patch16_224 --device cuda --batch 128

Random images that lie on the device; both in float32 weights, on a GPU under bfloat16 autocast. Interleaved, medians.
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
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mambar_tiny_patch16_224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model = mambar.create_model(options.model).to(options.device).eval()
    images = torch.randn(options.batch, 3, *model.config.size, device=options.device)
    batches = [images] * options.batches

    def plain() -> None:
        for each in batches:
            model(each)

    def look() -> None:
        collect_norms(model, batches, keep=0)

    def under(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
                work()

        return run

    found = interleaved({"plain": under(plain), "all norms": under(look)}, device=options.device, rounds=options.rounds)
    count = options.batch * options.batches
    print(describe(options.device), f"{options.model}, batch {options.batch}", sep="; ")
    for name, timing in found.items():
        print(f"{name:10} {count / timing.median:9.1f} images/s  {found['plain'].median / timing.median:6.1%} of plain")


if __name__ == "__main__":
    main()
