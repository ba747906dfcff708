"""A minimal kernel backend of every op, used instead of real kernels when the interfaces are tested."""

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.causal_conv1d.reference import causal_conv1d
from mambar.ops.selective_scan.reference import selective_scan


class Scan:
    """The scan; saves constants, to check that `backward` gets what `forward` saved."""

    @staticmethod
    def empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state):
        return [u.new_empty((u.shape[0], -(-u.shape[1] // 16), A.shape[1]), dtype=torch.float32), u.new_empty(3)]

    @staticmethod
    def forward(u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse, for_backward):
        assert all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in (u, delta, B, C)) and A.is_contiguous()
        tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
        y, state = selective_scan(*tensors, delta_softplus=delta_softplus, reverse=reverse)
        saved = [t.fill_(7) for t in Scan.empty_saved(*tensors)] if for_backward else []
        return y.contiguous(), state.clone(), saved

    @staticmethod
    def backward(dy, dstate, *rest, delta_softplus, reverse):
        *tensors, saved = rest
        assert len(saved) == 2 and all(bool((t == 7).all()) for t in saved)

        def run(*tensors):
            return selective_scan(*tensors, delta_softplus=delta_softplus, reverse=reverse)

        return _pull_back(run, tensors, (dy, dstate))


class Conv:
    """The convolution."""

    @staticmethod
    def forward(x, weight, bias, *, silu, reverse):
        return causal_conv1d(x, weight, bias, silu=silu, reverse=reverse).contiguous()

    @staticmethod
    def backward(dy, x, weight, bias, *, silu, reverse):
        def run(x, weight, bias):
            return (causal_conv1d(x, weight, bias, silu=silu, reverse=reverse),)

        return _pull_back(run, (x, weight, bias), (dy,))


class Norm:
    """RMS normalisation."""

    @staticmethod
    def forward(x, residual, weight, *, eps, dtype):
        total = x if residual is None else x + residual
        inverse = torch.rsqrt(total.to(weight.dtype).square().mean(-1) + eps)
        normed = (total.to(weight.dtype) * inverse[:, None] * weight).to(dtype)
        return normed, x.new_empty(0) if residual is None else total, inverse

    @staticmethod
    def backward(dnormed, dtotal, total, weight, inverse_rms, *, eps):
        wide = total.to(weight.dtype)
        direction = wide * inverse_rms[:, None]
        dweight = (dnormed.to(weight.dtype) * direction).sum(0)
        inner = dnormed.to(weight.dtype) * weight
        gradient = inverse_rms[:, None] * (inner - direction * (inner * direction).mean(-1, keepdim=True))
        if dtotal is not None:
            gradient = gradient + dtotal
        return gradient.to(total.dtype).contiguous(), dweight


class Mix:
    """The bidirectional mix."""

    @staticmethod
    def empty_saved(xz, forward_params, backward_params):
        return [xz.new_empty(xz.shape)]

    @staticmethod
    def forward(xz, forward_params, backward_params, *, average, for_backward):
        saved = [xz.clone()] if for_backward else []
        return _mix(xz, forward_params, backward_params, average).contiguous(), saved

    @staticmethod
    def backward(dout, xz, forward_params, backward_params, saved, *, average):
        assert torch.equal(saved[0], xz)

        def run(xz, *params):
            return (_mix(xz, ScanDirection(*params[:7]), ScanDirection(*params[7:]), average),)

        dxz, *dparams = _pull_back(run, (xz, *forward_params, *backward_params), (dout,))
        return dxz, ScanDirection(*dparams[:7]), ScanDirection(*dparams[7:])


def _mix(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, average: bool) -> Tensor:
    x, z = xz.chunk(2, dim=-1)
    total = torch.zeros_like(x)
    for params, reverse in ((forward_params, False), (backward_params, True)):
        u = causal_conv1d(x, params.conv_weight, params.conv_bias, silu=True, reverse=reverse)
        dt_rank, d_state = params.sizes
        low_rank, B, C = (u @ params.x_proj.T).split([dt_rank, d_state, d_state], dim=-1)
        tensors = (u, low_rank @ params.dt_proj.T, params.A, B, C, params.D, z, params.dt_bias, None)
        total = total + selective_scan(*tensors, delta_softplus=True, reverse=reverse)[0]
    return total / 2 if average else total


def _pull_back(run, tensors, gradients):
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        outputs = run(*leaves)
        pairs = [(output, g) for output, g in zip(outputs, gradients, strict=True) if g is not None]
        given = [leaf for leaf in leaves if leaf is not None]
        outputs, weights = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, given, weights, allow_unused=True))
    results = []
    for leaf in leaves:
        gradient = None if leaf is None else next(found)
        if leaf is not None and gradient is None:
            gradient = torch.zeros_like(leaf)
        results.append(None if gradient is None else gradient.contiguous().clone())
    return tuple(results)
