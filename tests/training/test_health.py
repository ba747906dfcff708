import pytest
import torch
from torch import nn

from mambar.training.health import first_bad_module


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


def test_a_healthy_model_has_no_culprit(net):
    assert first_bad_module(net, lambda: net(torch.randn(3, 4))) is None
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_bad_parameter_is_named(net):
    with torch.no_grad():
        net.two.weight[0, 1] = float("inf")
    assert first_bad_module(net, lambda: net(torch.randn(3, 4))) == "parameter two.weight"


def test_the_first_bad_output_is_named(net):
    handle = net.one.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    assert first_bad_module(net, lambda: net(torch.randn(3, 4))) == "module one"
    handle.remove()


def test_a_bad_loss_and_a_bad_gradient_are_told_apart(net):
    assert first_bad_module(net, lambda: net(torch.randn(3, 4)) * float("nan")) == "the loss"
    # The square root's slope at 0 is infinite, its value is not.
    assert first_bad_module(net, lambda: (net.one.weight * 0).sum().sqrt() + net(torch.zeros(1, 4))) == (
        "gradient of one.weight"
    )
