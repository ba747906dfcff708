"""Add a backbone: a small MLP-Mixer (arXiv 2105.01601), trained, saved and analyzed like the built-in models."""

import sys

from torch import nn

import mambar
from mambar.recipes.digits import RECIPE


class Block(nn.Module):
    """Mixes over tokens, then over channels."""

    def __init__(self, num_tokens, dim):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.over_tokens = nn.Sequential(
            nn.Linear(num_tokens, 2 * num_tokens), nn.GELU(), nn.Linear(2 * num_tokens, num_tokens)
        )
        self.over_channels = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.over_tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norms[1](x))


@mambar.register_backbone("mlp_mixer")
class MlpMixer(nn.Module):
    """A `mambar.TokenModel` without registers."""

    def __init__(self, *, img_size=32, num_classes=10, patch_size=8, embed_dim=32, depth=2):
        super().__init__()
        self.num_layers, self.patch_size, self.embed_dim = depth, patch_size, embed_dim
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(Block((img_size // patch_size) ** 2, embed_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def tokens(self, images, layers=None, *, tensor="residual"):
        maps, found = self.proj(images), []
        x = maps.flatten(2).transpose(1, 2)
        for block in self.blocks:
            before, x = x, block(x)
            found.append({"residual": x, "mixer": x - before, "normed": self.norm(x)}[tensor])
        chosen = range(self.num_layers) if layers is None else layers
        return [mambar.Tokens(patches=found[k], registers=x[:, :0], grid=tuple(maps.shape[2:])) for k in chosen]

    def forward(self, images):
        return self.head(self.tokens(images, [-1], tensor="normed")[0].patches.mean(1))


if __name__ == "__main__":
    recipe = RECIPE.replace(model="mlp_mixer", drop_path_rate=0.0, epochs=2)
    print(mambar.run(recipe, out=sys.argv[1], device="cpu", num_workers=0).metrics)
