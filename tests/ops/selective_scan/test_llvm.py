import pytest
import torch

from llvm_machines import every_machine
from mambar.ops import selective_scan
from mambar.ops.llvm import launch, threads
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan import llvm, llvm_backward, llvm_forward
from op_inputs import relative_error, scan_inputs, to_double, with_gradients

SHAPES = [(2, 7, 64, 16), (1, 1, 3, 1), (2, 33, 101, 5), (1, 49, 130, 18)]


@every_machine
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_every_vector_width_equals_the_reference(machine, shape, reverse, monkeypatch):
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", machine)
    tensors = scan_inputs(*shape, without=("initial_state",))
    tensors.pop("initial_state")

    def scan(backend):
        return lambda **t: selective_scan(**t, delta_softplus=True, reverse=reverse, backend=backend)

    found = with_gradients(scan("llvm"), tensors)
    expected = with_gradients(scan("reference"), to_double(tensors))
    for name, right in expected.items():
        assert relative_error(found[name], right) <= (1e-5 if name.startswith("gradient") else 1e-6), name


@every_machine
def test_kernels_use_exactly_the_scratch_that_they_declare(machine, monkeypatch):
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", machine)
    buffers = []

    def guarded(kernel, arguments, *, scratch_floats, max_threads):
        buffer = torch.full((2, scratch_floats + 64), 12345.0)
        buffers.append((buffer[:, :scratch_floats], buffer[:, scratch_floats:]))
        monkeypatch.setattr(threads.torch, "empty", lambda *_, **__: buffer)
        try:
            run(kernel, arguments, scratch_floats=scratch_floats, max_threads=max_threads)
        finally:
            monkeypatch.undo()
            monkeypatch.setenv("MAMBAR_LLVM_MACHINE", machine)
            monkeypatch.setattr(launch, "run", guarded)

    run = threads.run
    monkeypatch.setattr(launch, "run", guarded)
    tensors = scan_inputs(1, 37, 3 * 4 * current_machine().lanes + 5, 7)
    y, state, saved = llvm.forward(**tensors, delta_softplus=True, reverse=False, for_backward=True)
    llvm.backward(y, state, **tensors, saved=saved, delta_softplus=True, reverse=False)
    assert all(bool((rest == 12345.0).all()) for _, rest in buffers)
    # The kernels write up to the last element before the guard. Which of two threads runs a task, and so which row is
    # written, depends on the machine.
    used = [own for own, _ in buffers if own.numel()]
    assert len(used) == 2 and all(bool((own[:, -1] != 12345.0).any()) for own in used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_that_bypass_the_caches_are_the_same(dtype, monkeypatch):
    tensors = scan_inputs(2, 40, 256, 16, dtype=dtype)
    results = []
    for large in (0, 1 << 40):
        monkeypatch.setattr(launch, "LARGE_BYTES", large)
        y, state, saved = llvm.forward(**tensors, delta_softplus=True, reverse=True, for_backward=True)
        gradients = llvm.backward(y, state, **tensors, saved=saved, delta_softplus=True, reverse=True)
        results.append([y, state, *saved, *gradients])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_slow_decays_keep_their_precision():
    # States that last for the whole sequence: an error in the decay is applied a thousand times.
    tensors = scan_inputs(1, 1037, 16, 16, without=("initial_state",), slow_decay=True)
    tensors.pop("initial_state")
    found = selective_scan(**tensors, delta_softplus=True, backend="llvm")
    expected = selective_scan(**to_double(tensors), delta_softplus=True, backend="reference")
    assert relative_error(found, expected) <= 1e-6


def test_an_infinite_decay_clears_the_state():
    tensors = scan_inputs(1, 9, 16, 4, without=("initial_state",))
    tensors.pop("initial_state")
    plain = selective_scan(**{**tensors, "A": torch.full((16, 4), -1e8)}, delta_softplus=True, backend="llvm")
    endless = selective_scan(**{**tensors, "A": torch.full((16, 4), -torch.inf)}, delta_softplus=True, backend="llvm")
    assert plain.isfinite().all() and torch.equal(plain, endless)


def test_checkpoints_have_the_shape_of_empty_saved():
    tensors = scan_inputs(2, 33, 6, 3)
    _, _, saved = llvm.forward(**tensors, delta_softplus=True, reverse=False, for_backward=True)
    assert [t.shape for t in saved] == [t.shape for t in llvm.empty_saved(**tensors)] == [(2, 3, 3, 6)]


def test_arguments_are_checked_by_name():
    for kernel in (llvm_forward, llvm_backward):
        with pytest.raises(TypeError, match="missing or unknown arguments"):
            launch.launch(current_machine(), kernel, torch.float32, arguments={"num_tasks": 1})


def test_gradients_never_share_memory():
    tensors = scan_inputs(1, 9, 3, 1)
    y, state, saved = llvm.forward(**tensors, delta_softplus=True, reverse=False, for_backward=True)
    gradients = llvm.backward(y, state, **tensors, saved=saved, delta_softplus=True, reverse=False)
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == len(gradients)


def test_blocks_of_one_task_are_summed():
    # With many batch items a task processes several blocks of channels, the last one narrower.
    tensors = scan_inputs(70, 5, 3 * 32 + 5, 3, without=("initial_state",))
    tensors.pop("initial_state")

    def scan(backend):
        return lambda **t: selective_scan(**t, delta_softplus=True, backend=backend)

    found = with_gradients(scan("llvm"), tensors)
    expected = with_gradients(scan("reference"), to_double(tensors))
    for name, right in expected.items():
        assert relative_error(found[name], right) <= 1e-5, name
