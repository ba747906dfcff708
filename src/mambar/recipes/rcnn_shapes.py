"""Detection and instance segmentation of procedural scenes: four outlines on plain textured backgrounds, no download.

    mambar train fasterrcnn_shapes                boxes; minutes on two CPU cores
    mambar train maskrcnn_shapes                  boxes and masks
    mambar pack shapes scenes --coco              the same scenes as COCO files, for other tools

Torchvision's heads with 32 channels on the network of `upernet_shapes`, trained in the same way.
"""

import dataclasses

from mambar.recipes import upernet_shapes
from mambar.recipes.entry import RecipeEntry

# Objects have sides of 8 to 40 pixels; anchors of 12, 24, 48, ….
OPTIONS = {
    "channels": 32,
    "head_dim": 128,
    "anchor_scale": 3.0,
    "num_proposals": 100,
    "rois_per_image": 32,
    "max_size": 96,
}

RECIPE = dataclasses.replace(
    upernet_shapes.RECIPE,
    name="fasterrcnn_shapes",
    task="detection",
    data_options={"img_size": 64, "num_images": 3000, "val_limit": 200, "num_classes": 4},
    task_options=OPTIONS,
    stages=(dataclasses.replace(upernet_shapes.RECIPE.stages[0], img_size=64, epochs=3, batch_size=8, lr=1.5e-3),),
)

MASK_RECIPE = dataclasses.replace(RECIPE, name="maskrcnn_shapes", task_options={**OPTIONS, "masks": True})

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="Faster R-CNN on Mamba-R, procedural scenes",
    command="mambar train fasterrcnn_shapes",
    expected="AP50 80.9 % on 200 held-out scenes (seed 0), 82.8 % on 1,000 others; 223 s of CPU time, one thread",
)
MASK_ENTRY = RecipeEntry(
    recipe=MASK_RECIPE,
    title="Mask R-CNN on Mamba-R, procedural scenes",
    command="mambar train maskrcnn_shapes",
    expected="AP50 83.6 % of boxes, 82.9 % of masks on 200 held-out scenes (seed 0), 349 s of CPU time, one thread",
)
