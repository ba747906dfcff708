"""Weights of the projections in eight bits, activations quantised as they come (onnxruntime's dynamic int8)."""

from pathlib import Path


def quantize(path: Path) -> None:
    """Rewrites an ONNX file: constant matrices become int8, one scale a column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    # onnxruntime trusts recorded shapes of values in between, and the exporter's are not what it expects.
    del model.graph.value_info[:]
    quantize_dynamic(
        model,
        str(path),
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
    )
