import torch
import torch.nn.functional as F

from mambar.ops import ScanDirection, bidirectional_mix, causal_conv1d, selective_scan


def test_flipping_by_hand_gives_the_same():
    torch.manual_seed(0)
    inner, state, rank = 6, 4, 2

    def direction():
        return ScanDirection(
            conv_weight=torch.randn(inner, 4),
            conv_bias=torch.randn(inner),
            x_proj=torch.randn(rank + 2 * state, inner),
            dt_proj=torch.randn(inner, rank),
            dt_bias=torch.randn(inner),
            A=-torch.rand(inner, state),
            D=torch.randn(inner),
        )

    def one_way(x, z, way):
        u = causal_conv1d(x, way.conv_weight, way.conv_bias)
        low, B, C = F.linear(u, way.x_proj).split([rank, state, state], dim=-1)
        return selective_scan(
            u, F.linear(low, way.dt_proj), way.A, B, C, way.D, z, way.dt_bias, delta_softplus=True, backend="reference"
        )

    xz, forward_params, backward_params = torch.randn(2, 11, 2 * inner), direction(), direction()
    x, z = xz.chunk(2, dim=-1)
    total = one_way(x, z, forward_params) + one_way(x.flip(1), z.flip(1), backward_params).flip(1)
    torch.testing.assert_close(bidirectional_mix(xz, forward_params, backward_params), total / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        bidirectional_mix(xz, forward_params, backward_params, average=False), total, rtol=1e-4, atol=1e-4
    )
