import torch
from torch import nn

from mambar.training.loop.ema import Ema


def test_the_average_follows_the_weights():
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update()
    assert torch.allclose(ema.model.weight, 0.9 * start + 0.1 * model.weight)
    ema.update()
    assert torch.allclose(ema.model.weight, model.weight - 0.81, atol=1e-6)


def test_buffers_are_copied_and_the_average_takes_no_gradient():
    model = nn.BatchNorm1d(3)
    ema = Ema(model, 0.9)
    model(torch.randn(8, 3))
    ema.update()
    assert torch.equal(ema.model.running_mean, model.running_mean)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not ema.model.training


def test_the_average_does_not_share_memory_with_the_model():
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.5)
    stored = {name: value.clone() for name, value in ema.state().items()}
    with torch.no_grad():
        model.weight.zero_()
    ema.update()
    ema.load(stored)
    assert torch.equal(ema.model.weight, stored["weight"])
