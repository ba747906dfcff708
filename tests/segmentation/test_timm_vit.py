"""The same decoder on one of timm's vision transformers."""

import pytest
import torch

from mambar.models.timm_vit import TimmViT, create_timm_vit
from mambar.segmentation import Inference, Segmenter, load_segmenter, save_segmenter


@pytest.mark.slow
@pytest.mark.parametrize("broadcast", [False, True])
def test_vit_under_the_decoder(broadcast):
    import timm

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}
    vit = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, reg_tokens=2, **options)
    model = Segmenter(TimmViT(vit), num_classes=5, channels=8, broadcast=broadcast)
    logits = model(torch.randn(2, 3, 40, 27))
    assert logits.shape == (2, 5, 40, 27)
    logits.square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.model.head.weight" in frozen and not any("blocks" in name for name in frozen)


@pytest.mark.slow
def test_segmenter_on_a_vit_is_saved_and_loaded(tmp_path):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 0}
    model = Segmenter(create_timm_vit("vit_tiny_patch16_224", **arguments), num_classes=2, channels=8).eval()
    model.classes, model.palette = ("a", "b"), ((1, 2, 3), (4, 5, 6))
    save_segmenter(tmp_path, model, name=None, inference=Inference(), force=False)
    images = torch.randn(1, 3, 40, 27)
    assert torch.equal(load_segmenter(tmp_path)(images), model(images))
