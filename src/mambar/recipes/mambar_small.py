"""Mamba-R Small on ImageNet-1k: Base's three stages with less stochastic depth; the recipe of Small is unpublished.

mambar train mambar_small data=/data/imagenet --processes 8
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.stages import FINETUNE, INTERMEDIATE, PRETRAIN
from mambar.training.recipe import Recipe

RECIPE = Recipe(
    name="mambar_small",
    model="mambar_small_patch16_224",
    data="imagenet",
    stages=(
        dataclasses.replace(PRETRAIN, drop_path_rate=0.05),
        dataclasses.replace(INTERMEDIATE, drop_path_rate=0.1),
        dataclasses.replace(FINETUNE, drop_path_rate=0.1),
    ),
    num_shards=8,
)

_AS_BASE = "Base's value: the paper gives the numbers of its recipe for Base only"

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Mamba-R Small on ImageNet-1k, three stages",
    source="ours, after README of github.com/wangf3014/Mamba-Reg at 0f7c2da (which gives Base)",
    command="mambar train mambar_small data=/data/imagenet --processes 8",
    expected="81.1 % top-1 (paper v1, derived), 81.4 % (paper v2 and README); ours: not run",
    not_published={
        "stages.0.drop_path_rate": "0.05: the model has a quarter of Base's parameters",
        "stages.1.drop_path_rate": "0.1, a quarter of Base's 0.4",
        "stages.2.drop_path_rate": "0.1, as in the stage before",
        **{f"stages.{index}.{name}": _AS_BASE for name in ("epochs", "lr") for index in range(3)},
    },
)
