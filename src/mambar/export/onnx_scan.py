"""The op `mambar_export::scan_loop` as ONNX operators, written in onnxscript.

Type checks are off: onnxscript's stubs do not allow some arguments that its operators take.
"""
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op


# The exporter builds its graph in opset 18 and converts it to the requested opset.
@script(default_opset=op)
def scan_loop(dt: FLOAT, dtu: FLOAT, B: FLOAT, C: FLOAT, A: FLOAT) -> FLOAT:
    """One `Scan` over chunks of 8 steps for both directions; shapes as in `mambar_export::scan_loop`.

    The steps of a chunk are written out, because an iteration of a loop costs a runtime as much as several operators.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    eight = op.Constant(value_ints=[8])
    start = op.Mul(op.Mul(op.Slice(dt, zero, one, zero), op.Constant(value_float=0.0)), A)

    # Zeros fill the last chunk. Every size is given, because an empty batch leaves nothing to infer one from.
    length = op.Shape(dt, start=0, end=1)
    num_chunks = op.Div(op.Add(length, op.Constant(value_ints=[7])), eight)
    padded_length = op.Mul(num_chunks, eight)
    pads = op.Concat(zero, op.Sub(padded_length, length), axis=0)
    split = op.Concat(num_chunks, eight, axis=0)
    dt_shape = op.Concat(split, op.Shape(dt, start=1), axis=0)
    dt_chunks = op.Reshape(op.Pad(dt, pads, None, zero), dt_shape, allowzero=1)
    dtu_shape = op.Concat(split, op.Shape(dtu, start=1), axis=0)
    dtu_chunks = op.Reshape(op.Pad(dtu, pads, None, zero), dtu_shape, allowzero=1)
    B_shape = op.Concat(split, op.Shape(B, start=1), axis=0)
    B_chunks = op.Reshape(op.Pad(B, pads, None, zero), B_shape, allowzero=1)
    C_shape = op.Concat(split, op.Shape(C, start=1), axis=0)
    C_chunks = op.Reshape(op.Pad(C, pads, None, zero), C_shape, allowzero=1)

    # OpenVINO compiles a Scan only if the inputs of its body have a type; any shape will do.
    @graph()
    def body(state: FLOAT[...], dt_c: FLOAT[...], dtu_c: FLOAT[...], B_c: FLOAT[...], C_c: FLOAT[...]):
        dt0, dt1, dt2, dt3, dt4, dt5, dt6, dt7 = op.Split(dt_c, axis=0, num_outputs=8)
        x0, x1, x2, x3, x4, x5, x6, x7 = op.Split(dtu_c, axis=0, num_outputs=8)
        B0, B1, B2, B3, B4, B5, B6, B7 = op.Split(B_c, axis=0, num_outputs=8)
        C0, C1, C2, C3, C4, C5, C6, C7 = op.Split(C_c, axis=0, num_outputs=8)
        h0 = op.Add(op.Mul(state, op.Exp(op.Mul(dt0, A))), op.Mul(x0, B0))
        h1 = op.Add(op.Mul(h0, op.Exp(op.Mul(dt1, A))), op.Mul(x1, B1))
        h2 = op.Add(op.Mul(h1, op.Exp(op.Mul(dt2, A))), op.Mul(x2, B2))
        h3 = op.Add(op.Mul(h2, op.Exp(op.Mul(dt3, A))), op.Mul(x3, B3))
        h4 = op.Add(op.Mul(h3, op.Exp(op.Mul(dt4, A))), op.Mul(x4, B4))
        h5 = op.Add(op.Mul(h4, op.Exp(op.Mul(dt5, A))), op.Mul(x5, B5))
        h6 = op.Add(op.Mul(h5, op.Exp(op.Mul(dt6, A))), op.Mul(x6, B6))
        h7 = op.Add(op.Mul(h6, op.Exp(op.Mul(dt7, A))), op.Mul(x7, B7))
        y_c = op.Concat(
            op.MatMul(C0, h0),
            op.MatMul(C1, h1),
            op.MatMul(C2, h2),
            op.MatMul(C3, h3),
            op.MatMul(C4, h4),
            op.MatMul(C5, h5),
            op.MatMul(C6, h6),
            op.MatMul(C7, h7),
            axis=0,
        )
        return h7, y_c

    _, y = op.Scan(start, dt_chunks, dtu_chunks, B_chunks, C_chunks, body=body, num_scan_inputs=4)
    steps = op.Reshape(y, op.Concat(padded_length, op.Shape(dt, start=1), axis=0), allowzero=1)
    return op.Slice(steps, zero, length, zero)  # pyright: ignore[reportReturnType]
