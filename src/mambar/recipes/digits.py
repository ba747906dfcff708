"""Digits: 1,797 handwritten digits of 8×8 pixels, without a download; the recipes of `mambar demo`.

    mambar train digits              about a minute on two CPU cores
    mambar train digits_vim          the same network with one register in the middle (Vim)

Not from the paper. The network is the smallest one with 16 patch tokens, several registers and the register head.
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

BACKBONE = {"patch_size": 2, "embed_dim": 64, "depth": 4}
REGISTERS = {"num_registers": 4, "register_reduction": 2}

RECIPE = Recipe(
    name="digits",
    model="mambar_tiny_patch16_224",
    config={**BACKBONE, **REGISTERS},
    data="digits",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
    stages=(
        Stage(
            img_size=8,
            epochs=18,
            batch_size=32,
            lr=2e-3,
            min_lr=1e-5,
            warmup_lr=1e-5,
            warmup_epochs=1.0,
            weight_decay=0.05,
            clip_grad=1.0,
            train_crop="shift",
            crop_padding=1,
            hflip=0.0,
            drop_path_rate=0.05,
            label_smoothing=0.1,
        ),
    ),
    precision="fp32",
)

# The same network, data and schedule with one register in the middle, which is the head's only input.
VIM_RECIPE = dataclasses.replace(RECIPE, name="digits_vim", model="vim_tiny_patch16_224", config=BACKBONE)

ENTRY = RecipeEntry(recipe=RECIPE, title="Mamba-R on handwritten digits", command="mambar train digits")

VIM_ENTRY = RecipeEntry(
    recipe=VIM_RECIPE, title="Vim (one middle register) on handwritten digits", command="mambar train digits_vim"
)
