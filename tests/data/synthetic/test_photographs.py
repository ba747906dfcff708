import pytest
import torch

from mambar.data.synthetic.photographs import photographs
from mambar.errors import DataError


def test_there_are_real_photographs():
    found = photographs()
    assert {"astronaut", "chelsea", "coffee", "rocket"} <= set(found)
    for pixels in found.values():
        assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3 and min(pixels.shape[1:]) >= 300


def test_they_are_scikit_images():
    from skimage import data

    found = photographs("chelsea", "rocket")
    assert list(found) == ["chelsea", "rocket"]
    assert (found["chelsea"].permute(1, 2, 0).numpy() == data.chelsea()).all()
    assert (found["rocket"].permute(1, 2, 0).numpy() == data.rocket()).all()


def test_an_unknown_one_is_refused():
    with pytest.raises(DataError, match="'lena' is unknown"):
        photographs("lena")
