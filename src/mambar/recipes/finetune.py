"""Fine-tuning of a trained model on your own images: all layers with layer-wise learning rates, or the head only.

    mambar train finetune data=PATH start_from=runs/mambar_base
    mambar train finetune data=PATH start_from=mambar_base_patch16_224.pth
    mambar train finetune data=PATH start_from=… freeze_backbone=true lr=1e-3

PATH has one folder for each class, or train/ and val/ with one folder for each class. The head is initialized randomly
if the number of classes differs.
"""

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="finetune",
    model="same",
    data="images",
    stages=(
        Stage(
            img_size=224,
            epochs=30,
            batch_size=64,
            lr=3e-4,
            min_lr=1e-6,
            warmup_epochs=3.0,
            weight_decay=0.05,
            decay_groups="corrected",
            layer_decay=0.75,
            clip_grad=1.0,
            drop_path_rate=0.1,
            scale=(0.3, 1.0),
            auto_augment="rand-m9-mstd0.5-inc1",
            label_smoothing=0.1,
            # start_from has no default: it is given on the command line.
            crop_pct=0.95,
        ),
    ),
    final_weights="best",
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Fine-tuning of a trained model on your own images",
    command="mambar train finetune data=PATH start_from=MODEL",
    expected="depends on the images",
    not_published={
        "stages.0.layer_decay": "0.75, the usual value for networks of this depth; the official code has none",
        "stages.0.lr": "for layer decay 0.75: the rate of the stem is then 2e-7, that of the head 3e-4",
    },
)
