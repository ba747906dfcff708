"""Autoregressive pre-training on images without labels, then fine-tuning in both directions.

    mambar train pretrain_autoregressive data=PATH --out runs/pretrained
    mambar train finetune data=PATH start_from=runs/pretrained config.mixer=bidirectional layer_decay=0.65 \
        mixup=0.8 cutmix=1.0
"""

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="pretrain_autoregressive",
    model="mambar_base_patch16_224",
    config={"mixer": "forward"},
    data="images",
    task="autoregressive",
    stages=(
        Stage(
            img_size=192,
            epochs=400,
            batch_size=1024,
            lr=1.5e-4,
            lr_base_size=256,
            min_lr=0.0,
            warmup_lr=0.0,
            warmup_epochs=40.0,
            weight_decay=0.05,
            decay_groups="corrected",
            betas=(0.9, 0.95),
            clip_grad=3.0,
            scale=(0.2, 1.0),
        ),
    ),
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Autoregressive pre-training on images without labels",
    command="mambar train pretrain_autoregressive data=PATH",
    source="ARM (arXiv 2406.07537): clusters, decoder, augmentation, optimizer; the model is Mamba-R",
    not_published={
        "stages.0.epochs": "400; ARM trains other models",
        "stages.0.batch_size": "1,024; the learning rate is scaled with it",
    },
)
