"""Vision Mamba (Vim): the same network with one register in the middle, the baseline of all comparisons.

    mambar train vim_tiny data=/data/imagenet --processes 8

Values from the commands and defaults of github.com/hustvl/Vim at dd0358a (`vim/scripts/pt-vim-{t,s}.sh`): 300 epochs
at 224, batch 1024 for Tiny and 512 for Small, linear scaling by 512, repeated augmentation, RandAugment with label
smoothing 0.1 and erasing 0.25 (DeiT's). The other values are those of Mamba-R's first stage, which are DeiT's too.
There is no script for Base.
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.mambar_imagenet import PRETRAIN
from mambar.training.recipe import Recipe, Stage

_DEIT = dataclasses.replace(
    PRETRAIN,
    name="train",
    img_size=224,
    weight_decay=0.1,
    drop_path_rate=0.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.0,
    random_erase_prob=0.25,
    label_smoothing=0.1,
)
_DEFAULTS = "the default of Vim's training code, which is DeiT's, as recalled; its script does not set it"
_SOURCE = "github.com/hustvl/Vim at dd0358a, vim/scripts"


def _recipe(size: str, stage: Stage) -> Recipe:
    return Recipe(name=f"vim_{size}", model=f"vim_{size}_patch16_224", data="imagenet", stages=(stage,), num_shards=8)


TINY = RecipeEntry(
    recipe=_recipe("tiny", _DEIT),
    title="Vim Tiny on ImageNet-1k",
    source=_SOURCE + "/pt-vim-t.sh",
    command="mambar train vim_tiny data=/data/imagenet --processes 8",
    expected="76.1 % top-1 (Vim's paper); ours: not run",
    not_published={"stages.0.lr": _DEFAULTS, "stages.0.epochs": _DEFAULTS, "stages.0.random_erase_prob": _DEFAULTS},
)

SMALL = RecipeEntry(
    recipe=_recipe(
        "small", dataclasses.replace(_DEIT, batch_size=512, lr=1e-3, weight_decay=0.05, drop_path_rate=0.05)
    ),
    title="Vim Small on ImageNet-1k",
    source=_SOURCE + "/pt-vim-s.sh",
    command="mambar train vim_small data=/data/imagenet --processes 8",
    expected="80.5 % top-1 (Vim's paper); ours: not run",
    not_published={"stages.0.epochs": _DEFAULTS, "stages.0.random_erase_prob": _DEFAULTS},
)

BASE = RecipeEntry(
    recipe=_recipe("base", dataclasses.replace(_DEIT, weight_decay=0.05, drop_path_rate=0.4, clip_grad=1.0)),
    title="Vim Base on ImageNet-1k",
    source="ours: the repository has no script for Base",
    command="mambar train vim_base data=/data/imagenet --processes 8",
    expected="81.8 % top-1 (as printed in arXiv 2405.14858); ours: not run",
    not_published={
        "stages.0.epochs": "as Tiny and Small",
        "stages.0.lr": "as Tiny: the scaled peak is 1e-3 there too",
        "stages.0.weight_decay": "as Small",
        "stages.0.drop_path_rate": "0.4, what Mamba-R Base takes at 224 pixels",
        "stages.0.clip_grad": "1.0, because divergence of Vim Base was reported",
    },
)
