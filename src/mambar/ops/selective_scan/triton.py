"""The scan in Triton, for any GPU and any number of states: a program holds [channels, states] and loops over time.

The backward first scans forward and saves the state every `STEPS` positions. It then processes these chunks from the
last to the first: forward again, saving each state, and in reverse.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambar.ops.triton_launch import run

CHANNELS = 32
STEPS = 16


@triton.jit
def _softplus(x):
    """log(1 + e^x) to seven digits, also for small values; log(1 + e) is a polynomial in e = e^-|x|."""
    e = tl.exp2(-1.4426950408889634 * tl.abs(x))
    series = e * 0.0052326927 - 0.0295052325
    series = e * series + 0.0782259417
    series = e * series - 0.136632449
    series = e * series + 0.191060064
    series = e * series - 0.248429821
    series = e * series + 0.333190968
    series = e * series - 0.499994931
    series = e * series + 0.99999997
    # NaN propagates through e.
    return tl.where(x > 0, x, 0.0) + e * series


@triton.jit
def _softplus_derivative(d):
    """The derivative of softplus at the point where its value is d: 1 - e^-d, accurate for small d."""
    small = d * (1.0 + d * (-0.5 + d * (1.0 / 6 + d * (-1.0 / 24 + d * (1.0 / 120)))))
    return tl.where(d < 0.1, small, 1.0 - tl.exp2(-1.4426950408889634 * d))


@triton.jit
def _silu(z):
    return z / (1.0 + tl.exp2(-1.4426950408889634 * z))


@triton.jit
def _forward_kernel(
    u, delta, A, B, C, D, z, delta_bias, initial, y, pregate, last,
    length, inner, u_batch, u_time, delta_batch, delta_time, B_batch, B_time, C_batch, C_time, z_batch, z_time,
    STATE: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, HAS_D: tl.constexpr, HAS_GATE: tl.constexpr,
    SAVE_PREGATE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    # Positions are 64-bit, because they are multiplied by strides.
    zero = batch * 0
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, PADDED)
    valid_e, valid_n = e < inner, n < STATE
    valid = valid_e[:, None] & valid_n[None, :]
    at = e[:, None] * STATE + n[None, :]
    decay = tl.load(A + at, mask=valid, other=0.0) * 1.4426950408889634
    state = tl.zeros([CHANNELS, PADDED], tl.float32)
    if HAS_INITIAL:
        state += tl.load(initial + batch * inner * STATE + at, mask=valid, other=0.0)
    skip = tl.zeros([CHANNELS], tl.float32)
    if HAS_D:
        skip += tl.load(D + e, mask=valid_e, other=0.0)
    shift = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        shift += tl.load(delta_bias + e, mask=valid_e, other=0.0)
    for step in range(length):
        t = zero + (length - 1 - step if REVERSE else step)
        d = tl.load(delta + batch * delta_batch + t * delta_time + e, mask=valid_e, other=0.0).to(tl.float32) + shift
        if SOFTPLUS:
            d = _softplus(d)
        x = tl.load(u + batch * u_batch + t * u_time + e, mask=valid_e, other=0.0).to(tl.float32)
        b = tl.load(B + batch * B_batch + t * B_time + n, mask=valid_n, other=0.0).to(tl.float32)
        c = tl.load(C + batch * C_batch + t * C_time + n, mask=valid_n, other=0.0).to(tl.float32)
        state = tl.exp2(d[:, None] * decay) * state + (d * x)[:, None] * b[None, :]
        out = tl.sum(state * c[None, :], axis=1) + skip * x
        to = (batch * length + t) * inner + e
        if SAVE_PREGATE:
            tl.store(pregate + to, out.to(pregate.dtype.element_ty), mask=valid_e)
        if HAS_GATE:
            out *= _silu(tl.load(z + batch * z_batch + t * z_time + e, mask=valid_e, other=0.0).to(tl.float32))
        tl.store(y + to, out.to(y.dtype.element_ty), mask=valid_e)
    tl.store(last + batch * inner * STATE + at, state, mask=valid)


@triton.jit
def _backward_kernel(
    dy, dlast, u, delta, A, B, C, D, z, delta_bias, initial, pregate, du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
    checkpoints, states,
    length, inner, dy_batch, dy_time, u_batch, u_time, delta_batch, delta_time, B_batch, B_time, C_batch, C_time,
    z_batch, z_time,
    STATE: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_GATE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_DLAST: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    zero = batch * 0
    program = batch * tl.num_programs(0) + tl.program_id(0)
    own = tl.arange(0, CHANNELS)
    e = tl.program_id(0) * CHANNELS + own
    n = tl.arange(0, PADDED)
    valid_e, valid_n = e < inner, n < STATE
    valid = valid_e[:, None] & valid_n[None, :]
    at = e[:, None] * STATE + n[None, :]
    decay = tl.load(A + at, mask=valid, other=0.0) * 1.4426950408889634
    state = tl.zeros([CHANNELS, PADDED], tl.float32)
    if HAS_INITIAL:
        state += tl.load(initial + batch * inner * STATE + at, mask=valid, other=0.0)
    skip = tl.zeros([CHANNELS], tl.float32)
    if HAS_D:
        skip += tl.load(D + e, mask=valid_e, other=0.0)
    shift = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        shift += tl.load(delta_bias + e, mask=valid_e, other=0.0)
    tile = own[:, None] * PADDED + n[None, :]
    chunks = tl.cdiv(length, STEPS)
    checkpoint = checkpoints + program * chunks * (CHANNELS * PADDED) + tile
    held = states + program * STEPS * (CHANNELS * PADDED) + tile

    for step in range(length):
        if step % STEPS == 0:  # type: ignore[operator]
            tl.store(checkpoint + (step // STEPS) * (CHANNELS * PADDED), state)
        t = zero + (length - 1 - step if REVERSE else step)
        d = tl.load(delta + batch * delta_batch + t * delta_time + e, mask=valid_e, other=0.0).to(tl.float32) + shift
        if SOFTPLUS:
            d = _softplus(d)
        x = tl.load(u + batch * u_batch + t * u_time + e, mask=valid_e, other=0.0).to(tl.float32)
        b = tl.load(B + batch * B_batch + t * B_time + n, mask=valid_n, other=0.0).to(tl.float32)
        state = tl.exp2(d[:, None] * decay) * state + (d * x)[:, None] * b[None, :]

    flow = tl.zeros([CHANNELS, PADDED], tl.float32)
    if HAS_DLAST:
        flow += tl.load(dlast + batch * inner * STATE + at, mask=valid, other=0.0)
    dA_sum = tl.zeros([CHANNELS, PADDED], tl.float32)
    dD_sum = tl.zeros([CHANNELS], tl.float32)
    dbias_sum = tl.zeros([CHANNELS], tl.float32)
    for back in range(chunks):
        first = (chunks - 1 - back) * STEPS
        count = tl.minimum(STEPS, length - first)
        tl.debug_barrier()
        state = tl.load(checkpoint + (chunks - 1 - back) * (CHANNELS * PADDED))
        for k in range(count):
            tl.store(held + k * (CHANNELS * PADDED), state)
            t = zero + (length - 1 - first - k if REVERSE else first + k)
            d = (
                tl.load(delta + batch * delta_batch + t * delta_time + e, mask=valid_e, other=0.0).to(tl.float32)
                + shift
            )
            if SOFTPLUS:
                d = _softplus(d)
            x = tl.load(u + batch * u_batch + t * u_time + e, mask=valid_e, other=0.0).to(tl.float32)
            b = tl.load(B + batch * B_batch + t * B_time + n, mask=valid_n, other=0.0).to(tl.float32)
            state = tl.exp2(d[:, None] * decay) * state + (d * x)[:, None] * b[None, :]
        tl.debug_barrier()
        for k in range(count):
            step = first + count - 1 - k
            t = zero + (length - 1 - step if REVERSE else step)
            d = (
                tl.load(delta + batch * delta_batch + t * delta_time + e, mask=valid_e, other=0.0).to(tl.float32)
                + shift
            )
            if SOFTPLUS:
                d = _softplus(d)
            x = tl.load(u + batch * u_batch + t * u_time + e, mask=valid_e, other=0.0).to(tl.float32)
            b = tl.load(B + batch * B_batch + t * B_time + n, mask=valid_n, other=0.0).to(tl.float32)
            c = tl.load(C + batch * C_batch + t * C_time + n, mask=valid_n, other=0.0).to(tl.float32)
            grad = tl.load(dy + batch * dy_batch + t * dy_time + e, mask=valid_e, other=0.0).to(tl.float32)
            to = (batch * length + t) * inner + e
            if HAS_GATE:
                gate = tl.load(z + batch * z_batch + t * z_time + e, mask=valid_e, other=0.0).to(tl.float32)
                gate_sigmoid = 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * gate))
                before = tl.load(pregate + to, mask=valid_e, other=0.0).to(tl.float32)
                dgate = grad * before * (gate_sigmoid * (1.0 + gate * (1.0 - gate_sigmoid)))
                tl.store(dz + to, dgate.to(dz.dtype.element_ty), mask=valid_e)
                grad *= gate * gate_sigmoid
            # The state before this step and after it.
            old = tl.load(held + (count - 1 - k) * (CHANNELS * PADDED))
            keep = tl.exp2(d[:, None] * decay)
            new = keep * old + (d * x)[:, None] * b[None, :]
            dh = grad[:, None] * c[None, :] + flow
            line = (program * length + t) * PADDED + n
            tl.store(dB + line, tl.sum(dh * (d * x)[:, None], axis=0), mask=valid_n)
            tl.store(dC + line, tl.sum(grad[:, None] * new, axis=0), mask=valid_n)
            by_B = tl.sum(dh * b[None, :], axis=1)
            flow = dh * keep
            through = flow * old
            dA_sum += through * d[:, None]
            slope = x * by_B + tl.sum(through * decay, axis=1) * 0.6931471805599453
            if SOFTPLUS:
                slope *= _softplus_derivative(d)
            tl.store(du + to, (d * by_B + skip * grad).to(du.dtype.element_ty), mask=valid_e)
            tl.store(ddelta + to, slope.to(ddelta.dtype.element_ty), mask=valid_e)
            dbias_sum += slope
            dD_sum += grad * x
    tl.store(dA + batch * inner * STATE + at, dA_sum, mask=valid)
    tl.store(dinitial + batch * inner * STATE + at, flow, mask=valid)
    tl.store(dD + batch * inner + e, dD_sum, mask=valid_e)
    tl.store(dbias + batch * inner + e, dbias_sum, mask=valid_e)


def _times(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _options(A, D, z, delta_bias, initial_state, **flags: bool) -> dict[str, int | bool]:
    padded = max(2, triton.next_power_of_2(A.shape[1]))
    channels = max(4, CHANNELS * 16 // max(16, padded))
    sizes = {"STATE": A.shape[1], "PADDED": padded, "CHANNELS": channels}
    optional = {"HAS_D": D, "HAS_GATE": z, "HAS_BIAS": delta_bias, "HAS_INITIAL": initial_state}
    return {**sizes, **{name: tensor is not None for name, tensor in optional.items()}, **flags}


def empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state) -> list[Tensor]:
    """With a gate: an empty tensor for the value before it, which its gradient needs."""
    return [] if z is None else [u.new_empty(u.shape)]


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse, for_backward
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the last state, and for the backward the value before the gate."""
    batch, length, inner = u.shape
    y = torch.empty((batch, length, inner), dtype=u.dtype, device=u.device)
    last_state = torch.empty((batch, *A.shape), dtype=torch.float32, device=u.device)
    saved = [torch.empty_like(y)] if for_backward and z is not None else []
    optional = (D, z, delta_bias, initial_state)
    options = _options(A, *optional, SAVE_PREGATE=bool(saved), SOFTPLUS=delta_softplus, REVERSE=reverse)
    # Triton has no null pointer: another tensor replaces None and is not read.
    optional = [A if t is None else t for t in optional]
    run(
        *(_forward_kernel, (triton.cdiv(inner, options["CHANNELS"]), batch), u),
        *(u, delta, A, B, C, *optional, y, saved[0] if saved else y, last_state, length, inner),
        *_times(u, delta, B, C, u if z is None else z),
        warps=1,
        **options,
    )
    return y, last_state, saved


