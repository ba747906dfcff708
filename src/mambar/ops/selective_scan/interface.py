"""The selective scan (Mamba, arXiv 2312.00752): checks, table of backends, custom operator.

A kernel backend is a module with three functions on plain tensors:

    empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state) -> list[Tensor]
    forward(u, delta, A, B, C, D, z, delta_bias, initial_state, *,
            delta_softplus, reverse, for_backward) -> (y, last_state, saved)
    backward(dy, dstate, u, delta, A, B, C, D, z, delta_bias, initial_state, saved, *,
             delta_softplus, reverse) -> (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state)

* `empty_saved` allocates the tensors that `forward` fills for `backward`, for example checkpoints. It may only use
  shapes and types, because it also runs with fake tensors. `saved` is empty unless `for_backward`.
* u, delta, B, C and z have one type, and stride 1 over channels; batch and time may have any stride.
* A, D, delta_bias and the states are float32 and contiguous (float64 if u is float64).
* Each gradient has the type of its argument; the gradient of an absent argument is None.
* D, z, delta_bias, initial_state and `dstate` may be None.
* Outputs are new, contiguous, and every element is written.

A plain backend is a module with `selective_scan(u, ..., initial_state, *, delta_softplus, reverse) -> (y, last_state)`
in differentiable operations.
"""

import sys

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.ops.checks import as_dtype, check_decay, check_shape, choose_backend
from mambar.ops.cuda.program import missing as cuda_missing
from mambar.ops.dispatch import FLOATS, Backend, is_empty, kernel_backend, register_op
from mambar.ops.kernel_op import KernelOp
from mambar.ops.selective_scan import reference

BACKENDS = (
    kernel_backend("selective_scan", "cuda", device="cuda", requires=(cuda_missing, "triton")),
    kernel_backend("selective_scan", "triton", device="cuda", requires=("triton",)),
    kernel_backend("selective_scan", "llvm", device="cpu", requires=("llvmlite",)),
    Backend(
        name="chunked", module="mambar.ops.selective_scan.chunked", devices=("cpu", "cuda", "mps", "xpu"), dtypes=FLOATS
    ),
    Backend(name="doubling", module="mambar.ops.selective_scan.doubling", dtypes=FLOATS, traceable=True),
    Backend(name="reference", module="mambar.ops.selective_scan.reference", dtypes=FLOATS, traceable=True),
)

# Functions of the backends without a kernel; `register_backend` adds to it.
PLAIN = register_op("selective_scan", sys.modules[__name__])


def selective_scan(
    u: Float[Tensor, "batch length d_inner"],
    delta: Float[Tensor, "batch length d_inner"],
    A: Float[Tensor, "d_inner d_state"],
    B: Float[Tensor, "batch length d_state"],
    C: Float[Tensor, "batch length d_state"],
    D: Float[Tensor, " d_inner"] | None = None,
    z: Float[Tensor, "batch length d_inner"] | None = None,
    delta_bias: Float[Tensor, " d_inner"] | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "batch length d_inner"]:
    """The output `(C h + D u) silu(z)` in the type of `u`, where `h[t] = exp(dt A) h[t-1] + dt B u[t]`.

    The arguments are those of mamba_ssm's `selective_scan_fn`, with channels last. dt is `delta + delta_bias`, through
    softplus (the identity above 20) if `delta_softplus`. `reverse` scans from the last position to the first, like
    flipping every sequence and the result. A must not be positive; this is checked for CPU tensors in eager mode only.

    Types may be mixed. If any argument is float64, everything is computed in float64, by a backend that supports it.
    Otherwise u, delta, B, C and z are promoted to their common type, and the parameters, the state, softplus, gate and
    sums are float32. Each gradient has the type of its argument.
    """
    return _scan(u, delta, A, B, C, D, z, delta_bias, None, delta_softplus, reverse, backend)[0]


def selective_scan_with_state(
    u: Float[Tensor, "batch length d_inner"],
    delta: Float[Tensor, "batch length d_inner"],
    A: Float[Tensor, "d_inner d_state"],
    B: Float[Tensor, "batch length d_state"],
    C: Float[Tensor, "batch length d_state"],
    D: Float[Tensor, " d_inner"] | None = None,
    z: Float[Tensor, "batch length d_inner"] | None = None,
    delta_bias: Float[Tensor, " d_inner"] | None = None,
    initial_state: Float[Tensor, "batch d_inner d_state"] | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch length d_inner"], Float[Tensor, "batch d_inner d_state"]]:
    """The output of `selective_scan`, and the state after the last step, in float32 or float64.

    A long sequence can be scanned in parts: pass the state of one part as `initial_state` (default: zeros) of the
    next. With `reverse` start with the last part of the sequence.
    """
    return _scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse, backend)


_ACTIVATIONS = ("u", "delta", "B", "C", "z")


def _scan(
    u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse, backend
) -> tuple[Tensor, Tensor]:
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    given = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    name, tensors = choose_backend("selective_scan", backend, _ACTIVATIONS, given)
    if is_empty(u):
        state = tensors[-1]
        return u + 0, tensors[2].new_zeros(u.shape[0], *A.shape) if state is None else state
    if name in PLAIN:
        y, state = PLAIN[name](*tensors, delta_softplus=delta_softplus, reverse=reverse)
    else:
        for_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        y, state, *_ = torch.ops.mambar.selective_scan(*tensors, delta_softplus, reverse, for_backward, name)
    return as_dtype(y, u.dtype), state


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    check_shape("u", u, batch=None, length=None, d_inner=None)
    batch, length, d_inner = u.shape
    check_shape("A", A, d_inner=d_inner, d_state=None)
    d_state = A.shape[1]
    check_shape("delta", delta, batch=batch, length=length, d_inner=d_inner)
    check_shape("B", B, batch=batch, length=length, d_state=d_state)
    check_shape("C", C, batch=batch, length=length, d_state=d_state)
    check_shape("D", D, d_inner=d_inner)
    check_shape("z", z, batch=batch, length=length, d_inner=d_inner)
    check_shape("delta_bias", delta_bias, d_inner=d_inner)
    check_shape("initial_state", initial_state, batch=batch, d_inner=d_inner, d_state=d_state)
    check_decay(A)


KernelOp(
    "selective_scan",
    tensors=("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"),
    optional=("D", "z", "delta_bias", "initial_state"),
    options=("delta_softplus", "reverse"),
    activations=_ACTIVATIONS,
    strided=_ACTIVATIONS,
    outputs=lambda u, delta, A, *_: [u.new_empty(u.shape), A.new_empty((u.shape[0], *A.shape))],
    num_outputs=2,
    reference=reference.selective_scan,
)
