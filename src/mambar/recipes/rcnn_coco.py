"""Faster R-CNN and Mask R-CNN on Mamba-R for COCO, or for your own data in COCO's format.

    mambar train fasterrcnn_coco data=coco        train2017/, val2017/, annotations/instances_*2017.json
    mambar train maskrcnn_coco data=coco          with a mask for each box

Torchvision's heads and losses, short side 800 and long side at most 1,333 pixels, in training 640 to 800 pixels. 12
epochs are the "1x" schedule of torchvision and Detectron; learning rate, decays and drop path are those of ViTDet's
plain backbones (arXiv 2203.16527), for a batch of 16. The backbone starts from the released weights, downloaded once.
"""

import dataclasses

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="fasterrcnn_coco",
    model="mambar_base_patch16_224",
    task="detection",
    task_options={"train_sizes": [640, 672, 704, 736, 768], "max_size": 1333},
    data="data/coco",
    stages=(
        Stage(
            img_size=800,
            epochs=12,
            batch_size=16,
            lr=1e-4,
            min_lr=0.0,
            warmup_lr=1e-7,
            warmup_steps=250,
            weight_decay=0.1,
            decay_groups="corrected",
            layer_decay=0.7,
            clip_grad=1.0,
            drop_path_rate=0.1,
            start_from="mambar_base_patch16_224",
        ),
    ),
    grad_checkpointing=True,
    save_every=1_000,
    log_every=50,
)

MASK_RECIPE = dataclasses.replace(RECIPE, name="maskrcnn_coco", task_options={**RECIPE.task_options, "masks": True})

_OURS = {
    "task_options.train_sizes": "Detectron2's range for this short side",
    "stages.0.epochs": "the 1x schedule; ViTDet trains 100 epochs with larger crops",
    "stages.0.layer_decay": "ViTDet's for a base size",
}

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Faster R-CNN on Mamba-R Base, COCO or your own boxes",
    source="ours, after torchvision's references and ViTDet (arXiv 2203.16527)",
    command="mambar train fasterrcnn_coco data=coco",
    not_published=_OURS,
)
MASK_ENTRY = RecipeEntry(
    recipe=MASK_RECIPE,
    title="Mask R-CNN on Mamba-R Base, COCO or your own masks",
    source="ours, after torchvision's references and ViTDet (arXiv 2203.16527)",
    command="mambar train maskrcnn_coco data=coco",
    not_published=_OURS,
)
