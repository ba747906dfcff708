import torch
import torch.nn.functional as F

from mambar.ops import ScanDirection, bidirectional_mix, causal_conv1d, selective_scan


def test_flipping_by_hand_gives_the_same():
    torch.manual_seed(0)
    d_inner, d_state, dt_rank = 6, 4, 2

    def direction():
        return ScanDirection(
            conv_weight=torch.randn(d_inner, 4),
            conv_bias=torch.randn(d_inner),
            x_proj=torch.randn(dt_rank + 2 * d_state, d_inner),
            dt_proj=torch.randn(d_inner, dt_rank),
            dt_bias=torch.randn(d_inner),
            A=-torch.rand(d_inner, d_state),
            D=torch.randn(d_inner),
        )

    def one_direction(x, z, params):
        u = causal_conv1d(x, params.conv_weight, params.conv_bias)
        low_rank, B, C = F.linear(u, params.x_proj).split([dt_rank, d_state, d_state], dim=-1)
        return selective_scan(
            u,
            F.linear(low_rank, params.dt_proj),
            params.A,
            B,
            C,
            params.D,
            z,
            params.dt_bias,
            delta_softplus=True,
            backend="reference",
        )

    xz, forward_params, backward_params = torch.randn(2, 11, 2 * d_inner), direction(), direction()
    x, z = xz.chunk(2, dim=-1)
    total = one_direction(x, z, forward_params) + one_direction(x.flip(1), z.flip(1), backward_params).flip(1)
    torch.testing.assert_close(bidirectional_mix(xz, forward_params, backward_params), total / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        bidirectional_mix(xz, forward_params, backward_params, average=False), total, rtol=1e-4, atol=1e-4
    )
