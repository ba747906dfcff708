"""The options of a segmentation task: typed, checked, and handed to the parts that they are of."""

import pytest

from mambar.errors import MambarError, RecipeError
from mambar.segmentation.options import SegmentationOptions


def test_options_reach_inference_and_augmentation():
    options = SegmentationOptions.of({"window": 64, "stride": 32, "scales": [0.5, 1], "mirrored": True, "resize": None})
    inference = options.inference()
    assert (inference.crop, inference.stride, inference.flip) == (64, 32, True)
    assert inference.scales == (0.5, 1.0) and inference.resize is None
    assert SegmentationOptions.of({"window": None}).inference().crop is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chanels": 3}, "task_options.chanels: segmentation has no such option; did you mean 'channels'"),
        ({"auxiliary_layer": 4}, "auxiliary_layer=4 is not allowed; it takes 0 to 3"),
        ({"dice": -1.0}, "dice=-1.0"),
        ({"class_weights": [1.0, -1.0]}, "must be 0 or more"),
        ({"channels": "many"}, "channels='many' is not allowed; it takes a whole number"),
        ({"window": 64, "stride": 65}, "stride=65 must lie between 1 and crop=64"),
    ],
)
def test_bad_options_are_one_line(given, message):
    with pytest.raises(MambarError, match=message):
        SegmentationOptions.of(given)


def test_published_settings_are_the_defaults():
    options = SegmentationOptions()
    assert (options.channels, options.auxiliary, options.auxiliary_weight) == (512, 256, 0.4)
    assert (options.window, options.stride, options.resize, options.most_of_one) == (512, 341, (2048, 512), 0.75)


@pytest.mark.wrong_shapes
def test_a_wrong_type_is_refused():
    with pytest.raises(RecipeError):
        SegmentationOptions(dropout="much")  # type: ignore[arg-type]
