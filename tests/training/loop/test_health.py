import pytest
import torch
from torch import nn

from mambar.training.loop.health import first_non_finite_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.two(torch.relu(self.one(x))).sum()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_a_finite_model_has_no_non_finite_module(net):
    assert first_non_finite_module(net, lambda: net(torch.randn(3, 4))) is None
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_non_finite_parameter_is_named(net):
    with torch.no_grad():
        net.two.weight[0, 1] = float("inf")
    assert first_non_finite_module(net, lambda: net(torch.randn(3, 4))) == "parameter two.weight"


def test_the_first_non_finite_output_is_named(net):
    handle = net.one.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    assert first_non_finite_module(net, lambda: net(torch.randn(3, 4))) == "module one"
    handle.remove()


def test_a_non_finite_loss_and_a_non_finite_gradient_are_distinguished(net):
    assert first_non_finite_module(net, lambda: net(torch.randn(3, 4)) * float("nan")) == "the loss"
    # The derivative of the square root at 0 is infinite, its value is finite.
    assert first_non_finite_module(net, lambda: (net.one.weight * 0).sum().sqrt() + net(torch.zeros(1, 4))) == (
        "gradient of one.weight"
    )


def test_layer_statistics_do_not_change_the_model():
    from mambar.hub import create_model
    from mambar.training.loop.health import layer_statistics

    torch.manual_seed(0)
    model = create_model(
        "mambar_tiny_patch16_224", img_size=16, num_classes=3, patch_size=4, embed_dim=16, depth=3, drop_path_rate=0.5
    ).train()
    images = torch.randn(4, 3, 16, 16)
    state = torch.get_rng_state()
    found = layer_statistics(model, images)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert {len(values) for values in found.values()} == {3}
    expected = [tokens.patches.norm(dim=-1).mean() for tokens in model.eval().tokens(images)]
    assert found["norm_mean"] == pytest.approx([float(value) for value in expected], rel=1e-5)
    assert all(0 <= share <= 1 for share in found["outlier_share"])
    assert all(1e-4 < low < high < 0.2 for low, high in zip(found["dt_min"], found["dt_max"], strict=True))
    assert found["A_min"] == pytest.approx([-16.0] * 3) and found["A_max"] == pytest.approx([-1.0] * 3)
