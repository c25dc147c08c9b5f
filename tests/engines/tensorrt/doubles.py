"""A GPU and a TensorRT that are not there, simulated so that order matters.

Nothing queued on a stream happens until the host waits for that stream; other streams stay behind, unless an event makes
them necessary. Freed memory is overwritten, and touching it is an error. Pinned memory is read when a copy happens,
not when it is queued. So a missing wait, an early free or a reused buffer gives wrong values or an error here.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

POISON = 0xCD

cudaError_t = Enum("cudaError_t", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorIllegalAddress": 700})
OK = cudaError_t.cudaSuccess


@dataclass
class Memory:
    """A block, by the address of its first byte. Aligned to 256 bytes as CUDA's are."""

    size: int
    kind: str
    live: bool = True

    def __post_init__(self) -> None:
        self.bytes = np.full(self.size + 256, POISON, np.uint8)
        self.address = -(-self.bytes.ctypes.data // 256) * 256

    @property
    def content(self) -> np.ndarray[Any, Any]:
        start = self.address - self.bytes.ctypes.data
        return self.bytes[start : start + self.size]


@dataclass
class Stream:
    queue: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0
    capturing: list[Callable[[], None]] | None = None


class CudaDouble:
    """`cuda.bindings.runtime`, as far as we call it. `calls` has what was called, in order: (name, arguments)."""

    cudaError_t = cudaError_t
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    cudaMemAllocationType = SimpleNamespace(cudaMemAllocationTypePinned=1)
    cudaMemLocationType = SimpleNamespace(cudaMemLocationTypeDevice=1)
    cudaMemPoolAttr = SimpleNamespace(cudaMemPoolAttrReleaseThreshold=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)
    cuuint64_t = int

    def __init__(self, *, name: str = "Double 4090", capability: tuple[int, int] = (8, 9)) -> None:
        self.name = name
        self.capability = capability
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.copies: list[tuple[tuple[str, str], int]] = []
        """From and to ("host", "gpu"), and bytes. Noted while that can be told: later another array may lie there."""
        self.memory: list[Memory] = []
        self.limit_bytes = 1 << 30
        self.streams: dict[int, Stream] = {0: Stream(), 1: Stream()}
        self.events: dict[int, tuple[Stream, int] | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.pools: set[int] = set()
        self._handles = itertools.count(100)
        self._working = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type) or name == "cudaMemPoolProps":
            return value

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            result = value(*arguments)
            return result if isinstance(result, tuple) else (OK, result) if result is not None else (OK,)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    # --- the simulation

    def at(self, address: int, size: int, *, kinds: tuple[str, ...] = ("device", "pinned")) -> np.ndarray[Any, Any]:
        """The live bytes at an address."""
        for block in self.memory:
            if block.address <= address and address + size <= block.address + block.size and block.kind in kinds:
                assert block.live, "memory used after it was freed"
                start = address - block.address
                return block.content[start : start + size]
        raise AssertionError(f"no {kinds} memory at {address:#x}")

    def knows(self, address: int) -> Memory | None:
        return next((b for b in self.memory if b.live and b.address <= address < b.address + b.size), None)

    def _place(self, address: int) -> str:
        block = self.knows(address)
        return "gpu" if block is not None and block.kind == "device" else "host"

    def new(self, size: int, kind: str = "device") -> Memory:
        block = Memory(size, kind)
        self.memory.append(block)
        return block

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        target = self.streams[stream]
        (target.queue if target.capturing is None else target.capturing).append(work)

    def drain(self, stream: Stream, upto: int | None = None) -> None:
        with self._working:  # another thread that waits for the same work comes back when it is done
            while stream.done < (len(stream.queue) if upto is None else upto):
                work = stream.queue[stream.done]
                stream.done += 1
                work()

    def live_bytes(self, kind: str = "device") -> int:
        return sum(block.size for block in self.memory if block.live and block.kind == kind)

    # --- CUDA's functions

    def cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return SimpleNamespace(name=self.name.encode() + b"\0\0", totalGlobalMem=self.limit_bytes)

    def cudaDriverGetVersion(self) -> int:
        return 13020

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, ...]:
        return OK, self.capability[attribute - 75]

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return handle

    def cudaStreamDestroy(self, stream: int) -> None:
        self.drain(self.streams.pop(stream))

    def cudaStreamSynchronize(self, stream: int) -> None:
        assert self.streams[stream].capturing is None, "waiting for a stream while it is captured"
        self.drain(self.streams[stream])

    def cudaEventCreateWithFlags(self, flags: int) -> int:
        handle = next(self._handles)
        self.events[handle] = None
        return handle

    def cudaEventDestroy(self, event: int) -> None:
        del self.events[event]

    def cudaEventRecord(self, event: int, stream: int) -> None:
        target = self.streams[stream]
        assert target.capturing is None, "an event of the outside in a capture"
        self.events[event] = (target, len(target.queue))

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        assert self.streams[stream].capturing is None, "an event of the outside in a capture"
        recorded = self.events[event]
        if recorded is not None:
            source, position = recorded
            self.enqueue(stream, lambda: self.drain(source, position))

    def cudaMemPoolProps(self) -> Any:
        return SimpleNamespace(location=SimpleNamespace())

    def cudaMemPoolCreate(self, properties: Any) -> int:
        assert properties.location.id == 0
        handle = next(self._handles)
        self.pools.add(handle)
        return handle

    def cudaMemPoolSetAttribute(self, pool: int, attribute: int, value: int) -> None:
        assert pool in self.pools

    def cudaMemPoolDestroy(self, pool: int) -> None:
        self.pools.remove(pool)

    def cudaMallocFromPoolAsync(self, size: int, pool: int, stream: int) -> Any:
        assert pool in self.pools
        assert stream in self.streams
        if self.live_bytes() + size > self.limit_bytes:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return self.new(size).address

    def cudaFreeAsync(self, address: int, stream: int) -> None:
        (block,) = (b for b in self.memory if b.live and b.address == address)

        def free() -> None:
            block.content[:] = POISON
            block.live = False

        self.enqueue(stream, free)

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        return self.new(size, "pinned").address

    def cudaFreeHost(self, address: int) -> None:
        (block,) = (b for b in self.memory if b.live and b.address == address)
        block.live = False

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        # Pageable memory is read by the time the call returns.
        self.copies.append(((self._place(source), self._place(to)), size))
        pageable = self.knows(source) is None
        taken = np.frombuffer(ctypes.string_at(source, size), np.uint8) if pageable else None

        def copy() -> None:
            content = self.at(source, size) if taken is None else taken
            if self.knows(to) is None:
                ctypes.memmove(to, content.ctypes.data, size)
            else:
                self.at(to, size)[:] = content

        self.enqueue(stream, copy)

    def cudaPointerGetAttributes(self, address: int) -> Any:
        block = self.knows(address)
        return SimpleNamespace(device=0, type=2 if block and block.kind == "device" else 0)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert stream not in (0, 1), "the default stream cannot be captured"
        assert self.streams[stream].capturing is None, "captured already"
        self.streams[stream].capturing = []

    def cudaStreamEndCapture(self, stream: int) -> int:
        noted = self.streams[stream].capturing
        assert noted is not None
        self.streams[stream].capturing = None
        handle = next(self._handles)
        self.graphs[handle] = noted
        return handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        handle = next(self._handles)
        self.graphs[handle] = self.graphs[graph]
        return handle

    def cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def cudaGraphExecDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:
        for work in self.graphs[graph]:
            self.enqueue(stream, work)


