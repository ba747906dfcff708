"""Mamba-R Tiny and Vim Tiny on Tiny-ImageNet at 64 pixels: the networks of the register study (docs/findings).

    mambar train tiny_imagenet data=PATH
    mambar train tiny_imagenet_vim data=PATH
    mambar reproduce table_artifacts --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2,3,4

PATH holds `tiny-imagenet-200`, whole or a part of its classes. Patches of 4 pixels give 256 tokens. The schedule is
that of the paper's first stage, shortened to 60 epochs.
"""

from dataclasses import replace

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.mambar_imagenet import PRETRAIN
from mambar.training.recipe import Recipe

_RECIPE = Recipe(
    name="tiny_imagenet",
    model="mambar_tiny_patch16_224",
    config={"patch_size": 4},
    data="tiny_imagenet",
    stages=(
        replace(
            PRETRAIN,
            name="train",
            img_size=64,
            epochs=60,
            batch_size=512,
            lr=1e-3,
            lr_base_size=None,
            ema_decay=None,
            scale=(0.25, 1.0),
            crop_pct=1.0,
        ),
    ),
    # 10 and 3 epochs of 40,000 images.
    save_every=780,
    eval_every=10,
    health_every=234,
    log_every=39,
    keep_checkpoints=1,
)

ENTRY = RecipeEntry(
    recipe=_RECIPE,
    title="Mamba-R Tiny on Tiny-ImageNet at 64 pixels",
    source="ours, after the first stage of Base (see mambar_base)",
    command="mambar train tiny_imagenet data=PATH",
    not_published={
        "stages.0.img_size": "the size of the images",
        "stages.0.epochs": "60: 2.4 million images, for 40,000 training images",
        "stages.0.batch_size": "512: 78 steps in an epoch of 40,000 images",
        "stages.0.lr": "the peak of Base's first stage at its batch of 1024",
        "stages.0.scale": "from 25 %: a crop of 8 % would have 18 pixels",
        "stages.0.ema_decay": "none: 0.99996 would average over all steps of the run",
        "stages.0.crop_pct": "1.0: the images are small",
    },
)

VIM_ENTRY = RecipeEntry(
    recipe=replace(_RECIPE, name="tiny_imagenet_vim", model="vim_tiny_patch16_224"),
    title="Vim Tiny on Tiny-ImageNet at 64 pixels",
    source=ENTRY.source,
    command="mambar train tiny_imagenet_vim data=PATH",
    not_published=ENTRY.not_published,
)
