"""Semantic segmentation of your own images and masks with UPerNet, from random weights.

    mambar train upernet data=PATH
    mambar train upernet data=PATH epochs=200 img_size=512 batch_size=16

PATH has images/ and masks/, each with train/ and val/ or without; masks are PNGs with the names of their images, whose
values or colors are the classes. `classes.txt` names them, one per line. ADE20K and VOC are read as they are. With a
GPU, `upernet_ade20k data=PATH` starts from the released weights.
"""

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="upernet",
    model="mambar_tiny_patch16_224",
    config={"depth": 12, "patch_size": 8, "num_registers": 8},
    task="segmentation",
    task_options={"channels": 64, "aux_channels": 32, "resize": [1024, 128], "eval_crop": 128, "eval_stride": 85},
    data="images",
    stages=(
        Stage(
            img_size=128,
            epochs=50,
            batch_size=8,
            lr=1e-3,
            min_lr=1e-5,
            warmup_epochs=3.0,
            weight_decay=0.01,
            decay_groups="corrected",
            clip_grad=1.0,
            drop_path_rate=0.05,
        ),
    ),
    final_weights="best",
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="UPerNet on a folder of your own images and masks",
    command="mambar train upernet data=PATH",
    expected="depends on the images",
    not_published={
        "task_options.resize": "short side 128 as img_size, for CPUs; raise both, and task_options.eval_crop, on a GPU",
        "config.depth": "12 layers: a few thousand images do not suffice for 24",
    },
)
