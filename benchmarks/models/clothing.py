"""Trains the models in `weights/`: photographs of clothes, ten classes, random initial weights, 128 then 224 pixels.

    mambar train benchmarks/models/clothing.py data=PATH
    mambar train benchmarks/models/clothing.py data=PATH model=vim_tiny_patch16_224

PATH has train/, validation/ and test/ with one folder for each class. docs/trained_models.md has what was measured.
"""

import dataclasses

from mambar.training.recipe import Recipe, Stage

FIRST = Stage(
    name="128 pixels",
    img_size=128,
    # The length is that in steps.
    epochs=1000,
    max_steps=2011,
    batch_size=128,
    lr=6e-4,
    min_lr=1e-6,
    schedule="constant",
    warmup_steps=200,
    weight_decay=0.05,
    decay_groups="corrected",
    clip_grad=1.0,
    ema_decay=0.995,
    drop_path_rate=0.05,
    scale=(0.2, 1.0),
    color_jitter=0.3,
    mixup=0.8,
    cutmix=1.0,
    # Half of the batches are not mixed: there are few images.
    mixup_prob=0.5,
    label_smoothing=0.1,
    crop_pct=0.95,
)
SECOND = dataclasses.replace(
    FIRST,
    name="224 pixels",
    img_size=224,
    max_steps=2051,
    lr=4e-4,
    schedule="cosine",
    warmup_steps=300,
    start_from="ema",
)
RECIPE = Recipe(
    name="clothing",
    model="mambar_tiny_patch16_224",
    data="images",
    stages=(FIRST, SECOND),
    # An epoch has 23 steps: every 759 steps.
    eval_every=33,
    # The validation images choose among the evaluations of the second stage.
    final_weights="best",
)
