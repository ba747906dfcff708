"""Shapes: procedural scenes of objects on plain textured backgrounds, generated on the fly.

    mambar train shapes

The backgrounds carry little information, which is where the paper finds artifacts in vision Mamba.
"""

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="shapes",
    model="mambar_tiny_patch16_224",
    config={"patch_size": 4, "embed_dim": 64, "depth": 6, "num_registers": 4, "register_reduction": 2},
    data="shapes",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    stages=(
        Stage(
            img_size=32,
            epochs=10,
            batch_size=32,
            lr=2e-3,
            min_lr=1e-5,
            warmup_lr=1e-5,
            clip_grad=1.0,
            train_crop="shift",
            crop_padding=2,
            drop_path_rate=0.05,
        ),
    ),
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Mamba-R on procedural scenes",
    source="ours",
    command="mambar train shapes",
    expected="not run yet",
)
