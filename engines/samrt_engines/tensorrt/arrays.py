"""Arrays on the GPU: ours going out, anybody's coming in, by `__cuda_array_interface__` or DLPack and without a copy.

https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from samrt_engines import device
from samrt_engines.device import DeviceFeed, Memory
from samrt_engines.errors import TensorError
from samrt_engines.tensorrt import dlpack
from samrt_engines.tensorrt.memory import Pool
from samrt_engines.tensors import Array, TensorSpec

_LEGACY_STREAM = 1  # what the interface calls the default stream, since 0 could be either of two


class CudaArray:
    """A `DeviceArray`: C-contiguous, its memory freed when nobody holds it any more.

    torch.as_tensor(array, device="cuda"), torch.from_dlpack(array), cupy.asarray(array) and PyCUDA's kernels take it as it
    is. What computes it may still be queued on `stream`: work on that stream is in order, other work waits for it.
    """

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: str, stream: int) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._offset_bytes = 0
        self._memory = _Allocation(pool, self.nbytes, stream)

    @property
    def address(self) -> int:
        return self._memory.address + self._offset_bytes

    @property
    def stream(self) -> int:
        return self._memory.stream

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None if self._memory.settled else self.stream or _LEGACY_STREAM,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._memory.cuda.device

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> object:
        """`stream` is the consumer's, which is made to wait; None is the default stream, -1 says that no wait is needed."""
        theirs = _LEGACY_STREAM if stream is None else stream
        if theirs != -1:
            self.read_on(theirs)
        if theirs not in (-1, self.stream) and not self._memory.settled:
            self._memory.cuda.activate()
            self._memory.cuda.join(theirs, self.stream)
        return dlpack.export_capsule(self.address, self.shape, self.dtype, self.__dlpack_device__(), self)

    def numpy(self) -> Array:
        """A copy on the host. Waits until it is computed."""
        cuda = self._memory.cuda
        cuda.activate()
        result = np.empty(self.shape, self.dtype)
        if self.nbytes:
            cuda.copy(result.ctypes.data, self.address, self.nbytes, self.stream)
        cuda.synchronize(self.stream)
        return result

    def rows(self, start: int, stop: int) -> CudaArray:
        part = copy.copy(self)  # holds the same memory
        part.shape = (max(0, min(stop, self.shape[0]) - start), *self.shape[1:])
        part._offset_bytes += start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return part

    def __repr__(self) -> str:
        return f"CudaArray(shape={self.shape}, dtype={self.dtype}, device='cuda:{self._memory.cuda.device}')"

    def settle(self) -> None:
        """Say that it is computed: from now on it belongs to the default stream, which outlives all others."""
        self._memory.stream = 0
        self._memory.settled = True

    def read_on(self, stream: int) -> None:
        """Say that work on another stream reads this array: its memory is not given back before that work is done."""
        if stream != self.stream:
            self._memory.readers.add(stream)

    def was_read_on(self, stream: int) -> None:
        """Say that such work is done, and that the stream may be gone before the array is."""
        self._memory.readers.discard(stream)


class _Allocation:
    """The memory of an array and of all its parts. Freed, in stream order, when the last of them is gone."""

    def __init__(self, pool: Pool, size_bytes: int, stream: int) -> None:
        self.cuda = pool.cuda
        self.stream = stream
        self.settled = False
        self.readers: set[int] = set()
        self._pool = pool
        self.address = pool.allocate(size_bytes, stream)

    def __del__(self) -> None:
        address = getattr(self, "address", 0)
        if address:
            self.cuda.activate()
            for reader in self.readers:
                self.cuda.join(self.stream, reader)
            self._pool.free(address, self.stream)


def memory_of(feed: DeviceFeed, spec: TensorSpec, stream: int, graph: str) -> Memory:
    """Find a feed's memory, for use on our stream. DLPack on the GPU is understood too.

    Raises TensorError for what is no array, is not contiguous on the GPU, or does not give its memory away.
    """
    try:
        if _is_dlpack_on_gpu(feed):
            return _from_dlpack(feed, spec, stream, graph)
        return device.memory_of(feed, spec.name, graph)
    except TensorError:
        raise
    except (RuntimeError, BufferError, ValueError, TypeError) as error:
        raise TensorError(f"{graph}: input '{spec.name}' does not give its memory away", got=str(error)) from error


def nbytes(memory: Memory) -> int:
    return math.prod(memory.shape) * memory.dtype.itemsize


def _is_dlpack_on_gpu(feed: DeviceFeed) -> bool:
    if isinstance(feed, np.ndarray) or hasattr(feed, "__cuda_array_interface__"):
        return False
    return hasattr(feed, "__dlpack_device__") and feed.__dlpack_device__()[0] in (dlpack.CUDA, dlpack.CUDA_MANAGED)


def _from_dlpack(feed: DeviceFeed, spec: TensorSpec, stream: int, graph: str) -> Memory:
    capsule = feed.__dlpack__(stream=stream or _LEGACY_STREAM)  # makes our stream wait
    address, shape, dtype, strides = dlpack.read_capsule(capsule)
    interface = {
        "shape": shape,
        "typestr": dtype.str,
        "data": (address, False),
        "strides": None if strides is None else tuple(step * dtype.itemsize for step in strides),
    }
    found = device.memory_of(_Interface(interface), spec.name, graph)
    return Memory(found.pointer, shape, dtype, on_gpu=True, owner=capsule)


@dataclass(frozen=True)
class _Interface:
    __cuda_array_interface__: dict[str, Any]
