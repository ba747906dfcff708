import os
import time

import pytest
import torch

from mambar.data.loading.workers import WorkerPool
from mambar.errors import MambarError


def double(task):
    time.sleep(0.002 * (task % 3))
    return torch.full((3,), 2 * task), os.getpid()


def stubborn(task):
    if task == 5:
        raise StubbornError(lambda: None)
    return task


class StubbornError(Exception):
    """An error that no pickle takes."""


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("num_tasks", [0, 1, 3, 20])
def test_results_come_in_order_from_all_workers(count, num_tasks):
    pool = WorkerPool(double, count)
    results = list(pool.results(range(num_tasks)))
    pool.close()
    pool.close()
    assert [int(values[0]) for values, _ in results] == list(range(0, 2 * num_tasks, 2))
    assert len({pid for _, pid in results}) == min(count, num_tasks)
    assert os.getpid() not in {pid for _, pid in results}


def test_results_outlive_their_workers():
    pool = WorkerPool(double, 2)
    results = list(pool.results(range(6)))
    pool.close()
    assert torch.equal(results[4][0], torch.full((3,), 8))


def test_an_error_that_cannot_travel_comes_as_text():
    pool = WorkerPool(stubborn, 2)
    with pytest.raises(RuntimeError, match="StubbornError"):
        list(pool.results(range(9)))
    pool.close()


def test_a_worker_that_is_killed_between_tasks_is_an_error():
    pool = WorkerPool(double, 2)
    results = pool.results(range(100))
    _, pid = next(results)
    os.kill(pid, 9)
    with pytest.raises(MambarError, match=r"died .signal 9"):
        list(results)
    pool.close()
