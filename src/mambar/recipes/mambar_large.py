"""Mamba-R Large on ImageNet-1k: Base's three stages with a larger batch and more stochastic depth; unpublished.

    torchrun --nnodes 4 --nproc-per-node 8 … -m mambar train mambar_large data=/data/imagenet

The model has 341 million parameters. Gradient checkpointing is on; `parallel=fsdp` shards the parameters.
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.stages import FINETUNE, INTERMEDIATE, PRETRAIN
from mambar.training.recipe import Recipe

RECIPE = Recipe(
    name="mambar_large",
    model="mambar_large_patch16_224",
    data="imagenet",
    stages=(
        dataclasses.replace(PRETRAIN, batch_size=2048, lr=2.5e-4, drop_path_rate=0.2, clip_grad=1.0),
        dataclasses.replace(INTERMEDIATE, batch_size=2048, lr=1e-4, drop_path_rate=0.5, clip_grad=1.0),
        dataclasses.replace(FINETUNE, drop_path_rate=0.5, clip_grad=1.0),
    ),
    num_shards=16,
    grad_checkpointing=True,
)

_CLIP = "1.0: deeper models diverge more easily; clipping follows the check for finite numbers"
_LR = "scaled to Base's peak at the doubled batch: 48 layers diverge more easily"

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Mamba-R Large on ImageNet-1k, three stages",
    source="ours, after README of github.com/wangf3014/Mamba-Reg at 0f7c2da (Base); batch 2048 as recalled",
    command="torchrun --nnodes 4 --nproc-per-node 8 -m mambar train mambar_large data=/data/imagenet",
    expected="83.2 % top-1 (paper v1), 83.6 % (paper v2 and README); ours: not run",
    not_published={
        "stages.0.batch_size": "2048, as recalled of the authors",
        "stages.1.batch_size": "2048, as recalled of the authors",
        "stages.0.lr": _LR,
        "stages.1.lr": _LR,
        "stages.0.drop_path_rate": "0.2, twice Base's",
        "stages.1.drop_path_rate": "0.5, above Base's 0.4",
        "stages.2.drop_path_rate": "0.5, as in the stage before",
        **{f"stages.{index}.clip_grad": _CLIP for index in range(3)},
        "num_shards": "16 parts of 128 images, as many as Base mixes at a time",
        "grad_checkpointing": "48 layers at batch 128 fit one GPU of 80 GB with it",
    },
)
