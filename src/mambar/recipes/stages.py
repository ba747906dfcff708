"""The published stages of Mamba-R Base: official README and training code, github.com/wangf3014/Mamba-Reg 0f7c2da.

Values that the README's commands omit are the defaults of that code (DeiT's): AdamW (0.9, 0.999), eps 1e-8,
cosine to 1e-5, five warm-up epochs from 1e-6, no clipping, EMA 0.99996, mixup 0.8 and cutmix 1.0 on every batch.
"""

from dataclasses import replace
from typing import Final

from mambar.training.recipe import Stage

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
