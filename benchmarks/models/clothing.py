"""Trains the models in `weights/`: photographs of clothes, ten classes, 224 pixels, random initial weights.

    mambar train benchmarks/models/clothing.py data=PATH
    mambar train benchmarks/models/clothing.py data=PATH model=vim_tiny_patch16_224

PATH has train/, validation/ and test/ with one folder for each class. The length is given as max_steps.
"""

from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="clothing",
    model="mambar_tiny_patch16_224",
    data="images",
    stages=(
        Stage(
            img_size=224,
            epochs=1000,
            max_steps=6000,
            batch_size=128,
            lr=1e-3,
            min_lr=1e-6,
            warmup_steps=300,
            weight_decay=0.05,
            decay_groups="corrected",
            clip_grad=1.0,
            ema_decay=0.999,
            drop_path_rate=0.1,
            scale=(0.2, 1.0),
            auto_augment="rand-m9-mstd0.5-inc1",
            mixup=0.8,
            cutmix=1.0,
            # Half of the batches are not mixed: there are few images.
            mixup_prob=0.5,
            label_smoothing=0.1,
            crop_pct=0.95,
        ),
    ),
    # No choice among evaluations: the validation images choose between runs only.
    final_weights="ema",
)
