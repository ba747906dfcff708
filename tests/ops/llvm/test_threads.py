import os
import sys
import threading

import pytest
import torch

pytest.importorskip("llvmlite")

from mambar.ops.llvm import threads
from mambar.ops.llvm.launch import sum_parts
from mambar.ops.selective_scan import llvm
from op_inputs import scan_inputs


@pytest.fixture(params=["openmp", "python"])
def num_threads(request, monkeypatch):
    """Sets the number of threads, which are those of PyTorch's OpenMP library or of Python."""
    if request.param == "python":
        monkeypatch.setattr(threads, "_run_by_openmp", None)
    elif threads._run_by_openmp is None:
        pytest.skip("no OpenMP library")
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="other OpenMP libraries")
def test_linux_uses_the_threads_of_pytorch():
    assert threads._run_by_openmp is not None


def run(tensors):
    y, state, saved = llvm.forward(**tensors, delta_softplus=True, reverse=True, for_backward=True)
    gradients = llvm.backward(y, state, **tensors, saved=saved, delta_softplus=True, reverse=True)
    return [y, state, *gradients]


def test_results_do_not_depend_on_the_number_of_threads(num_threads):
    tensors = scan_inputs(3, 37, 200, 16)
    results = []
    for count in (1, 2, 5):
        num_threads(count)
        results.append(run(tensors))
    for others in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(results[0], others, strict=True))


def test_calls_from_several_threads_at_once(num_threads):
    num_threads(2)
    tensors = [scan_inputs(2, 19, 70, 4, seed=seed) for seed in range(4)]
    expected = [run(inputs) for inputs in tensors]
    found = [[] for _ in tensors]

    def work(index):
        for _ in range(10):
            found[index] = run(tensors[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, right in zip(found, expected, strict=True):
        assert all(torch.equal(left, other) for left, other in zip(results, right, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(num_threads):
    num_threads(2)
    parts = torch.randn(5, 4000)
    right = sum_parts(parts)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(sum_parts(parts), right) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_denormal_mode_of_the_caller_is_restored(num_threads):
    num_threads(1)
    tiny = torch.tensor([1e-40])
    run(scan_inputs(1, 5, 6, 4))
    assert (tiny * 1.0).item() != 0


def test_denormals_are_zero_inside_a_kernel():
    assert sum_parts(torch.full((3, 40), 1e-40)).eq(0).all()
