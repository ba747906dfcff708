"""Mamba-R on one page: the whole model in plain PyTorch, for reading.

Equal to `mambar.VisionMamba` weight for weight (tests/test_minimal.py). Slow on purpose: the scan is a visible loop.
"Mamba®: Vision Mamba ALSO Needs Registers", arXiv 2405.14858.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a learned gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def selective_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence h ← exp(dt·A)·h + dt·B·u, y = C·h + D·u.

    u, dt (B, L, E); A (E, N); B, C (B, L, N); D (E) → y (B, L, E). Every channel has its own N states; how fast
    they forget (dt), what enters (B) and what is read (C) depends on the token: that is the selection.
    """
    h = u.new_zeros(u.shape[0], *A.shape)  # (B, E, N)
    ys = []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]  # (B, E, 1)
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        ys.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1) + D * u


class DirectionalScan(nn.Module):
    """One direction: look at the last few tokens, decide dt, B and C, then scan."""

    def __init__(self, inner: int, rank: int, state: int = 16, taps: int = 4) -> None:
        super().__init__()
        self.rank, self.state, self.taps = rank, state, taps
        self.conv_weight = nn.Parameter(torch.randn(inner, taps) / math.sqrt(taps))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        past = F.pad(x.transpose(1, 2), (self.taps - 1, 0))  # zeros in front: causal
        x = F.silu(F.conv1d(past, self.conv_weight[:, None], self.conv_bias, groups=x.shape[-1])).transpose(1, 2)
        dt, B, C = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        return selective_scan(x, F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log), B, C, self.D)


class MambaMixer(nn.Module):
    """Project in, scan both ways, gate, average, project out."""

    def __init__(self, dim: int, expand: int = 2, state: int = 16, taps: int = 4) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.forward_scan = DirectionalScan(inner, rank, state, taps)
        self.backward_scan = DirectionalScan(inner, rank, state, taps)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        ahead = self.forward_scan(x)
        behind = self.backward_scan(x.flip(1)).flip(1)
        return self.out_proj((ahead + behind) / 2 * F.silu(z))


class MambaBlock(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = MambaMixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class MambaR(nn.Module):
    """An image becomes tokens, tokens pass blocks, a head reads the registers."""

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 192,
        depth: int = 24,
        num_registers: int = 12,
        reduce: int = 1,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, dim) * 0.02)
        self.registers = nn.Parameter(torch.randn(1, num_registers, dim) * 0.02)
        self.register_position = nn.Parameter(torch.randn(1, num_registers, dim) * 0.02)
        self.blocks = nn.ModuleList(MambaBlock(dim) for _ in range(depth))
        self.norm = RMSNorm(dim)
        features = num_registers * (dim // reduce)
        self.reduce = nn.Linear(dim, dim // reduce, bias=False) if reduce > 1 else nn.Identity()
        self.reduce_norm = RMSNorm(features) if reduce > 1 else nn.Identity()
        self.classifier = nn.Linear(features, num_classes)
        # Evenly: one register after each of the first n runs of P // (n+1) patches.
        run = patches // (num_registers + 1)
        order: list[int] = []
        for register in range(num_registers):
            order += [*range(register * run, (register + 1) * run), patches + register]
        self.order = [*order, *range(num_registers * run, patches)]
        self.places = [self.order.index(patches + register) for register in range(num_registers)]

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        registers = (self.registers + self.register_position).expand(len(images), -1, -1)
        x = torch.cat([patches, registers], dim=1)[:, self.order]  # (B, M+n, D)
        for block in self.blocks:
            x = block(x)
        registers = self.norm(x)[:, self.places]  # (B, n, D)
        return self.classifier(self.reduce_norm(self.reduce(registers).flatten(1)))


if __name__ == "__main__":
    model = MambaR(image_size=64, dim=64, depth=2, reduce=4, num_classes=10)
    logits = model(torch.randn(2, 3, 64, 64))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, logits {tuple(logits.shape)}")
