"""Targets of tasks that predict pixels, and a decoder that reads several layers."""

import torch

import mambar
from mambar.pretraining.pixel_decoder import DecoderOptions, PixelDecoder, normalized_pixels


def test_targets_are_the_normalized_pixels_of_each_patch():
    images = torch.randn(2, 3, 16, 16)
    target = normalized_pixels(images, 2)
    assert target.shape == (2, 64, 12)
    for number in (0, 7, 8, 63):
        row, col = 2 * (number // 8), 2 * (number % 8)
        patch = images[1, :, row : row + 2, col : col + 2].flatten()
        expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        torch.testing.assert_close(target[1, number], expected)


def test_every_layer_of_the_decoder_reads_another_block():
    torch.manual_seed(0)
    fields = {"patch_size": 4, "embed_dim": 16, "depth": 5, "num_registers": 1, "register_reduction": 1, "img_size": 8}
    backbone = mambar.create_model("mambar_tiny_patch16_224", **fields, num_classes=0)
    decoder = PixelDecoder(backbone, DecoderOptions(decoder_dim=16, decoder_heads=2, decoder_depth=3))
    assert decoder.layers == [0, 2, 4]
    tokens, grid = backbone.embed(torch.randn(1, 3, 8, 8))
    queries = decoder.positions(grid)[None, :3]
    predicted = decoder(backbone, tokens, grid, queries)
    assert predicted.shape == (1, 3, 48)
    # A query is a position: the same one gives the same pixels, wherever it stands among the queries.
    torch.testing.assert_close(decoder(backbone, tokens, grid, queries.flip(1)).flip(1), predicted)
