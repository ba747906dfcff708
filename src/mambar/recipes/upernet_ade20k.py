"""UPerNet on Mamba-R for ADE20K (SceneParse150): 160,000 iterations of 16 crops of 512 pixels.

    mambar train upernet_ade20k data=ADEChallengeData2016           Base; the folder or the downloaded .zip
    mambar train upernet_ade20k_small data=…
    mambar train upernet_ade20k_large data=…
    mambar train probe_ade20k data=…                                frozen backbone, one linear layer

From a co-author's reply in the official repository: AdamW, weight decay 0.01, batch 16, rate 6e-5, 1,500
iterations of linear warm-up, then linear decay, 160 k iterations, no multi-scale test. From ShuffleMamba's public
configurations for Mamba-Reg: head of 512 channels, auxiliary head of 256 (weight 0.4), layers 5/11/17/23 (Large
11/23/35/47), drop path 0.2 (Large 0.3, rate 3e-5), windows of 512 every 341 pixels, no decay on positions, registers,
norms, A_log and D. The backbone starts from the released weights, which are downloaded once.
"""

import dataclasses
from typing import Any, Final

from mambar.recipes.entry import RecipeEntry
from mambar.training.recipe import Recipe, Stage

STAGE: Final = Stage(
    name="segment",
    img_size=512,
    # 1,263 iterations each; max_steps ends the last epoch early.
    epochs=127,
    max_steps=160_000,
    batch_size=16,
    lr=6e-5,
    min_lr=0.0,
    warmup_lr=6e-11,
    warmup_steps=1_500,
    schedule="linear",
    weight_decay=0.01,
    decay_groups="corrected",
    drop_path_rate=0.2,
    hflip=0.5,
    start_from="mambar_base_patch16_224",
)

OPTIONS: Final = {
    "channels": 512,
    "norm": "group",
    "init_class_bias": False,
    "aux_channels": 256,
    "aux_weight": 0.4,
    "resize": [2048, 512],
    "ratio": [0.5, 2.0],
    "max_class_fraction": 0.75,
    "distort": True,
    "eval_crop": 512,
    "eval_stride": 341,
}

RECIPE = Recipe(
    name="upernet_ade20k",
    model="mambar_base_patch16_224",
    task="segmentation",
    task_options=OPTIONS,
    data="data/ADEChallengeData2016",
    stages=(STAGE,),
    # Validation takes 2,000 images of their own size: about every 16,000 iterations.
    eval_every=13,
    save_every=2_000,
    log_every=50,
)


def _sized(size: str, **changes: Any) -> Recipe:
    """The recipe for another size, with changed fields of its stage."""
    model = f"mambar_{size}_patch16_224"
    stage = dataclasses.replace(STAGE, start_from=model, **changes)
    return dataclasses.replace(RECIPE, name=f"upernet_ade20k_{size}", model=model, stages=(stage,))


SMALL_RECIPE = _sized("small")
LARGE_RECIPE = _sized("large", lr=3e-5, drop_path_rate=0.3)
PROBE_RECIPE = dataclasses.replace(
    RECIPE,
    name="probe_ade20k",
    task_options={**OPTIONS, "decoder": "linear", "aux_channels": 0},
    stages=(
        dataclasses.replace(STAGE, freeze_backbone=True, drop_path_rate=0.0, lr=1e-3, epochs=32, max_steps=40_000),
    ),
)

_OURS: Final = {
    "stages.0.hflip": "the published text says 'standard augmentation'; one half is mmsegmentation's default",
    "task_options.norm": "published: batch normalization over all GPUs; here group normalization, whose result does "
    "not depend on how a batch is divided into shards, processes and micro-batches",
    "save_every": "ours",
}

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="UPerNet on Mamba-R Base, ADE20K",
    source="paper v2; a reply in github.com/wangf3014/Mamba-Reg; ShuffleMamba's configurations for Mamba-Reg",
    command="mambar train upernet_ade20k data=ADEChallengeData2016",
    expected="paper: 47.7 mIoU; ours: not run",
    not_published=_OURS,
)

SMALL_ENTRY = RecipeEntry(
    recipe=SMALL_RECIPE,
    title="UPerNet on Mamba-R Small, ADE20K",
    source="as upernet_ade20k; rate and drop path of Base, as Small's are not published",
    command="mambar train upernet_ade20k_small data=ADEChallengeData2016",
    expected="paper: 45.3 mIoU (recalled; Vim Small + 0.4); ours: not run",
    not_published={"stages.0.drop_path_rate": "Base's", "stages.0.lr": "Base's"},
)

LARGE_ENTRY = RecipeEntry(
    recipe=LARGE_RECIPE,
    title="UPerNet on Mamba-R Large, ADE20K",
    source="as upernet_ade20k; layers, rate and drop path from ShuffleMamba's configuration",
    command="mambar train upernet_ade20k_large data=ADEChallengeData2016",
    expected="paper: 49.1 mIoU; ours: not run",
)

PROBE_ENTRY = RecipeEntry(
    recipe=PROBE_RECIPE,
    title="Linear probe of frozen Mamba-R Base features, ADE20K",
    source="ours, after the linear probes of DINOv2",
    command="mambar train probe_ade20k data=ADEChallengeData2016",
)
