"""Mamba-R Base on ImageNet-1k: the three stages exactly as published.

    torchrun --nproc-per-node 8 -m mambar train mambar_base data=/data/imagenet
    mambar train mambar_base data=/data/imagenet --processes 8

Eight shards are the eight GPUs of the official run: a batch of 1024 is mixed in eight parts of 128, on any number of
processes. Departures: the learning rate moves every step, not every epoch; both directions of the scan start alike
(config.official_backward_bias=true starts the backward one as the released code does).
"""

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.stages import FINETUNE, INTERMEDIATE, PRETRAIN
from mambar.training.recipe import Recipe

RECIPE = Recipe(
    name="mambar_base",
    model="mambar_base_patch16_224",
    data="imagenet",
    stages=(PRETRAIN, INTERMEDIATE, FINETUNE),
    num_shards=8,
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Mamba-R Base on ImageNet-1k, three stages as published",
    source="arXiv 2405.14858; README of github.com/wangf3014/Mamba-Reg at 0f7c2da",
    command="mambar train mambar_base data=/data/imagenet --processes 8",
    expected="82.9 % top-1 (paper v1), 83.0 % (paper v2 and README); ours: not run",
)