def backward(
    dy, dstate, u, delta, A, B, C, D, z, delta_bias, initial_state, saved, *, delta_softplus, reverse
) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments, in their order."""
    batch, length, inner = u.shape
    state = A.shape[1]
    optional = (D, z, delta_bias, initial_state)
    options = _options(A, *optional, HAS_DLAST=dstate is not None, SOFTPLUS=delta_softplus, REVERSE=reverse)
    slices = triton.cdiv(inner, options["CHANNELS"])
    tile = options["CHANNELS"] * options["PADDED"]

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=u.device)

    du, ddelta, dz = (new(batch, length, inner, dtype=u.dtype) for _ in range(3))
    dA, dinitial = new(batch, inner, state), new(batch, inner, state)
    dD, dbias = new(batch, inner), new(batch, inner)
    dB, dC = (new(batch, slices, length, options["PADDED"]) for _ in range(2))
    checkpoints = new(batch * slices * triton.cdiv(length, STEPS) * tile)
    states = new(batch * slices * STEPS * tile)
    # Triton has no null pointer: another tensor replaces None and is not read.
    optional = [A if t is None else t for t in optional]
    run(
        *(_backward_kernel, (slices, batch), u),
        *(dy, A if dstate is None else dstate, u, delta, A, B, C, *optional, saved[0] if saved else dy),
        *(du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial, checkpoints, states, length, inner),
        *_times(dy, u, delta, B, C, u if z is None else z),
        warps=1,
        STEPS=STEPS,
        **options,
    )
    return (
        du,
        ddelta,
        dA.sum(dim=0),
        dB.sum(dim=1)[..., :state].to(B.dtype).contiguous(),
        dC.sum(dim=1)[..., :state].to(C.dtype).contiguous(),
        None if D is None else dD.sum(dim=0),
        None if z is None else dz,
        None if delta_bias is None else dbias.sum(dim=0),
        None if initial_state is None else dinitial,
    )
