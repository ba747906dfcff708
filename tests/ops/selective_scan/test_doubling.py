from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mambar.ops import selective_scan, selective_scan_with_state, use_backend
from mambar.ops.selective_scan import doubling
from op_inputs import scan_inputs, without_shape_hook


class Scan(torch.nn.Module):
    """A scan inside a module, for export."""

    def __init__(self, reverse=False):
        super().__init__()
        self.reverse = reverse

    def forward(self, u, delta, A, B, C, D, z, delta_bias):
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, reverse=self.reverse)


def inputs(batch=2, length=13):
    return tuple(scan_inputs(batch, length, 4, 3).values())[:8]


@without_shape_hook
def test_an_exported_program_has_plain_operations_only():
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if t.dim() == 3 else None for t in inputs())
    program = torch.export.export(Scan(reverse=True), inputs(), dynamic_shapes=shapes)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("mambar" in target for target in targets)
    assert len(program.graph.nodes) < 150
    for batch in (1, 2, 7):
        found = program.module()(*inputs(batch))
        torch.testing.assert_close(found, Scan(reverse=True)(*inputs(batch)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 12, 13])
def test_no_tensor_is_padded_by_a_negative_number(length, reverse):
    # ExecuTorch takes no negative padding.
    scan = partial(doubling.selective_scan, initial_state=None, delta_softplus=True, reverse=reverse)
    graph = make_fx(scan)(*inputs(length=length)).graph
    pads = [node.args[1] for node in graph.nodes if node.target is torch.ops.aten.constant_pad_nd.default]
    assert length == 1 or pads
    assert all(size >= 0 for each in pads for size in each)


@without_shape_hook
def test_a_full_graph_compiles_and_has_the_same_gradients(fresh_compiler):
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    with use_backend("doubling"):
        results = []
        for function in (Scan(), compiled):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs()]
            y = function(*leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_decays_that_overflow_the_closed_form_are_harmless():
    # exp(-cumsum(dt A)) of these is exp(600): the banned form is infinite here.
    tensors = scan_inputs(1, 300, 2, 2)
    tensors["A"] = torch.full((2, 2), -2.0)
    tensors["delta"] = torch.ones(1, 300, 2)
    found = selective_scan_with_state(**tensors, backend="doubling")
    expected = selective_scan_with_state(**tensors, backend="reference")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_fake_and_meta_tensors_pass_through_it():
    tensors = [tensor.to("meta") for tensor in inputs()]
    assert Scan()(*tensors).shape == (2, 13, 4)
