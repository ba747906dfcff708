"""Shapes: procedural scenes of objects on plain textured backgrounds, generated on the fly.

    mambar train shapes

The backgrounds carry little information, which is where the paper finds artifacts in vision Mamba.
"""

import dataclasses

from mambar.recipes.digits import RECIPE as DIGITS
from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe

RECIPE = Recipe(
    name="shapes",
    model="mambar_tiny_patch16_224",
    config={"patch_size": 4, "embed_dim": 64, "depth": 6, "num_registers": 4, "register_reduction": 2},
    data="shapes",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    stages=(
        # The schedule of digits.
        dataclasses.replace(DIGITS.stages[0], img_size=32, epochs=10, crop_padding=2, hflip=0.5, label_smoothing=0.0),
    ),
)

ENTRY = RecipeEntry(recipe=RECIPE, title="Mamba-R on procedural scenes", command="mambar train shapes")
