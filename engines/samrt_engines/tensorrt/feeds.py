"""What a caller hands to `run_device`: used where it lies on the GPU, or uploaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samrt_engines.device import DeviceFeed, Memory, check_device_feeds
from samrt_engines.errors import TensorError
from samrt_engines.tensorrt.arrays import CudaArray, memory_of, nbytes
from samrt_engines.tensorrt.memory import Pool
from samrt_engines.tensors import TensorSpec

_ALIGNMENT = 256  # bytes, of every address that TensorRT is given


class DeviceFeeds:
    """The feeds of one run, checked before anything is queued."""

    def __init__(
        self,
        feeds: Mapping[str, DeviceFeed],
        specs: Sequence[TensorSpec],
        ranges: Mapping[str, tuple[int, int]],
        *,
        pool: Pool,
        stream: int,
        graph: str,
    ) -> None:
        """Raises TensorError for feeds that are not the graph's, or not on this GPU."""
        self._pool = pool
        self._stream = stream
        known = {spec.name: spec for spec in specs}
        unknown = TensorSpec("", "float32", ())  # names that are not the graph's: `check_device_feeds` says which
        self._memory = {name: memory_of(feed, known.get(name, unknown), stream, graph) for name, feed in feeds.items()}
        check_device_feeds(self._memory, specs, ranges=ranges, graph=graph)
        for name, memory in self._memory.items():
            _check_place(memory, name, pool, graph)
        self.shapes = {spec.name: self._memory[spec.name].shape for spec in specs}

    def wait(self) -> None:
        """Let our stream wait for the streams on which the feeds are computed."""
        for memory in self._memory.values():
            if memory.stream is not None and memory.stream != self._stream:
                self._pool.cuda.join(self._stream, memory.stream)

    def place(self, name: str, nowhere: int) -> tuple[int, object]:
        """An aligned address of a feed on the GPU, and what keeps it there. `nowhere` is any address, for empty feeds."""
        memory = self._memory[name]
        if not nbytes(memory):
            return nowhere, memory
        if memory.on_gpu and memory.pointer % _ALIGNMENT == 0:
            return memory.pointer, memory
        copy = CudaArray(self._pool, memory.shape, memory.dtype.str, self._stream)
        self.copy_to(name, copy.address)
        return copy.address, copy

    def copy_to(self, name: str, address: int) -> None:
        """Queue a copy of a feed to an address on the GPU.

        From pageable memory: CUDA has read it by the time this returns, so the caller may change it.
        """
        memory = self._memory[name]
        if nbytes(memory):
            self._pool.cuda.copy(address, memory.pointer, nbytes(memory), self._stream)

    def queued(self) -> None:
        """All that reads the feeds is queued: their memory may be used again after that, on whatever stream."""
        for memory in self._memory.values():
            if isinstance(memory.owner, CudaArray):
                memory.owner.read_on(self._stream)
            elif memory.stream is not None and memory.stream != self._stream:
                self._pool.cuda.join(memory.stream, self._stream)

    def read(self) -> None:
        """All that was queued is done."""
        for memory in self._memory.values():
            if isinstance(memory.owner, CudaArray):
                memory.owner.was_read_on(self._stream)


def _check_place(memory: Memory, name: str, pool: Pool, graph: str) -> None:
    if not memory.on_gpu or not nbytes(memory):
        return
    found = pool.cuda.device_of(memory.pointer)
    if found != pool.cuda.device:
        raise TensorError(
            f"{graph}: input '{name}' is not on the graph's GPU",
            got="memory that this CUDA context does not know" if found is None else f"cuda:{found}",
            expected=f"cuda:{pool.cuda.device}",
            fix="with PyCUDA: import pycuda.autoprimaryctx, not pycuda.autoinit" if found is None else None,
        )
