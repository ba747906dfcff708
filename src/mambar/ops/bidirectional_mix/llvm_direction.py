"""Arguments of kernels that compute both directions."""

from llvmlite import ir

from mambar.ops.llvm.functions import TaskFunction
from mambar.ops.llvm.memory_layout import TaskTensors


def direction_arguments(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the arguments of both directions, those of the forward direction first."""
    return tuple(f"{direction}_{name}" for direction in ("forward", "backward") for name in names)


def direction_tensors(
    function: TaskFunction, own: tuple[str, ...], is_backward: ir.Value, item: ir.Value, channel: ir.Value, dtype: str
) -> TaskTensors:
    """The tensors of one direction, by argument names without the prefix of the direction."""

    def read(name: str) -> ir.Value:
        if name not in own:
            return function.integer(name)
        return function.builder.select(
            is_backward, function.integer(f"backward_{name}"), function.integer(f"forward_{name}")
        )

    return TaskTensors(function=function, argument=read, item=item, channel=channel, dtype=dtype)
