"""`SegmentationOptions`: type checks, defaults, and the settings of inference and augmentation."""

import pytest

from mambar.errors import MambarError, RecipeError
from mambar.segmentation.options import SegmentationOptions


def test_options_reach_inference_and_augmentation():
    options = SegmentationOptions.of(
        {"eval_crop": 64, "eval_stride": 32, "eval_scales": [0.5, 1], "eval_flip": True, "resize": None}
    )
    inference = options.inference()
    assert (inference.crop, inference.stride, inference.flip) == (64, 32, True)
    assert inference.scales == (0.5, 1.0) and inference.resize is None
    assert SegmentationOptions.of({"eval_crop": None}).inference().crop is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chanels": 3}, "task_options.chanels: segmentation has no such option; did you mean 'channels'"),
        ({"aux_layer": 4}, "aux_layer=4 is not allowed; it takes 0 to 3"),
        ({"dice_weight": -1.0}, "dice_weight=-1.0"),
        ({"class_weights": [1.0, -1.0]}, "must be 0 or more"),
        ({"channels": "many"}, "channels='many' is not allowed; it takes a whole number"),
        ({"eval_crop": 64, "eval_stride": 65}, "stride=65 must be from 1 to crop=64"),
    ],
)
def test_bad_options_are_one_line(given, message):
    with pytest.raises(MambarError, match=message):
        SegmentationOptions.of(given)


def test_published_settings_are_the_defaults():
    options = SegmentationOptions()
    assert (options.channels, options.aux_channels, options.aux_weight) == (512, 256, 0.4)
    assert (options.eval_crop, options.eval_stride, options.resize, options.max_class_fraction) == (
        512,
        341,
        (2048, 512),
        0.75,
    )


def test_names_of_version_0_1_are_translated():
    with pytest.warns(DeprecationWarning, match="window= is now eval_crop="):
        options = SegmentationOptions.of({"window": 64, "eval_stride": 32})
    assert options == SegmentationOptions(eval_crop=64, eval_stride=32)
    with pytest.raises(MambarError, match="window and eval_crop were both given"):
        SegmentationOptions.of({"window": 64, "eval_crop": 32})


@pytest.mark.wrong_shapes
def test_a_wrong_type_is_refused():
    with pytest.raises(RecipeError):
        SegmentationOptions(dropout="much")  # type: ignore[arg-type]
