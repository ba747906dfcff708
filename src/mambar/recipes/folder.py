"""Training on a folder of your own images from random weights, with settings for a few thousand images.

    mambar train folder data=PATH
    mambar train folder data=PATH epochs=100 img_size=224 batch_size=32
    mambar train folder data=PATH pretrained=MODEL

PATH has one folder for each class, or train/, val/ and optionally test/ with one folder for each class. If a trained
model is available, use `finetune`, or `pretrained=MODEL` here.
"""

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="folder",
    model="mambar_tiny_patch16_224",
    config={"depth": 12, "patch_size": 8, "num_registers": 8},
    data="images",
    stages=(
        Stage(
            img_size=64,
            epochs=50,
            batch_size=32,
            lr=1e-3,
            min_lr=1e-5,
            warmup_epochs=3.0,
            weight_decay=0.05,
            decay_groups="corrected",
            clip_grad=1.0,
            drop_path_rate=0.05,
            scale=(0.4, 1.0),
            color_jitter=0.2,
            label_smoothing=0.1,
        ),
    ),
    final_weights="best",
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="A small Mamba-R on a folder of your own images",
    command="mambar train folder data=PATH",
    expected="depends on the images",
    not_published={
        "stages.0.img_size": "64: half an hour on two CPU cores for a thousand images; raise it on a GPU",
        "config.depth": "12 layers: a few thousand images do not suffice for 24",
    },
)
