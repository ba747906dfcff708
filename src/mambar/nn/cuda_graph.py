"""Functions of tensors as CUDA graphs: one launch from Python instead of hundreds, with the same kernels."""

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mambar.nn.fused_forward import has_hooks
from mambar.ops.dispatch import active_backend

_LOG = logging.getLogger("mambar")
Result = TypeVar("Result")
Model = TypeVar("Model", bound=nn.Module)
# Calls of a signature without a graph. They compile kernels and allocate the workspaces of cuBLAS.
NUM_WARMUP_CALLS: Final = 2


class GraphedCalls(Generic[Result]):
    """Calls `function(tensors)` and replays later calls from CUDA graphs, one for each signature.

    A signature consists of the names, shapes and dtypes of the tensors and of the caller's `state`, which tells apart
    all else that a call depends on. Its first two calls run `function`; the third captures it. The least
    recently used graph is dropped when there are `max_graphs`.
    What cannot be captured runs without a graph, with one line in the log.

    `function` must launch the same kernels in each call with a signature: no reads of values on the CPU, no random
    numbers but those of PyTorch's CUDA generator, no tensors made on the CPU. What it returns is overwritten by the
    next call, as are the tensors that it writes to.
    """

    def __init__(self, max_graphs: int = 8) -> None:
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, _Graph[Result] | None] = OrderedDict()
        self._num_calls: dict[Hashable, int] = {}
        # Warm-up and capture on one stream: autograd's nodes and cuBLAS's workspaces belong to a stream.
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Graphs are neither copied nor stored.
        return type(self), (self._max_graphs,)

    def __call__(
        self,
        function: Callable[[Mapping[str, Tensor]], Result],
        tensors: Mapping[str, Tensor],
        state: Hashable = None,
    ) -> Result:
        signature = (state, tuple((name, t.shape, t.dtype, t.device) for name, t in tensors.items()))
        if signature in self._graphs:
            self._graphs.move_to_end(signature)
            graph = self._graphs[signature]
            return function(tensors) if graph is None else graph.replay(tensors)
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        count = self._num_calls.pop(signature, 0)
        if count < NUM_WARMUP_CALLS:
            while len(self._num_calls) >= self._max_graphs:
                self._num_calls.pop(next(iter(self._num_calls)))
            self._num_calls[signature] = count + 1
            with torch.cuda.stream(self._stream):
                result = function(tensors)
            current.wait_stream(self._stream)
            return result
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        self._graphs[signature] = self._capture(function, tensors)
        return self(function, tensors, state)

    def _capture(
        self, function: Callable[[Mapping[str, Tensor]], Result], tensors: Mapping[str, Tensor]
    ) -> "_Graph[Result] | None":
        assert self._stream is not None
        generator, state = torch.cuda.default_generators[self._stream.device.index], torch.cuda.get_rng_state()
        try:
            return _Graph(function, tensors, pool=self._pool, stream=self._stream)
        except RuntimeError as error:
            [first, *_] = str(error).splitlines() or [type(error).__name__]
            _LOG.warning("No CUDA graph of this call: %s", first)
            # A capture that CUDA ended leaves the generator in capture: every later random number would raise.
            fresh = torch.Generator(device=self._stream.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            return None


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
            argument.copy_(tensors[name])
        self._graph.replay()
        return self._result


def first_hook(model: nn.Module) -> str | None:
    """The name of the first module with a hook, or of the first parameter with one: a CUDA graph does not call them."""
    if _has_any_global_hook():
        return "every module"
    for name, module in model.named_modules():
        if any(vars(module).get(kind) for kind in _HOOKS):
            return name or type(module).__name__
    for name, parameter in model.named_parameters():
        hooks: Any = parameter
        if hooks._backward_hooks or hooks._post_accumulate_grad_hooks:
            return name
    return None


_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def use_cuda_graphs(model: Model, *, max_graphs: int = 8) -> Model:
    """Lets a model on an NVIDIA GPU replay its forward pass from CUDA graphs, one for each shape of images.

    A graph is replayed in evaluation mode without gradients, from the third call with a shape on; all other calls are
    as before. Weights may change: in place they are followed, after a replacement (of a tensor, a module, a hook) the
    graph is captured again. Results are the same bits, in tensors of their own.

        model = mambar.use_cuda_graphs(mambar.load("runs/base", device="cuda"))

    Args:
        model: The model, changed in place: its methods `forward`, `tokens` and `coarse_logits` where it has them.
        max_graphs: Graphs that are kept, each with the memory of its activations; the least recently used one goes.

    Returns:
        The same model.
    """
    graphs: GraphedCalls[Any] = GraphedCalls(max_graphs)
    for name in ("forward", "tokens", "coarse_logits"):
        if callable(getattr(type(model), name, None)):
            setattr(model, name, _GraphedMethod(model, name, graphs))
    return model


class _GraphedMethod:
    """A method whose first argument is a batch of images, replayed from CUDA graphs where that is safe."""

    def __init__(self, model: nn.Module, name: str, graphs: GraphedCalls[Any]) -> None:
        self._model, self._name, self._graphs = model, name, graphs

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> Any:
        run = getattr(type(self._model), self._name)
        if (
            not isinstance(images, Tensor)
            or not images.is_cuda
            or torch.is_grad_enabled()
            or self._model.training
            or torch.compiler.is_compiling()
            or torch.cuda.is_current_stream_capturing()
        ):
            return run(self._model, images, *arguments, **options)
        addresses = _addresses_without_hooks(self._model)
        if addresses is None:
            return run(self._model, images, *arguments, **options)
        state = (
            *(self._name, _frozen(arguments), _frozen(sorted(options.items())), addresses),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
            torch.get_float32_matmul_precision(),
            active_backend(),
        )

        def call(given: Mapping[str, Tensor]) -> Any:
            return run(self._model, given["images"], *arguments, **options)

        return _copy(self._graphs(call, {"images": images}, state))


def _addresses_without_hooks(model: nn.Module) -> tuple[int, ...] | None:
    """The addresses of all parameters and buffers; None if calling a module inside does more than its `forward`."""
    addresses: list[int] = []
    modules = [model]
    while modules:
        module = modules.pop()
        # The model's own hooks run around the method.
        if module is not model and has_hooks(module):
            return None
        modules += [child for child in module._modules.values() if child is not None]
        addresses.append(id(module))
        addresses += [each.data_ptr() for each in module._parameters.values() if each is not None]
        addresses += [each.data_ptr() for each in module._buffers.values() if each is not None]
    return tuple(addresses)


def _frozen(value: Any) -> Hashable:
    """A hashable form of arguments: lists and tuples become tuples."""
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple | range) else value


def _copy(result: Any) -> Any:
    """The result in memory of its own: the next replay overwrites that of the graph."""
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, list | tuple):
        copied: Iterable[Any] = (_copy(each) for each in result)
        return type(result)(copied)
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.replace(
            result, **{field.name: _copy(getattr(result, field.name)) for field in dataclasses.fields(result)}
        )
    return result
