"""Peak rates of the hardware, measured in the same run: copies, matrix products, exponentials."""

from dataclasses import dataclass

import torch

from mambar.bench.timing import interleaved


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Peak rates per second.

    Attributes:
        bytes: Bytes read plus bytes written.
        flops: Multiply-adds times two.
        exponentials: Exponentials.
    """

    bytes: float
    flops: float
    exponentials: float

    def line(self) -> str:
        """The three rates with units."""
        return (
            f"copy {self.bytes / 1e9:.0f} GB/s, matrix product {self.flops / 1e12:.3g} TFLOP/s, "
            f"exp2 {self.exponentials / 1e9:.3g} G/s"
        )


def measure_ceilings(device: str) -> Ceilings:
    """The peak rates of `device`: bfloat16 products on a GPU, float32 on a CPU with PyTorch's current threads.

    On a CPU, exponentials are those of a vectorized exp2 in cache. On a GPU they are those of an elementwise
    kernel on a large tensor, which memory bandwidth may limit first: a lower bound.
    """
    gpu = device.startswith("cuda")
    source = torch.randn(2**28 if gpu else 2**24, device=device)
    target = torch.empty_like(source)
    side = 8192 if gpu else 1024
    dtype = torch.bfloat16 if gpu else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    small = source if gpu else -torch.rand(4096)
    result = torch.empty_like(small)
    works = {
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(left, right),
        "exp": lambda: torch.exp2(small, out=result),
    }
    seconds = {name: timing.median for name, timing in interleaved(works, device=device, rounds=5).items()}
    return Ceilings(
        bytes=2 * source.numel() * source.element_size() / seconds["copy"],
        flops=2 * side**3 / seconds["product"],
        exponentials=small.numel() / seconds["exp"],
    )
