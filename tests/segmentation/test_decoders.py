"""What each decoder makes of the tapped layers: UPerNet a logit every 4 pixels, the linear one every patch."""

import pytest
import torch

from mambar.segmentation.decoders import DECODERS, LinearDecoder, SegmenterConfig

CONFIG = SegmenterConfig(num_classes=5, channels=8, dropout=0.0)


@pytest.mark.parametrize(("name", "patch_size", "factor"), [("upernet", 8, 2), ("upernet", 16, 4), ("linear", 8, 1)])
def test_every_decoder_gives_logits_of_its_own_size(name, patch_size, factor):
    layers = DECODERS[name].num_layers
    decoder = DECODERS[name](CONFIG, 12, patch_size, num_layers=layers).eval()
    assert decoder.classifier.out_channels == 5
    logits = decoder([torch.randn(2, 12, 4, 6) for _ in range(layers)])
    assert logits.shape == (2, 5, 4 * factor, 6 * factor)


def test_the_linear_decoder_is_one_matrix_on_each_patch():
    decoder = LinearDecoder(CONFIG, 3, 8, num_layers=2)
    maps = [torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)]
    token = torch.cat([maps[0][0, :, 1, 0], maps[1][0, :, 1, 0]])
    weight = decoder.classifier.weight[:, :, 0, 0]
    assert torch.allclose(decoder(maps)[0, :, 1, 0], weight @ token, atol=1e-6)
    # No other patch is seen.
    maps[0][0, :, 0, 0] += 1
    assert torch.allclose(decoder(maps)[0, :, 1, 0], weight @ token, atol=1e-6)