# --- TensorRT


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    BF16 = 7


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32}


@dataclass
class Graph:
    """What an engine of the double computes. Shapes have names where they are dynamic."""

    inputs: dict[str, tuple[DataType, tuple[int | str, ...]]]
    outputs: dict[str, tuple[DataType, tuple[int | str, ...]]]
    profile: dict[str, tuple[int, int, int]]
    compute: Callable[..., dict[str, np.ndarray[Any, Any]]]
    scratch_bytes_per: int = 1024
    """Scratch memory for every unit of the first symbol."""
    weights_bytes: int = 4096


class ICudaEngine:
    def __init__(self, trt: TensorRTDouble, graph: Graph) -> None:
        self._trt = trt
        self._graph = graph
        self._tensors = {**graph.inputs, **graph.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._graph.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name][1])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        shape, profile = self._tensors[name][1], self._graph.profile
        return [tuple(profile[size][at] if isinstance(size, str) else size for size in shape) for at in range(3)]

    def get_engine_stat(self, stat: int) -> int:
        return self._graph.weights_bytes

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._graph.scratch_bytes_per * max(sizes[2] for sizes in self._graph.profile.values())

    def create_execution_context(self, strategy: str) -> IExecutionContext:
        assert strategy == "USER_MANAGED"
        return IExecutionContext(self._trt, self._graph)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()


