"""Masked pre-training on images without labels, then fine-tuning.

mambar train pretrain_masked data=PATH --out runs/pretrained
mambar train finetune data=PATH start_from=runs/pretrained layer_decay=0.65 mixup=0.8 cutmix=1.0
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.recipes.pretrain_autoregressive import RECIPE as AUTOREGRESSIVE
from mambar.training.recipe import Recipe

RECIPE = Recipe(
    name="pretrain_masked",
    model="mambar_base_patch16_224",
    data="images",
    task="masked",
    # The optimizer and augmentation of ARM are those of MAE, which does not clip gradients.
    stages=(dataclasses.replace(AUTOREGRESSIVE.stages[0], img_size=224, batch_size=4096, epochs=800, clip_grad=None),),
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Masked pre-training on images without labels",
    command="mambar train pretrain_masked data=PATH",
    source="MAE (arXiv 2111.06377): masking ratio, target, augmentation, optimizer; mask tokens as in SimMIM, "
    "decoder of pretrain_autoregressive",
    not_published={"model": "Mamba-R; MAE and MAP train other models"},
)
