"""Instance segmentation of your own images with a small Mask R-CNN, from random weights.

    mambar train maskrcnn data=PATH
    mambar train maskrcnn data=PATH task_options.masks=false          boxes only: Faster R-CNN
    mambar train maskrcnn data=PATH epochs=100 img_size=256 task_options.max_size=448

PATH has COCO annotations, or images/ and masks/, whose connected regions are objects. With a GPU, `maskrcnn_coco
data=PATH` starts from the released weights.
"""

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="maskrcnn",
    model="mambar_tiny_patch16_224",
    config={"depth": 6, "embed_dim": 96, "patch_size": 8, "num_registers": 4},
    task="detection",
    task_options={
        "masks": True,
        "channels": 48,
        "head_dim": 192,
        "num_proposals": 150,
        "rois_per_image": 64,
        "train_sizes": [80, 88, 104, 112],
        "max_size": 160,
    },
    data="images",
    stages=(
        Stage(
            img_size=96,
            epochs=30,
            batch_size=8,
            lr=1e-3,
            min_lr=0.0,
            warmup_lr=1e-6,
            warmup_epochs=1.0,
            weight_decay=0.01,
            decay_groups="corrected",
            clip_grad=1.0,
            drop_path_rate=0.05,
        ),
    ),
    eval_every=10,
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Mask R-CNN on a folder of your own images and objects",
    command="mambar train maskrcnn data=PATH",
    expected="depends on the images",
    not_published={"stages.0.img_size": "short side 96, for CPUs; raise it, task_options.train_sizes and max_size"},
)
