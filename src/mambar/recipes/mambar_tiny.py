"""Mamba-R Tiny on ImageNet-1k in one stage at 224 pixels; the paper publishes no recipe for it.

    mambar train mambar_tiny data=/data/imagenet --processes 8

Values without an explanation below are those of Base's first stage (`recipes/stages.py`).
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.stages import PRETRAIN
from mambar.training.recipe import Recipe

RECIPE = Recipe(
    name="mambar_tiny",
    model="mambar_tiny_patch16_224",
    data="imagenet",
    stages=(dataclasses.replace(PRETRAIN, name="train", img_size=224, crop_pct=1.0),),
    num_shards=8,
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Mamba-R Tiny on ImageNet-1k, one stage",
    source="ours, after arXiv 2405.14858 and the same group's Adventurer (as recalled: 300 epochs at 224 for Tiny)",
    command="mambar train mambar_tiny data=/data/imagenet --processes 8",
    expected="77.4 % top-1 (paper v1, derived); ours: not run",
    not_published={
        "stages.0.img_size": "a small model overfits little, and the 128-pixel stage saves little of its cost",
        "stages.0.epochs": "300, as the same group trains a model of this size",
        "stages.0.drop_path_rate": "0.1, the value of Base's first stage: a small model needs less regularization",
        "stages.0.lr": "the value of Base's first stage",
        "stages.0.weight_decay": "the value of Base's first stage",
        "stages.0.auto_augment": "the augmentation of Base's first stage",
        "stages.0.crop_pct": "1.0, the crop of the published evaluations",
    },
)
