"""The benchmark of the ops: backends that fail the parity check are not timed."""

import torch

from mambar.bench import ops
from mambar.bench.ceilings import Ceilings
from mambar.bench.ops import ScanShape, bench_scan, scan_error

CEILINGS = Ceilings(bytes=1e10, flops=1e11, exponentials=1e9)


def test_states_and_bytes_equal_values_by_hand():
    shape = ScanShape(batch=2, length=3, inner=5, state=7)
    assert shape.states == 210
    assert shape.min_bytes(4) == 2 * 3 * (4 * 5 + 2 * 7) * 4


def test_every_available_backend_is_timed():
    rows = bench_scan(
        ScanShape(batch=1, length=8, inner=32), device="cpu", dtype=torch.float32, ceilings=CEILINGS, rounds=3
    )
    timed = {row.name: row.cells for row in rows if row.cells}
    assert {"chunked", "doubling"} <= set(timed)
    assert all(cells[0] > 0 and cells[3] > 0 for cells in timed.values())


def test_a_backend_with_a_large_error_is_not_timed(monkeypatch):
    assert scan_error("chunked", device="cpu", dtype=torch.float32) < 1e-6
    monkeypatch.setattr(ops, "scan_error", lambda name, **_: 0.5 if name == "chunked" else 0.0)
    rows = bench_scan(
        ScanShape(batch=1, length=8, inner=32), device="cpu", dtype=torch.float32, ceilings=CEILINGS, rounds=3
    )
    assert [row.cells for row in rows if row.name.startswith("chunked: differs by 5.0e-01")] == [()]
