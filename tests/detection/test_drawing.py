"""Pictures of objects."""

import numpy as np
import torch

from mambar.data.segmentation.masks import palette
from mambar.detection.drawing import draw_objects


def test_the_first_object_is_on_top():
    """Detections come most probable first: its box and mask are not covered by those of less probable ones."""
    boxes = torch.tensor([[100.0, 100.0, 300.0, 300.0]] * 2)
    masks = [np.zeros((400, 400), dtype=bool) for _ in range(2)]
    for each in masks:
        each[150:250, 150:250] = True
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    drawn = draw_objects(image, boxes, [0, 1], ["a", "b"], masks.__getitem__)
    first, second = (np.array(palette(2)[label]) for label in (0, 1))
    assert drawn.shape == (400, 400, 3) and (drawn[299, 200] == first).all()
    assert abs(drawn[200, 200] - (first / 2 + second / 4)).max() <= 2
