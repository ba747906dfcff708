import pytest
import torch

from mambar.analysis import register_norms, token_norms
from mambar.errors import InputError


@pytest.mark.parametrize(("tensor", "scale"), [("residual", 1.0), ("mixer", 0.5), ("normed", 0.1)])
def test_norms_of_known_tokens(fake_model, tensor, scale):
    images = torch.arange(24.0).reshape(1, 1, 4, 6)
    means = torch.tensor([[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])
    norms = token_norms(fake_model, images, [0, 2], tensor=tensor)
    assert norms.shape == (2, 1, 2, 3)
    assert torch.allclose(norms[0, 0], 5 * scale * means) and torch.allclose(norms[1, 0], 15 * scale * means)
    assert torch.allclose(register_norms(fake_model, images, [-1], tensor=tensor), 3 * scale * torch.tensor([1.0, 2.0]))


def test_all_layers_without_gradients_and_mode_kept(fake_model):
    fake_model.train()
    norms = token_norms(fake_model, torch.ones(2, 1, 4, 4, requires_grad=True))
    assert norms.shape == (3, 2, 2, 2) and not norms.requires_grad and fake_model.training


def test_a_layer_beyond_is_refused(fake_model):
    with pytest.raises(InputError, match="layers 0 to 2"):
        token_norms(fake_model, torch.ones(1, 1, 4, 4), [3])
