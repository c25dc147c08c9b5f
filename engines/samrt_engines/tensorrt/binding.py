"""An execution context: told shapes and addresses, it queues the kernels of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samrt_engines.errors import BackendError
from samrt_engines.tensorrt.engine import Engine
from samrt_engines.tensorrt.libraries import TensorRT
from samrt_engines.tensorrt.messages import collect_errors

Shape = tuple[int, ...]

_MOST_SHAPES = 256  # whose results are remembered


@dataclass(frozen=True, slots=True)
class Bound:
    """What follows from the inputs' shapes."""

    inputs: tuple[tuple[str, Shape], ...]
    outputs: dict[str, Shape]
    scratch_bytes: int


class Binding:
    """The execution context of one executor, whose scratch memory is ours to give. Not safe for threads."""

    def __init__(self, engine: Engine, tensorrt: TensorRT, *, cuda_graphs: bool, name: str) -> None:
        self._trt = tensorrt.module
        self._engine = engine.engine
        self._outputs = [spec.name for spec in engine.outputs]
        self._name = name
        self._known: dict[tuple[tuple[str, Shape], ...], Bound] = {}
        self._set: Bound | None = None  # what the context is set to
        self._context = self._create_context(tensorrt, cuda_graphs)

    @property
    def weights_bytes(self) -> int:
        return int(self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE))

    @property
    def scratch_bytes(self) -> int:
        """What the largest run of the profile needs."""
        return int(self._engine.get_device_memory_size_for_profile_v2(0))

    def layers(self) -> str:
        """JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def bind(self, shapes: Mapping[str, Shape]) -> Bound:
        """Set the inputs' shapes. Raises BackendError when TensorRT refuses them."""
        wanted = tuple(shapes.items())
        known = self._known.get(wanted)
        if known is not None and known is self._set:
            return known
        with collect_errors() as messages:
            accepted = all(self._context.set_input_shape(tensor, shape) for tensor, shape in wanted)
            missing = self._context.infer_shapes() if accepted else []
            if not accepted or missing:
                self._set = None  # some of the shapes are set
                got = messages.text() if not accepted else f"no shape for {', '.join(missing)}"
                raise BackendError(f"{self._name}: TensorRT refuses the inputs' shapes", got=got)
            scratch = self._context.update_device_memory_size_for_shapes()
        if known is None:
            outputs = {name: self._output_shape(name) for name in self._outputs}
            known = Bound(wanted, outputs, scratch)
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            self._known[wanted] = known
        self._set = known
        return known

    def enqueue(self, bound: Bound, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        """Queue one run. All memory has to stay until the stream is through with it."""
        assert bound is self._set, "bind and enqueue belong together, under one lock"
        with collect_errors() as messages:
            self._context.set_device_memory(scratch, bound.scratch_bytes)
            accepted = all(self._context.set_tensor_address(name, where) for name, where in addresses.items())
            if not accepted or not self._context.execute_async_v3(stream):
                raise BackendError(f"{self._name}: TensorRT failed", got=messages.text())

    def _create_context(self, tensorrt: TensorRT, cuda_graphs: bool) -> Any:
        trt = self._trt
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with collect_errors() as messages:
            if cuda_graphs and tensorrt.captures_cuda_graphs:
                config = self._engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(user_managed)
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                context = self._engine.create_execution_context(config)
            else:
                context = self._engine.create_execution_context(user_managed)
            if context is None:
                raise BackendError(f"{self._name}: TensorRT cannot set up the engine", got=messages.text())
        return context

    def _output_shape(self, name: str) -> Shape:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise BackendError(
                f"{self._name}: the shape of output '{name}' depends on data", got=str(shape), expected="sizes"
            )
        return shape


def largest_shapes(inputs: Sequence[Any], ranges: Mapping[str, tuple[int, int]]) -> dict[str, Shape]:
    """The inputs' shapes with every symbol at its largest. inputs: `TensorSpec`s"""
    return {
        spec.name: tuple(ranges[size][1] if isinstance(size, str) else size for size in spec.shape) for spec in inputs
    }
