"""CUDA, through cuda-bindings: the few runtime calls we make, each checked, and what there is to know about a GPU.

The runtime API works in a device's primary context, which torch, CuPy and TensorRT use too. PyCUDA makes a context of
its own unless told otherwise: `import pycuda.autoprimaryctx`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, cast

from samrt_engines.backends import cuda_device_count
from samrt_engines.errors import DeviceError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, and the driver that runs it."""

    index: int
    name: str
    capability: str
    """Compute capability, "8.6"."""
    driver: str
    """The CUDA version that the driver speaks, "13.0"."""
    memory_bytes: int


class Cuda:
    """The calls of one GPU. A failing one raises DeviceError with CUDA's name for the failure."""

    def __init__(self, runtime: Any, device: int = 0) -> None:
        """runtime: the module `cuda.bindings.runtime`; device: its number"""
        self._rt = runtime
        self.device = device

    def activate(self) -> None:
        """Make the GPU this thread's: every thread has a current one of its own."""
        self._call("cudaSetDevice", self.device)

    def describe(self) -> Device:
        rt = self._rt
        properties = self._call("cudaGetDeviceProperties", self.device)
        driver = self._call("cudaDriverGetVersion")
        name = properties.name.decode() if isinstance(properties.name, bytes) else properties.name
        major = self._call("cudaDeviceGetAttribute", rt.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor, self.device)
        minor = self._call("cudaDeviceGetAttribute", rt.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor, self.device)
        return Device(
            index=self.device,
            name=name.rstrip("\0"),
            capability=f"{major}.{minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
            memory_bytes=properties.totalGlobalMem,
        )

    def create_stream(self) -> int:
        """A stream that does not wait for the legacy default stream."""
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued on a stream is done. Failures of queued work show here."""
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        return int(self._call("cudaEventCreateWithFlags", self._rt.cudaEventDisableTiming))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """The event happens when all that is queued on the stream by now is done."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """What is queued on the stream from now on starts after the event. The host does not wait."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def join(self, waiting: int, running: int) -> None:
        """What is queued on one stream from now on starts after all that is queued on the other by now."""
        event = self.create_event()
        self.record(event, running)
        self.wait(waiting, event)
        self.destroy_event(event)  # CUDA keeps it until it has happened

    def create_pool(self) -> int:
        """A memory pool that keeps what was freed for the next allocation, until it is destroyed."""
        rt = self._rt
        properties = rt.cudaMemPoolProps()
        properties.allocType = rt.cudaMemAllocationType.cudaMemAllocationTypePinned
        properties.location.type = rt.cudaMemLocationType.cudaMemLocationTypeDevice
        properties.location.id = self.device
        pool = self._call("cudaMemPoolCreate", properties)
        # Without a threshold, every synchronisation gives the memory back to the driver and the next run asks anew.
        keep = rt.cuuint64_t(2**64 - 1)
        self._call("cudaMemPoolSetAttribute", pool, rt.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold, keep)
        return int(pool)

    def destroy_pool(self, pool: int) -> None:
        self._call("cudaMemPoolDestroy", pool)

    def allocate(self, size_bytes: int, pool: int, stream: int) -> int:
        """Device memory, for use on the stream from here on. Its address is a multiple of 256."""
        return int(self._call("cudaMallocFromPoolAsync", size_bytes, pool, stream))

    def free(self, address: int, stream: int) -> None:
        """Give memory back once all that is queued on the stream by now is done."""
        self._call("cudaFreeAsync", address, stream)

    def allocate_pinned(self, size_bytes: int) -> int:
        """Host memory that the GPU copies from and to by itself."""
        return int(self._call("cudaHostAlloc", size_bytes, self._rt.cudaHostAllocDefault))

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def copy(self, to: int, source: int, size_bytes: int, stream: int) -> None:
        """Queue a copy. Which side is host or device memory, CUDA knows by the addresses."""
        self._call("cudaMemcpyAsync", to, source, size_bytes, self._rt.cudaMemcpyKind.cudaMemcpyDefault, stream)

    def device_of(self, address: int) -> int | None:
        """The number of the GPU whose memory an address is in; None for host memory and memory CUDA does not know."""
        rt = self._rt
        attributes = self._call("cudaPointerGetAttributes", address)
        on_device = (rt.cudaMemoryType.cudaMemoryTypeDevice, rt.cudaMemoryType.cudaMemoryTypeManaged)
        return int(attributes.device) if attributes.type in on_device else None

    def begin_capture(self, stream: int) -> None:
        """What is queued on the stream from now on is noted down, not run."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """A graph that runs what was noted down. Free it with `destroy_graph`."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def drop_capture(self, stream: int) -> None:
        """End a capture that went wrong, whatever came of it."""
        _, graph = self._rt.cudaStreamEndCapture(stream)
        if graph is not None and int(graph):
            self._call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime. Its first result is the error code."""
        code, *results = getattr(self._rt, name)(*arguments)
        if code != self._rt.cudaError_t.cudaSuccess:
            raise DeviceError(f"CUDA failed in {name}", got=f"{_name_of(code)} on GPU {self.device}", fix=_fix(code))
        return results[0] if results else None


def open_cuda(device: int = 0) -> Cuda:
    """CUDA on one GPU, made this thread's.

    Raises DeviceError when no driver or no such GPU answers, MissingExtraError without cuda-bindings.
    """
    count = cuda_device_count()
    if count == 0:
        raise DeviceError(
            "no NVIDIA GPU answers",
            got="no driver, or one that finds no GPU",
            expected="a GPU and its driver",
            fix="samrt doctor, or backend='onnxruntime'",
        )
    if not 0 <= device < count:
        raise DeviceError("no such GPU", got=f"cuda:{device}", expected=f"cuda:0 to cuda:{count - 1}")
    cuda = Cuda(_import_runtime(), device)
    cuda.activate()
    return cuda


def _import_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise MissingExtraError.for_package(
            "cuda-bindings", extra="tensorrt", purpose="to run TensorRT plans", got=str(error)
        ) from error


def _name_of(code: Any) -> str:
    return cast(str, getattr(code, "name", str(code)))


_FIXES = {
    "cudaErrorMemoryAllocation": "smaller batches (`samrt build --max`), or free GPU memory: nvidia-smi lists who holds it",
    "cudaErrorInsufficientDriver": "a newer NVIDIA driver, or a cuda-bindings of the driver's CUDA version",
    "cudaErrorNotSupported": "a GPU and driver with memory pools (CUDA 11.2 or later, no vGPU without them)",
    "cudaErrorIllegalAddress": "start the process again: CUDA refuses all work after this error",
}


def _fix(code: Any) -> str | None:
    return _FIXES.get(_name_of(code))
