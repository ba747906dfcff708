"""The helping head: it reads a tapped layer, helps in training, and leaves no trace in the segmenter."""

import pytest
import torch

from mambar.segmentation import Segmenter
from mambar.segmentation.training_model import SegmenterInTraining


@pytest.fixture
def segmenter(backbone):
    return Segmenter(backbone, num_classes=3, channels=8)


def test_logits_of_both_heads_at_the_size_of_the_image(segmenter):
    model = SegmenterInTraining(segmenter, auxiliary=4, layer=2, dropout=0.0).eval()
    images = torch.randn(2, 3, 40, 24)
    logits, helping = model(images)
    assert logits.shape == helping.shape == (2, 3, 40, 24)
    assert torch.equal(logits, segmenter(images))
    alone = SegmenterInTraining(segmenter, auxiliary=0, layer=2, dropout=0.0).eval()
    assert alone.auxiliary is None and len(alone(images)) == 1


def test_the_helping_head_reads_the_named_layer(segmenter):
    model = SegmenterInTraining(segmenter, auxiliary=4, layer=1, dropout=0.0)
    model(torch.randn(1, 3, 32, 32))[1].sum().backward()
    reached = [block.weight.grad is not None for block in segmenter.backbone.blocks]
    # Layers 0 and 1 of four are below it.
    assert reached == [True, True, False, False]
    assert SegmenterInTraining(segmenter, auxiliary=4, layer=99, dropout=0.0).layer == len(segmenter.layers) - 1


def test_classifiers_start_at_the_shares(segmenter):
    model = SegmenterInTraining(segmenter, auxiliary=4, layer=2, dropout=0.0)
    shares = torch.tensor([0.7, 0.2, 0.1])
    model.init_bias(shares)
    for head in (segmenter.decoder, model.auxiliary):
        assert torch.allclose(head.classifier.bias.softmax(0), shares)
