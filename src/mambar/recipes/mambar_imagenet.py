"""Mamba-R on ImageNet-1k: the three published stages of Base, the other sizes after them, fine-tuning at 384 pixels.

    mambar train mambar_base data=/data/imagenet --processes 8
    torchrun --nproc-per-node 8 -m mambar train mambar_base data=/data/imagenet
    torchrun --nnodes 4 --nproc-per-node 8 … -m mambar train mambar_large data=/data/imagenet
    mambar train finetune_384 data=/data/imagenet start_from=runs/mambar_large --processes 8
    mambar train finetune_384 data=/data/imagenet start_from=mambar_large_patch16_224.pth --processes 8

The stages are those of the official README and training code, github.com/wangf3014/Mamba-Reg 0f7c2da. Values that the
README's commands omit are the defaults of that code (DeiT's): AdamW (0.9, 0.999), eps 1e-8, cosine to 1e-5, five
warm-up epochs from 1e-6, no clipping, EMA 0.99996, mixup 0.8 and cutmix 1.0 on every batch.

The eight shards correspond to the eight GPUs of the official run: mixup acts on eight parts of 128 images, for any
number of processes. Differences: the learning rate changes every step, not every epoch; both scan directions are
initialized alike (config.official_backward_bias=true initializes the backward one as the released code does).

The recipes of the other sizes are not published: Tiny has one stage at 224 pixels, Small less stochastic depth than
Base, Large (341 million parameters) a larger batch and more stochastic depth. Gradient checkpointing is on for Large;
`parallel=fsdp` shards its parameters. At 384 pixels, position embeddings of patches are resized bicubically, those of
registers are kept.
"""

from dataclasses import replace
from typing import Any, Final

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

PRETRAIN: Final = Stage(
    name="pretrain",
    img_size=128,
    epochs=300,
    batch_size=1024,
    lr=5e-4,
    lr_base_size=512,
    min_lr=1e-5,
    warmup_lr=1e-6,
    warmup_epochs=5.0,
    schedule="cosine",
    weight_decay=0.05,
    decay_groups="official",
    betas=(0.9, 0.999),
    eps=1e-8,
    ema_decay=0.99996,
    drop_path_rate=0.1,
    train_crop="resized",
    scale=(0.08, 1.0),
    hflip=0.5,
    auto_augment="three",
    color_jitter=0.3,
    aug_repeats=3,
    mixup=0.8,
    cutmix=1.0,
    mixup_prob=1.0,
    mixup_switch_prob=0.5,
    label_smoothing=0.0,
    random_erase_prob=0.0,
    crop_pct=0.875,
)

INTERMEDIATE: Final = replace(PRETRAIN, name="intermediate", img_size=224, epochs=100, lr=2e-4, drop_path_rate=0.4)

# The learning rate is constant after the warm-up: peak and minimum of the cosine are equal.
FINETUNE: Final = replace(
    INTERMEDIATE,
    name="finetune",
    epochs=20,
    batch_size=512,
    lr=1e-5,
    lr_base_size=None,
    weight_decay=0.1,
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.0,
    aug_repeats=1,
    label_smoothing=0.1,
    crop_pct=1.0,
)

_README: Final = "README of github.com/wangf3014/Mamba-Reg at 0f7c2da"


def _recipe(size: str, *stages: Stage, **fields: Any) -> Recipe:
    model = f"mambar_{size}_patch16_224"
    return Recipe(name=f"mambar_{size}", model=model, data="imagenet", stages=stages, **{"num_shards": 8, **fields})


# Values of Tiny without an explanation are those of Base's first stage.
TINY: Final = RecipeEntry(
    recipe=_recipe("tiny", replace(PRETRAIN, name="train", img_size=224, crop_pct=1.0)),
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

_AS_BASE: Final = "Base's value: the paper gives the numbers of its recipe for Base only"

SMALL: Final = RecipeEntry(
    recipe=_recipe(
        "small",
        replace(PRETRAIN, drop_path_rate=0.05),
        replace(INTERMEDIATE, drop_path_rate=0.1),
        replace(FINETUNE, drop_path_rate=0.1),
    ),
    title="Mamba-R Small on ImageNet-1k, three stages",
    source=f"ours, after {_README} (which gives Base)",
    command="mambar train mambar_small data=/data/imagenet --processes 8",
    expected="81.1 % top-1 (paper v1, derived), 81.4 % (paper v2 and README); ours: not run",
    not_published={
        "stages.0.drop_path_rate": "0.05: the model has a quarter of Base's parameters",
        "stages.1.drop_path_rate": "0.1, a quarter of Base's 0.4",
        "stages.2.drop_path_rate": "0.1, as in the stage before",
        **{f"stages.{index}.{name}": _AS_BASE for name in ("epochs", "lr") for index in range(3)},
    },
)

BASE: Final = RecipeEntry(
    recipe=_recipe("base", PRETRAIN, INTERMEDIATE, FINETUNE),
    title="Mamba-R Base on ImageNet-1k, three stages as published",
    source=f"arXiv 2405.14858; {_README}",
    command="mambar train mambar_base data=/data/imagenet --processes 8",
    expected="82.9 % top-1 (paper v1), 83.0 % (paper v2 and README); ours: not run",
)

_CLIP: Final = "1.0: deeper models diverge more easily; clipping follows the check for finite numbers"
_LR: Final = "scaled to Base's peak at the doubled batch: 48 layers diverge more easily"

LARGE: Final = RecipeEntry(
    recipe=_recipe(
        "large",
        replace(PRETRAIN, batch_size=2048, lr=2.5e-4, drop_path_rate=0.2, clip_grad=1.0),
        replace(INTERMEDIATE, batch_size=2048, lr=1e-4, drop_path_rate=0.5, clip_grad=1.0),
        replace(FINETUNE, drop_path_rate=0.5, clip_grad=1.0),
        num_shards=16,
    ),
    title="Mamba-R Large on ImageNet-1k, three stages",
    source=f"ours, after {_README} (Base); batch 2048 as recalled",
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
    },
)

_AS_FINETUNE: Final = ("epochs", "lr", "batch_size", "weight_decay", "auto_augment")

FINETUNE_384: Final = RecipeEntry(
    recipe=Recipe(
        name="finetune_384",
        model="same",
        data="imagenet",
        # No default: start_from is given on the command line.
        stages=(replace(FINETUNE, img_size=384, drop_path_rate=0.5, clip_grad=1.0),),
        num_shards=16,
    ),
    title="From 224 to 384 pixels on ImageNet-1k",
    source="ours, after the third stage of github.com/wangf3014/Mamba-Reg at 0f7c2da",
    command="mambar train finetune_384 data=/data/imagenet start_from=PATH --processes 8",
    expected="84.5 % top-1 for Large (paper v1 and v2); ours: not run",
    not_published={
        **dict.fromkeys((f"stages.0.{name}" for name in _AS_FINETUNE), "Base's third stage, which is published"),
        "stages.0.drop_path_rate": "0.5, as our Large recipe before it",
        "stages.0.clip_grad": "1.0, as our Large recipe before it",
    },
)
