import torch

from mambar.data.boxed_images import object_boxes, object_mask
from mambar.data.dataset import Sample

IMAGE = torch.zeros(3, 6, 8, dtype=torch.uint8)


def test_mask_is_the_union_of_the_boxes():
    mask = object_mask(Sample(IMAGE, 0, targets={"boxes": torch.tensor([[1.0, 2, 4, 3], [3, 2, 9, 6]])}))
    expected = torch.zeros(6, 8, dtype=torch.uint8)
    expected[2:3, 1:4] = 1
    expected[2:6, 3:8] = 1
    assert torch.equal(mask, expected)


def test_boxes_and_mask_stand_for_each_other():
    boxes = torch.tensor([[1.0, 2, 4, 5]])
    boxed = Sample(IMAGE, 0, targets={"boxes": boxes})
    masked = Sample(IMAGE, 0, 7 * object_mask(boxed))
    assert torch.equal(object_mask(boxed), (masked.mask > 0).byte())
    assert torch.equal(object_boxes(masked), boxes) and object_boxes(boxed) is boxes
    assert object_mask(masked) is masked.mask
    assert object_boxes(Sample(IMAGE, 0, 0 * masked.mask)).shape == (0, 4)


def test_a_plain_sample_has_neither():
    assert object_mask(Sample(IMAGE, 0)) is None and object_boxes(Sample(IMAGE, 0)).shape == (0, 4)
