import pytest
import torch

from mambar.analysis.measure.ridge import fit_ridge


def data(samples=40, dim=6, targets=2):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(samples, dim, generator=generator, dtype=torch.float64) * torch.arange(1.0, dim + 1)
    weight = torch.randn(dim, targets, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, targets, generator=generator, dtype=torch.float64)
    return features + 5, features @ weight + noise + 3


def solved(features, targets, strength):
    """The normal equations, written down directly."""
    mean, scale, offset = features.mean(0), features.std(0, correction=0), targets.mean(0)
    x = (features - mean) / scale
    gram = x.T @ x + strength * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ (targets - offset))
    return lambda others: (others - mean) / scale @ weight + offset


@pytest.mark.parametrize("samples", [4, 40])
@pytest.mark.parametrize("strength", [1e-4, 0.3])
def test_equals_the_normal_equations(samples, strength):
    features, targets = data(samples)
    others, _ = data(7)
    found = fit_ridge(features, targets, strengths=(strength,))
    assert torch.allclose(found.predict(others), solved(features, targets, strength)(others), rtol=1e-7, atol=1e-7)


def test_leave_one_out_scores_are_those_of_refitting_with_the_same_scaling():
    # The closed form keeps the scaling of all samples; with it fixed, leaving one out and refitting is the same.
    features, targets = data(20)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    seen = {}

    def remember(held_out):
        seen["held_out"] = held_out
        return torch.tensor(0.0)

    strength = 0.05
    fit_ridge(features, targets, strengths=(strength,), score=remember)
    for sample in range(20):
        rest = [index for index in range(20) if index != sample]
        ones = torch.ones(19, 1, dtype=torch.float64)
        x = torch.cat([features[rest], ones], dim=1)
        penalty = strength * 20 * torch.eye(x.shape[1], dtype=x.dtype)
        penalty[-1, -1] = 0
        weight = torch.linalg.solve(x.T @ x + penalty, x.T @ targets[rest])
        predicted = torch.cat([features[sample], torch.ones(1, dtype=torch.float64)]) @ weight
        assert torch.allclose(seen["held_out"][sample], predicted, rtol=1e-8, atol=1e-8)


def test_noise_wants_more_penalty_than_signal():
    features, targets = data(60)
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert fit_ridge(features, noise).strength > fit_ridge(features, targets).strength


def test_constant_and_huge_features_do_no_harm():
    features, targets = data()
    plain = fit_ridge(features, targets, strengths=(0.01,)).predict(features)
    padded = torch.cat([features * 1e6, torch.full((40, 1), 0.1, dtype=torch.float64)], dim=1)
    assert torch.allclose(fit_ridge(padded, targets, strengths=(0.01,)).predict(padded), plain)
