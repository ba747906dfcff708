"""The class is visible outside the boxes only, or inside only; tokens are the mean of their patch."""

from dataclasses import dataclass

import pytest
import torch

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.measure.background_features import background_accuracy
from mambar.data import Preprocessing, Sample
from mambar.errors import InputError


@dataclass
class Boxed:
    """Images of 8 pixels with one box of 4; brightness encodes the class inside or outside of the box."""

    seed: int
    where: str
    box: tuple[int, int, int, int] | None = (2, 2, 6, 6)
    classes = ("dark", "bright")
    name = "boxed"

    def __len__(self):
        return 60

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        noise = torch.randint(0, 2, (1,), generator=generator)
        label = index % 2
        inside, outside = (label, noise) if self.where == "inside" else (noise, label)
        image = torch.full((3, 8, 8), 50 + 150 * int(outside), dtype=torch.uint8)
        image[:, 2:6, 2:6] = 50 + 150 * int(inside)
        return Sample(image, label, targets={} if self.box is None else {"boxes": torch.tensor([self.box]).float()})

    def fingerprint(self):
        return str(self)


@pytest.fixture
def analyzed(fake_model):
    size = Preprocessing(img_size=8, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    return AnalyzedModel(name="fake", model=fake_model, preprocessing=size)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_only_the_patches_that_show_the_class_predict_it(analyzed, where):
    found = background_accuracy(analyzed, Boxed(0, where), Boxed(1, where), batch_size=16)
    other = "inside" if where == "outside" else "outside"
    assert found[where].top1 == 1.0 and found[other].top1 < 0.75
    assert {score.count for score in found.values()} == {60}


def test_data_without_boxes_or_without_background_are_refused(analyzed):
    with pytest.raises(InputError, match="no boxes or masks; use data with them"):
        background_accuracy(analyzed, Boxed(0, "inside", None), Boxed(1, "inside", None))
    with pytest.raises(InputError, match="No train image has patches inside and outside"):
        background_accuracy(analyzed, Boxed(0, "inside", (0, 0, 8, 8)), Boxed(1, "inside"))
