import torch
import torch.nn.functional as F

from mambar.ops import rms_norm


def test_equals_pytorchs_rms_norm():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 48) * 1e-3, torch.randn(48)
    torch.testing.assert_close(rms_norm(x, weight, backend="reference"), F.rms_norm(x, (48,), weight, 1e-5))
