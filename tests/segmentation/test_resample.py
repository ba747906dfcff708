"""Two matrix products equal PyTorch's resizing and pooling."""

import pytest
import torch
from torch.nn import functional

from mambar.segmentation.resample import pooled, resized

SIZES = [(1, 1), (1, 5), (4, 4), (7, 3), (16, 33)]


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("new", SIZES)
def test_resized_equals_bilinear_interpolation(old, new):
    maps = torch.randn(2, 3, *old, dtype=torch.float64, requires_grad=True)
    ours = resized(maps, new)
    theirs = functional.interpolate(maps, size=new, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    weight = torch.randn_like(ours)
    (mine,) = torch.autograd.grad((ours * weight).sum(), maps, retain_graph=True)
    (other,) = torch.autograd.grad((theirs * weight).sum(), maps)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_pooled_equals_adaptive_pooling(old, cells):
    maps = torch.randn(2, 3, *old, dtype=torch.float64)
    torch.testing.assert_close(pooled(maps, cells), functional.adaptive_avg_pool2d(maps, cells), rtol=0, atol=1e-9)


def test_half_precision_is_rounded_once():
    maps = torch.randn(1, 2, 5, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = resized(maps, (20, 20))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, resized(maps.float(), (20, 20)).bfloat16(), rtol=0, atol=0)
