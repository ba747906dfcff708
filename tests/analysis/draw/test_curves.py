import math

import pytest

from mambar.analysis.draw.curves import collect_curves, draw_curves, draw_family, families, family, running_mean
from mambar.analysis.draw.plots import png


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("loss", "Loss"),
        ("accuracy", "Accuracy"),
        ("top1", "Accuracy"),
        ("lr", "Learning rate"),
        ("box_ap", "Average precision"),
        ("mask_ap50", "Average precision"),
        ("box_ap75", None),
        ("mask_ap_small", None),
        ("grad_norm", "Gradient norm"),
        ("images_per_second", "Images per second"),
        ("skipped", None),
        ("stage", None),
        ("kind", None),
    ],
)
def test_families(metric, expected):
    assert family(metric) == expected


ROWS = [
    {"kind": "training", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1},
    {"kind": "training", "step": 2, "epoch": 0, "loss": None, "lr": 0.1},
    {"kind": "training", "step": 3, "epoch": 0, "loss": math.nan, "lr": 0.1},
    {"kind": "evaluation", "step": 3, "val_loss": 1.5, "top1": 0.5},
]


def test_training_and_validation_are_two_curves_over_steps():
    curves = {(curve.metric, curve.family): curve for curve in collect_curves({"run": ROWS})}
    assert curves["training loss", "Loss"].y == (2.0,)
    assert curves["validation loss", "Loss"].x == (3.0,)
    assert curves["validation top1", "Accuracy"].y == (0.5,)
    assert curves["lr", "Learning rate"].x == (1.0, 2.0, 3.0)
    assert families(list(curves.values())) == ["Loss", "Accuracy", "Learning rate"]


def test_rows_without_steps_go_by_epoch_or_number():
    assert collect_curves({"r": [{"epoch": 4, "loss": 1.0}]})[0].axis == "epoch"
    (curve,) = collect_curves({"r": [{"loss": 1.0}, {"loss": 2.0}]})
    assert (curve.axis, curve.x) == ("row", (0.0, 1.0))


def test_running_mean_by_hand():
    assert running_mean([1.0, 2.0, 6.0, 3.0], 1) == [1.5, 3.0, 11 / 3, 4.5]
    assert running_mean([1.0, 5.0], 0) == [1.0, 5.0]


def test_many_points_and_none_are_drawn():
    many = [{"step": step, "loss": 1.0 + step % 7} for step in range(200)]
    assert png(draw_family(collect_curves({"a": many, "b": many}), "Loss")).startswith(b"\x89PNG")
    assert png(draw_curves([], title="empty")).startswith(b"\x89PNG")