class EngineInspector:
    def get_engine_information(self, format: str) -> str:
        assert format == "JSON"
        return '{"Layers": []}'


class IExecutionContext:
    def __init__(self, trt: TensorRTDouble, graph: Graph) -> None:
        self._trt = trt
        self._graph = graph
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self.refuse = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._trt.note("set_input_shape", name, shape)
        self._shapes[name] = shape
        return not self._trt.refuse_shapes

    def infer_shapes(self) -> list[str]:
        return [name for name in self._graph.inputs if name not in self._shapes]

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, (_, shape) in self._graph.inputs.items():
            sizes |= {s: n for s, n in zip(shape, self._shapes[name], strict=True) if isinstance(s, str)}
        return sizes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._graph.inputs:
            return self._shapes[name]
        sizes = self._sizes()
        return tuple(sizes[s] if isinstance(s, str) else s for s in self._graph.outputs[name][1])

    def update_device_memory_size_for_shapes(self) -> int:
        return self._graph.scratch_bytes_per * max(self._sizes().values(), default=1)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        self._scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory, "TensorRT wants an address, for empty tensors too"
        assert memory % 256 == 0
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, graph = self._trt.cuda, self._graph
        self._trt.note("execute_async_v3", stream_handle)
        if self._trt.fail_execution:
            self._trt.log("enqueueV3: no kernel image")
            return False
        shapes = {name: self.get_tensor_shape(name) for name in (*graph.inputs, *graph.outputs)}
        addresses, (scratch, scratch_size) = dict(self._addresses), self._scratch

        def work() -> None:
            def array(name: str, dtype: DataType) -> np.ndarray[Any, Any]:
                size = int(np.prod(shapes[name])) * np.dtype(NUMPY[dtype]).itemsize
                return cuda.at(addresses[name], size, kinds=("device",)).view(NUMPY[dtype]).reshape(shapes[name])

            cuda.at(scratch, scratch_size, kinds=("device",))[:] = 7
            feeds = {name: array(name, dtype) for name, (dtype, _) in graph.inputs.items()}
            results = graph.compute(**feeds)
            for name, (dtype, _) in graph.outputs.items():
                array(name, dtype)[...] = results[name]

        cuda.enqueue(stream_handle, work)
        return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.engine_host_code_allowed = True

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        trt = TensorRTDouble.current
        trt.host_code_allowed = self.engine_host_code_allowed
        trt.runtimes += 1
        trt.logger = self._logger
        graph = trt.graphs.get(serialized_engine)
        if graph is None:
            trt.log("deserializeCudaEngine: magic tag does not match")
            return None
        return ICudaEngine(trt, graph)


class ILogger:
    Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)


class TensorRTDouble:
    """The package `tensorrt`, as far as running plans goes."""

    current: TensorRTDouble

    __version__ = "11.4.0.106"
    ILogger = ILogger
    Runtime = Runtime
    Builder = object
    DataType = DataType
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    EngineStat = SimpleNamespace(TOTAL_WEIGHTS_SIZE=0)
    LayerInformationFormat = SimpleNamespace(JSON="JSON")

    def __init__(self, cuda: CudaDouble, graphs: dict[bytes, Graph]) -> None:
        self.cuda = cuda
        self.graphs = graphs
        self.noted: list[tuple[Any, ...]] = []
        self.refuse_shapes = False
        self.fail_execution = False
        self.host_code_allowed: bool | None = None
        self.runtimes = 0
        self.logger: Any = None
        TensorRTDouble.current = self

    def note(self, *what: Any) -> None:
        self.noted.append(what)

    def log(self, message: str) -> None:
        self.logger.log(ILogger.Severity.ERROR, message)
