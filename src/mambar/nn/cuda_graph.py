"""Functions of tensors as CUDA graphs: one launch from Python instead of hundreds, with the same kernels."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

Result = TypeVar("Result")
# Calls of a signature without a graph. They compile kernels and allocate the workspaces of cuBLAS.
NUM_WARMUP_CALLS: Final = 2


class GraphedCall(Generic[Result]):
    """Calls `function(tensors)` and replays later calls from CUDA graphs, one for each signature.

    A signature consists of the names, shapes and dtypes of the tensors and of the caller's `state`. Its first two
    calls run `function`; the third captures it. The least recently used graph is dropped when there are `max_graphs`.

    `function` must launch the same kernels in each call with a signature: no reads of values on the CPU, no random
    numbers but those of PyTorch's CUDA generator, no tensors made on the CPU. What it returns is overwritten by the
    next call, as are the tensors that it writes to.
    """

    def __init__(self, function: Callable[[Mapping[str, Tensor]], Result], *, max_graphs: int = 8) -> None:
        self._function, self._max_graphs = function, max_graphs
        self._graphs: OrderedDict[Hashable, _Graph[Result]] = OrderedDict()
        self._num_calls: dict[Hashable, int] = {}
        # Warm-up and capture on one stream: autograd's nodes and cuBLAS's workspaces belong to a stream.
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, tensors: Mapping[str, Tensor], state: Hashable = None) -> Result:
        signature = (state, tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()))
        graph = self._graphs.get(signature)
        if graph is not None:
            self._graphs.move_to_end(signature)
            return graph.replay(tensors)
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._num_calls[signature] = self._num_calls.get(signature, 0) + 1
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        if self._num_calls[signature] <= NUM_WARMUP_CALLS:
            with torch.cuda.stream(self._stream):
                result = self._function(tensors)
            current.wait_stream(self._stream)
            return result
        del self._num_calls[signature]
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        graph = _Graph(self._function, tensors, pool=self._pool, stream=self._stream)
        self._graphs[signature] = graph
        return graph.replay(tensors)


class _Graph(Generic[Result]):
    """One captured call, with the memory of its arguments and of its result."""

    def __init__(
        self,
        function: Callable[[Mapping[str, Tensor]], Result],
        tensors: Mapping[str, Tensor],
        *,
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> None:
        self._arguments = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Other threads (a data loader's) may allocate pinned memory meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._result = function(self._arguments)

    def replay(self, tensors: Mapping[str, Tensor]) -> Result:
        for name, argument in self._arguments.items():
            argument.copy_(tensors[name], non_blocking=True)
        self._graph.replay()
        return self._result


def first_hook(model: nn.Module) -> str | None:
    """The name of the first module with a hook, or of the first parameter with one: a CUDA graph does not call them."""
    if _has_any_global_hook():
        return "all modules"
    for name, module in model.named_modules():
        if any(vars(module).get(kind) for kind in _HOOKS):
            return name or type(module).__name__
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:  # pyright: ignore[reportAttributeAccessIssue]
            return name
    return None


_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
