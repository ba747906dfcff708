"""Dynamic int8 quantization with onnxruntime: int8 weights, activations quantized at run time."""

from pathlib import Path


def quantize(path: Path) -> None:
    """Quantizes the constant matrices of an ONNX file in place, with one scale per column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    # onnxruntime uses the recorded shapes of intermediate values; the exporter's have the wrong form for it.
    del model.graph.value_info[:]
    quantize_dynamic(
        model,
        str(path),
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
    )
