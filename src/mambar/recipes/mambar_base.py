"""Mamba-R Base on ImageNet-1k: the three published stages.

    torchrun --nproc-per-node 8 -m mambar train mambar_base data=/data/imagenet
    mambar train mambar_base data=/data/imagenet --processes 8

The eight shards correspond to the eight GPUs of the official run: mixup acts on eight parts of 128 images, for any
number of processes. Differences: the learning rate changes every step, not every epoch; both scan directions are
initialized alike (config.official_backward_bias=true initializes the backward one as the released code does).
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
