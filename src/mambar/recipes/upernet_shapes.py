"""Semantic segmentation of procedural scenes: four outlines on plain textured backgrounds, no download.

    mambar train upernet_shapes                   minutes on two CPU cores
    mambar train upernet_shapes_vim               the same with one register in the middle (Vim)
    mambar train probe_shapes start_from=RUN      a linear map of the frozen patch tokens of RUN

UPerNet's decoder (32 channels) on a Mamba-R with patches of 4 pixels, so that its finest map has a cell every 4 pixels.
`probe_shapes` evaluates frozen features: the backbone is that of a run of the recipe `shapes` (the same network,
trained for classification), and only one linear layer and the norm before it are trained.
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

BACKBONE = {"patch_size": 4, "embed_dim": 64, "depth": 6}
REGISTERS = {"num_registers": 4, "register_reduction": 2}
# Objects keep their color; they are only shifted, flipped and scaled by 0.8 to 1.25.
AUGMENTATION = {"resize": None, "ratio": [0.8, 1.25], "max_class_fraction": 1.0, "distort": False}
OPTIONS = {**AUGMENTATION, "dropout": 0.0, "eval_crop": 48, "eval_stride": 32}

RECIPE = Recipe(
    name="upernet_shapes",
    model="mambar_tiny_patch16_224",
    task="segmentation",
    config={**BACKBONE, **REGISTERS},
    data="shapes",
    data_options={"img_size": 48, "num_images": 3000, "val_limit": 200, "num_classes": 4, "area": [0.1, 0.25]},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    task_options={**OPTIONS, "channels": 32, "aux_channels": 16},
    stages=(
        Stage(
            img_size=48,
            epochs=8,
            batch_size=16,
            lr=3e-3,
            min_lr=0.0,
            warmup_lr=1e-6,
            warmup_steps=50,
            schedule="linear",
            weight_decay=0.01,
            decay_groups="corrected",
            clip_grad=1.0,
            drop_path_rate=0.05,
        ),
    ),
    precision="fp32",
)

# The same network, data and schedule with one register in the middle.
VIM_RECIPE = dataclasses.replace(RECIPE, name="upernet_shapes_vim", model="vim_tiny_patch16_224", config=BACKBONE)

PROBE_RECIPE = dataclasses.replace(
    RECIPE,
    name="probe_shapes",
    task_options={**OPTIONS, "decoder": "linear", "aux_channels": 0},
    stages=(dataclasses.replace(RECIPE.stages[0], freeze_backbone=True, drop_path_rate=0.0, epochs=2),),
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="UPerNet on Mamba-R, procedural scenes",
    command="mambar train upernet_shapes",
    expected="66.0 % mIoU, 93.0 % pixel accuracy on 200 held-out scenes (seed 0), 294 s on two cores of an Intel Xeon",
)

VIM_ENTRY = RecipeEntry(
    recipe=VIM_RECIPE,
    title="UPerNet on Vim (one middle register), procedural scenes",
    command="mambar train upernet_shapes_vim",
    expected="61.8 % mIoU, 92.2 % pixel accuracy on the same 200 scenes (seed 0)",
)

PROBE_ENTRY = RecipeEntry(
    recipe=PROBE_RECIPE,
    title="Linear probe of frozen patch tokens, procedural scenes",
    command="mambar train probe_shapes start_from=RUN",
)
