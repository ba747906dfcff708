"""Mamba-R in one file: the whole model in plain PyTorch, for reading.

Equal to `mambar.VisionMamba` weight for weight (tests/test_minimal.py). Slow: the scan is a Python loop.
"Mamba®: Vision Mamba ALSO Needs Registers", arXiv 2405.14858.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a learned gain."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(embed_dim))

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
    """One direction: causal convolution, projection to dt, B and C, selective scan."""

    def __init__(self, d_inner: int, dt_rank: int, d_state: int = 16, d_conv: int = 4) -> None:
        super().__init__()
        self.dt_rank, self.d_state, self.d_conv = dt_rank, d_state, d_conv
        self.conv_weight = nn.Parameter(torch.randn(d_inner, d_conv) / math.sqrt(d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(d_inner))
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))

    def forward(self, x: Tensor) -> Tensor:
        past = F.pad(x.transpose(1, 2), (self.d_conv - 1, 0))  # zeros in front: causal
        x = F.silu(F.conv1d(past, self.conv_weight[:, None], self.conv_bias, groups=x.shape[-1])).transpose(1, 2)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return selective_scan(x, F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log), B, C, self.D)


class MambaMixer(nn.Module):
    """Project in, scan both ways, gate, average, project out."""

    def __init__(self, embed_dim: int, expand: int = 2, d_state: int = 16, d_conv: int = 4) -> None:
        super().__init__()
        d_inner, dt_rank = expand * embed_dim, math.ceil(embed_dim / 16)
        self.in_proj = nn.Linear(embed_dim, 2 * d_inner, bias=False)
        self.forward_scan = DirectionalScan(d_inner, dt_rank, d_state, d_conv)
        self.backward_scan = DirectionalScan(d_inner, dt_rank, d_state, d_conv)
        self.out_proj = nn.Linear(d_inner, embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        forward = self.forward_scan(x)
        backward = self.backward_scan(x.flip(1)).flip(1)
        return self.out_proj((forward + backward) / 2 * F.silu(z))


class MambaBlock(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim)
        self.mixer = MambaMixer(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class MambaR(nn.Module):
    """Patch embedding, registers, blocks, norm, and a classifier on the registers."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 24,
        num_registers: int = 12,
        register_reduction: int = 1,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        patches = (img_size // patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, embed_dim) * 0.02)
        self.registers = nn.Parameter(torch.randn(1, num_registers, embed_dim) * 0.02)
        self.register_position = nn.Parameter(torch.randn(1, num_registers, embed_dim) * 0.02)
        self.blocks = nn.ModuleList(MambaBlock(embed_dim) for _ in range(depth))
        self.norm = RMSNorm(embed_dim)
        features = num_registers * (embed_dim // register_reduction)
        self.reduce = (
            nn.Linear(embed_dim, embed_dim // register_reduction, bias=False)
            if register_reduction > 1
            else nn.Identity()
        )
        self.reduce_norm = RMSNorm(features) if register_reduction > 1 else nn.Identity()
        self.classifier = nn.Linear(features, num_classes)
        # Evenly: one register after each of the first n runs of P // (n+1) patches.
        run = patches // (num_registers + 1)
        order: list[int] = []
        for register in range(num_registers):
            order += [*range(register * run, (register + 1) * run), patches + register]
        self.order = [*order, *range(num_registers * run, patches)]
        self.register_positions = [self.order.index(patches + register) for register in range(num_registers)]

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        registers = (self.registers + self.register_position).expand(len(images), -1, -1)
        x = torch.cat([patches, registers], dim=1)[:, self.order]  # (B, M+n, D)
        for block in self.blocks:
            x = block(x)
        registers = self.norm(x)[:, self.register_positions]  # (B, n, D)
        return self.classifier(self.reduce_norm(self.reduce(registers).flatten(1)))


if __name__ == "__main__":
    model = MambaR(img_size=64, embed_dim=64, depth=2, register_reduction=4, num_classes=10)
    logits = model(torch.randn(2, 3, 64, 64))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, logits {tuple(logits.shape)}")
