"""The CUDA kernels on a GPU: every tile and kind of load, deterministic results, every element written.

Run as a program (`compute-sanitizer python tests/ops/cuda/test_kernels.py`) it calls each kernel once on small shapes;
with the argument `scans` only kernels of this package run (initcheck reports the results of cuBLAS as unwritten).
"""

import sys

import pytest
import torch

from mambar.ops.bidirectional_mix.direction import ScanDirection

pytestmark = pytest.mark.gpu
WORST = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def relative(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)).item()


def scan_arguments(batch, length, inner, state=16, dtype=torch.bfloat16, *, offset=0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).cuda()

    wide = draw(batch, length, 2 * inner + offset).to(dtype)[..., offset:]
    rows = draw(batch, length, offset + 2 * state).to(dtype)[..., offset:]
    return (
        wide[..., :inner],
        (draw(batch, length, inner) - 2).to(dtype),
        -torch.rand((inner, state), generator=generator).cuda() * 8 - 0.05,
        rows[..., :state],
        rows[..., state:],
        draw(inner),
        wide[..., inner:],
        draw(inner) * 0.3,
        draw(batch, inner, state),
    )


def scan_errors(arguments, reverse):
    """Relative errors of the scan and of its gradients against float64."""
    from mambar.ops.selective_scan import cuda, reference

    options = {"delta_softplus": True, "reverse": reverse}
    exact = [argument.double().requires_grad_() for argument in arguments]
    wanted, last = reference.selective_scan(*exact, **options)
    y, state, saved = cuda.forward(*arguments, **options, for_backward=True)
    # The tolerances are for these draws: a gradient of one position may cancel to nothing.
    torch.manual_seed(0)
    dy, dstate = torch.randn_like(y), torch.randn_like(state)
    gradients = torch.autograd.grad((wanted * dy).sum() + (last * dstate).sum(), exact)
    found = cuda.backward(dy, dstate, *arguments, saved, **options)
    pairs = zip((y, state, *found), (wanted, last, *gradients), strict=True)
    return [relative(one, other) for one, other in pairs]


