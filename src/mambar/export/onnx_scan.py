"""The op `mambar_export::scan_loop` as ONNX operators, written in onnxscript.

Type checks are off: onnxscript's stubs do not allow some arguments that its operators take.
"""
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op


# The exporter builds its graph in opset 18 and converts it to the requested opset.
@script(default_opset=op)
def scan_loop(dt: FLOAT, dtu: FLOAT, B: FLOAT, C: FLOAT, A: FLOAT) -> FLOAT:
    """One `Scan` over the first axis for both directions; shapes as in `mambar_export::scan_loop`."""
    last = op.Constant(value_ints=[-1])
    two = op.Constant(value_ints=[2])
    one = op.Constant(value_ints=[1])
    none = op.Constant(value_ints=[0])
    first = op.Squeeze(op.Slice(dt, none, one, none), none)
    begin = op.Mul(op.Mul(op.Unsqueeze(first, two), op.Constant(value_float=0.0)), A)

    # OpenVINO compiles a Scan only if the inputs of its body have a type; any shape will do.
    @graph()
    def body(state: FLOAT[...], dt_t: FLOAT[...], dtu_t: FLOAT[...], B_t: FLOAT[...], C_t: FLOAT[...]):
        decay = op.Exp(op.Mul(op.Unsqueeze(dt_t, two), A))
        added = op.Mul(op.Unsqueeze(dtu_t, two), op.Unsqueeze(B_t, last))
        next_state = op.Add(op.Mul(state, decay), added)
        y_t = op.Squeeze(op.MatMul(op.Unsqueeze(C_t, two), next_state), two)
        return next_state, y_t

    _, y = op.Scan(begin, dt, dtu, B, C, body=body, num_scan_inputs=4)
    return y
