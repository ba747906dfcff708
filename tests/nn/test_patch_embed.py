"""Patches, row by row, from any size."""

import logging

import pytest
import torch
from torch import nn

from mambar.errors import InputError
from mambar.nn.patch_embed import PatchEmbed


def test_patches_run_row_by_row_and_the_rest_is_ignored():
    embed = PatchEmbed(4, 3, 8)
    images = torch.randn(2, 3, 10, 13)
    found = embed(images)
    assert found.shape == (2, 6, 8)
    one = embed(images[:, :, 4:8, 8:12])
    torch.testing.assert_close(found[:, 5], one[:, 0])


def test_cropped_pixels_warn_once(caplog):
    embed = PatchEmbed(4, 3, 8)
    with caplog.at_level(logging.WARNING):
        assert embed.grid(torch.zeros(1, 3, 10, 13)) == (2, 3)
        embed(torch.zeros(1, 3, 10, 13))
        embed(torch.zeros(1, 3, 10, 13))
    assert [record.message for record in caplog.records] == [
        "Images of 10x13 pixels are cropped to 8x12, a multiple of patch_size=4."
    ]


def test_an_image_without_a_patch_is_refused():
    with pytest.raises(InputError, match="3x9 pixels holds no patch of 4x4"):
        PatchEmbed(4, 3, 8)(torch.zeros(1, 3, 3, 9))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_product_equals_the_convolution(memory_format):
    embed = PatchEmbed(4, 3, 8).double()
    images = torch.randn(2, 3, 10, 13, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    arguments = (images, *embed.parameters())
    wanted = embed(images)
    found = embed._matmul(images)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), arguments),
        torch.autograd.grad((wanted * weights).sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_no_product_for_another_or_observed_convolution():
    embed = PatchEmbed(4, 3, 8)
    assert embed._is_plain_conv()
    hook = embed.proj.register_forward_hook(lambda *_: None)
    assert not embed._is_plain_conv()
    hook.remove()
    embed.proj = nn.Conv2d(3, 8, kernel_size=4, stride=2)
    assert not embed._is_plain_conv()


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_product():
    embed = PatchEmbed(4, 3, 8)
    images = torch.randn(2, 3, 10, 13)
    found = embed.double().cuda()(images.double().cuda())
    torch.testing.assert_close(found.cpu(), embed.cpu()(images.double()))