@pytest.fixture
def nan_filled(monkeypatch):
    """Fills every new tensor with NaN."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poisoned(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *shape, **options: poisoned(empty(*shape, **options)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape, **o: poisoned(new_empty(self, *shape, **o)))


WHOLE = 10**9


def force_segments(monkeypatch, forward, backward):
    """Cuts every sequence into segments of about these numbers of positions."""
    from mambar.ops.cuda import scan

    def segment(shape, wanted):
        segments = min(11, shape[-2] // wanted)
        return scan._segment_length(shape[-2], segments) if segments > 1 else shape[-2]

    monkeypatch.setattr(scan, "forward_segment", lambda shape: segment(shape, forward))
    monkeypatch.setattr(scan, "backward_segment", lambda shape, directions: segment(shape, backward))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "inner", "offset"),
    [(2, 1, 32, 0), (2, 7, 8, 0), (3, 63, 136, 0), (2, 208, 256, 8), (1, 589, 96, 1), (1, 1037, 40, 0)],
)
@pytest.mark.parametrize("dtype", WORST)
@pytest.mark.parametrize(
    ("lanes", "backward"),
    [(1, WHOLE), (2, WHOLE), (4, WHOLE), (8, WHOLE), (1, 16), (2, 16), (4, 16), (8, 16), (None, 16)],
)
def test_every_tile_and_kind_of_load(
    nan_filled, monkeypatch, lanes, backward, dtype, batch, length, inner, offset, reverse
):
    from mambar.ops.cuda import scan

    if lanes is None:
        force_segments(monkeypatch, 16, 16)
    else:
        monkeypatch.setattr(scan, "_lanes", lambda u: lanes)
        force_segments(monkeypatch, WHOLE, backward)
    scan._plan_forward.cache_clear()
    errors = scan_errors(scan_arguments(batch, length, inner, dtype=dtype, offset=offset), reverse)
    scan._plan_forward.cache_clear()
    assert max(errors) <= WORST[dtype], errors


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [127, 128, 129, 135, 136, 137, 191, 192, 193, 255, 257, 1000])
@pytest.mark.parametrize("forward", [64, WHOLE])
def test_lengths_around_the_ends_of_segments(nan_filled, monkeypatch, forward, length, reverse):
    force_segments(monkeypatch, forward, 64)
    errors = scan_errors(scan_arguments(2, length, 40, dtype=torch.float32), reverse)
    assert max(errors) <= WORST[torch.float32], errors


def test_long_sequences_use_many_windows(nan_filled):
    errors = scan_errors(scan_arguments(1, 4113, 64), False)
    assert max(errors) <= WORST[torch.bfloat16], errors


def mix_arguments(batch, length, inner, rank, state=16, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).cuda()

    def params():
        return ScanDirection(
            conv_weight=draw(inner, 4) * 0.5,
            conv_bias=draw(inner) * 0.3,
            x_proj=(draw(rank + 2 * state, inner) * inner**-0.5).to(dtype),
            dt_proj=(draw(inner, rank) * rank**-0.5).to(dtype),
            dt_bias=draw(inner) * 0.3 - 2,
            A=-torch.rand((inner, state), generator=generator).cuda() * 8 - 0.05,
            D=draw(inner),
        )

    return draw(batch, length, 2 * inner).to(dtype), params(), params()


def mix_once(arguments, dout):
    from mambar.ops.bidirectional_mix import cuda

    out, saved = cuda.forward(*arguments, average=True, for_backward=True)
    dxz, forward_params, backward_params = cuda.backward(dout, *arguments, [*saved, out], average=True)
    return [out, dxz, *forward_params, *backward_params]


@pytest.mark.parametrize("state", [5, 16, 20])
@pytest.mark.parametrize("dtype", WORST)
def test_the_mix_is_at_most_twice_as_inexact_as_plain_pytorch(nan_filled, dtype, state):
    from mambar.ops import use_backend
    from mambar.ops.bidirectional_mix import reference

    arguments = mix_arguments(2, 70, 264, 12, state, dtype)
    # A gate of 0 must not lose the value before it.
    arguments[0][0, 0, 264] = 0
    dout = torch.randn(2, 70, 264, device="cuda").to(dtype)

    def plain(dtype):
        xz, *directions = arguments
        xz = xz.to(dtype).requires_grad_()
        directions = [ScanDirection(*(part.to(dtype).requires_grad_() for part in params)) for params in directions]
        with use_backend("reference"):
            out = reference.bidirectional_mix(xz, *directions, average=True)
        gradients = torch.autograd.grad((out * dout.to(dtype)).sum(), [xz, *directions[0], *directions[1]])
        return [out, *gradients]

    exact, ours, theirs = plain(torch.float64), mix_once(arguments, dout), plain(dtype)
    for found, other, wanted in zip(ours, theirs, exact, strict=True):
        assert relative(found, wanted) <= max(2 * relative(other, wanted), WORST[dtype] / 4)


@pytest.mark.parametrize("forward", [64, WHOLE])
def test_the_mix_in_segments_is_as_exact(nan_filled, monkeypatch, forward):
    """Both directions in one launch, cut into segments, beside the same in one piece."""
    arguments, dout = mix_arguments(2, 300, 264, 12, dtype=torch.float32), torch.randn(2, 300, 264, device="cuda")
    force_segments(monkeypatch, WHOLE, WHOLE)
    whole = mix_once(arguments, dout)
    force_segments(monkeypatch, forward, 64)
    for found, wanted in zip(mix_once(arguments, dout), whole, strict=True):
        assert relative(found, wanted) <= WORST[torch.float32]


def test_250_repeats_are_bit_identical():
    arguments = mix_arguments(4, 209, 256, 16)
    dout = torch.randn(4, 209, 256, device="cuda").to(torch.bfloat16)
    first = mix_once(arguments, dout)
    for _ in range(250):
        assert all(torch.equal(one, other) for one, other in zip(mix_once(arguments, dout), first, strict=True))


def test_a_thread_without_a_context_can_launch():
    """An autograd thread can launch a kernel before a PyTorch call binds a CUDA context to the thread."""
    from concurrent.futures import ThreadPoolExecutor

    arguments = mix_arguments(1, 8, 32, 4)
    dout = torch.randn(1, 8, 32, device="cuda").to(torch.bfloat16)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(mix_once, arguments, dout).result()
    assert all(bool(part.isfinite().all()) for part in found)


def test_a_captured_graph_replays_the_same_results():
    arguments = mix_arguments(2, 33, 64, 8)
    dout = torch.randn(2, 33, 64, device="cuda").to(torch.bfloat16)
    wanted = mix_once(arguments, dout)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mix_once(arguments, dout)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


if __name__ == "__main__":
    for kind in (torch.bfloat16, torch.float32):
        for sizes in ((WHOLE, WHOLE), (WHOLE, 16), (16, 16)):
            with pytest.MonkeyPatch.context() as patch:
                force_segments(patch, *sizes)
                if sys.argv[1:] != ["scans"]:
                    mix_once(mix_arguments(2, 37, 136, 8, dtype=kind), torch.randn(2, 37, 136, device="cuda").to(kind))
                assert max(scan_errors(scan_arguments(2, 37, 40, dtype=kind, offset=1), True)) <= WORST[kind]
    torch.cuda.synchronize()
