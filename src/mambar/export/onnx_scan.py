"""The op `mambar_export::scan_loop` as ONNX operators, written in onnxscript.

Type checks are off: onnxscript's stubs do not allow some arguments that its operators take.
"""
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from onnxscript import BOOL, FLOAT, graph, script
from onnxscript import opset18 as op


# The exporter builds its graph in opset 18 and converts it to the requested opset.
@script(default_opset=op)
def scan_loop(dt: FLOAT, dtu: FLOAT, B: FLOAT, C: FLOAT, A: FLOAT) -> FLOAT:
    """One `Scan` over all images and their chunks of 8 steps, for both directions; shapes as in `scan_loop.py`.

    The steps of a chunk are written out, because an iteration of a loop costs a runtime as much as several operators.
    The images are part of the loop, so that the sizes inside it are fixed, which saves OpenVINO a third of the time.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    eight = op.Constant(value_ints=[8])
    num_chunks = op.Div(op.Shape(dt, start=1, end=2), eight)
    total = op.Mul(op.Shape(dt, start=0, end=1), num_chunks)
    index = op.Range(op.Constant(value_int=0), op.Squeeze(total), op.Constant(value_int=1))
    # False at the first chunk of an image.
    continues = op.Unsqueeze(op.Not(op.Equal(op.Mod(index, num_chunks), zero)), one)

    # Every size is given, because an empty batch leaves nothing to infer one from.
    split = op.Concat(total, eight, axis=0)
    dt_chunks = op.Reshape(dt, op.Concat(split, op.Shape(dt, start=2), axis=0), allowzero=1)
    dtu_chunks = op.Reshape(dtu, op.Concat(split, op.Shape(dtu, start=2), axis=0), allowzero=1)
    B_chunks = op.Reshape(B, op.Concat(split, op.Shape(B, start=2), axis=0), allowzero=1)
    C_chunks = op.Reshape(C, op.Concat(split, op.Shape(C, start=2), axis=0), allowzero=1)

    # OpenVINO compiles a Scan only if the inputs of its body have a type; any shape will do.
    @graph()
    def body(
        state: FLOAT[...],
        continues_c: BOOL[...],
        dt_c: FLOAT[...],
        dtu_c: FLOAT[...],
        B_c: FLOAT[...],
        C_c: FLOAT[...],
    ):
        start = op.Where(continues_c, state, op.Constant(value_float=0.0))
        dt0, dt1, dt2, dt3, dt4, dt5, dt6, dt7 = op.Split(dt_c, axis=0, num_outputs=8)
        x0, x1, x2, x3, x4, x5, x6, x7 = op.Split(dtu_c, axis=0, num_outputs=8)
        B0, B1, B2, B3, B4, B5, B6, B7 = op.Split(B_c, axis=0, num_outputs=8)
        h0 = op.Add(op.Mul(start, op.Exp(op.Mul(dt0, A))), op.Mul(x0, B0))
        h1 = op.Add(op.Mul(h0, op.Exp(op.Mul(dt1, A))), op.Mul(x1, B1))
        h2 = op.Add(op.Mul(h1, op.Exp(op.Mul(dt2, A))), op.Mul(x2, B2))
        h3 = op.Add(op.Mul(h2, op.Exp(op.Mul(dt3, A))), op.Mul(x3, B3))
        h4 = op.Add(op.Mul(h3, op.Exp(op.Mul(dt4, A))), op.Mul(x4, B4))
        h5 = op.Add(op.Mul(h4, op.Exp(op.Mul(dt5, A))), op.Mul(x5, B5))
        h6 = op.Add(op.Mul(h5, op.Exp(op.Mul(dt6, A))), op.Mul(x6, B6))
        h7 = op.Add(op.Mul(h6, op.Exp(op.Mul(dt7, A))), op.Mul(x7, B7))
        return h7, op.MatMul(C_c, op.Concat(h0, h1, h2, h3, h4, h5, h6, h7, axis=0))

    empty_state = op.Mul(A, op.Constant(value_float=0.0))
    _, y = op.Scan(empty_state, continues, dt_chunks, dtu_chunks, B_chunks, C_chunks, body=body, num_scan_inputs=5)
    return op.Reshape(y, op.Shape(dt), allowzero=1)  # pyright: ignore[reportReturnType]
