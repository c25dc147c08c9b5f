"""Memory on a GPU that is written in place, a part at a time: for what has to outlast the runs that computed it.

It goes through the CUDA driver alone, in the primary context, which TensorRT, ONNX Runtime, torch and CuPy share: any of
them may have computed what is copied here, and any of them may read it.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from samrt_engines.backends import load_cuda_driver
from samrt_engines.device import DeviceFeed, DriverCall, in_primary_context, memory_of, wait_for_stream
from samrt_engines.errors import DeviceError, TensorError
from samrt_engines.tensors import Array

_DLPACK_CUDA = 2  # of DLPack's device types
_DEFAULT_STREAM = ctypes.c_void_p(0)
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class DeviceBlock:
    """A `DeviceArray` that begins as zeros and is filled by copies that stay on the GPU. C-contiguous.

    Copies are queued on the default stream and run behind the caller's back; what they read from is held until they are
    done. Whoever asks for the block's memory waits for them first. Work that reads the block has to be done before the next
    `write`: an executor's runs are, by the time they return. Its memory is freed when neither the block nor a part of it is
    held. Not safe for threads.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any] | type | str, device: int) -> None:
        """device: number of the GPU. Raises DeviceError when there is no driver or not enough memory."""
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._offset_bytes = 0
        self._memory = _Allocation(self.nbytes, device)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def device(self) -> str:
        """Where it is: "cuda:N"."""
        return f"cuda:{self._memory.device}"

    def write(self, value: DeviceFeed, *at: int) -> None:
        """Copy a tensor into block[at], from its start as far as the tensor goes; its shape does not matter.

        value: of the block's dtype, contiguous, on this GPU or on the host
        at: indices of the first axes; none is the whole block
        Raises TensorError for a value that does not fit, DeviceError when CUDA fails.
        """
        target = self.part(*at)
        memory = memory_of(value, "value", "a block on the GPU")
        size_bytes = math.prod(memory.shape) * memory.dtype.itemsize
        if memory.dtype != self.dtype or size_bytes > target.nbytes:
            raise TensorError(
                f"a value does not fit into a block on {self.device}",
                got=f"{memory.dtype} {memory.shape}",
                expected=f"{self.dtype}, at most {target.shape}",
            )
        if memory.stream is not None:
            wait_for_stream(memory.stream, self._memory.device)
        if size_bytes:
            self._memory.copy(target._address, memory.pointer, size_bytes, from_gpu=memory.on_gpu, owner=memory.owner)

    def wait(self) -> None:
        """Wait for the copies that still run, and let go of what they read from."""
        self._memory.wait()

    def part(self, *at: int) -> DeviceBlock:
        """block[at] for indices of the first axes: the same memory, which stays with both."""
        index = 0
        for position, size in zip(at, self.shape, strict=False):
            assert 0 <= position < size, f"{at} in {self.shape}"
            index = index * size + position
        return self._view(self.shape[len(at) :], index)

    def rows(self, start: int, stop: int) -> DeviceBlock:
        view = self._view(self.shape[1:], start)
        view.shape = (max(0, min(stop, self.shape[0]) - start), *view.shape)
        return view

    def numpy(self) -> Array:
        """A copy on the host."""
        result = np.empty(self.shape, self.dtype)
        if self.nbytes:
            self._memory.download(result, self._address)
        return result

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._memory.wait()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # nothing to wait for any more
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self._memory.device

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        from samrt_engines.tensorrt.dlpack import export_capsule

        self._memory.wait()
        return export_capsule(self._address, self.shape, self.dtype, self.__dlpack_device__(), self)

    def __repr__(self) -> str:
        return f"DeviceBlock(shape={self.shape}, dtype={self.dtype}, device={self.device!r})"

    @property
    def _address(self) -> int:
        return self._memory.address + self._offset_bytes

    def _view(self, shape: tuple[int, ...], index: int) -> DeviceBlock:
        """The item of this shape that `index` such items come before."""
        view = copy.copy(self)  # holds the same memory
        view.shape = shape
        view._offset_bytes += index * view.nbytes
        return view


class _Allocation:
    """The memory of a block and of all its parts, and the copies into it that may still run."""

    def __init__(self, size_bytes: int, device: int) -> None:
        self.device = device
        self.address = 0
        self._sources: list[Any] = []  # of copies that may still run
        driver = load_cuda_driver()
        if driver is None:
            raise DeviceError("there is no CUDA driver to keep tensors on a GPU with", fix="samrt doctor")
        self._driver = driver
        with self._context("allocating GPU memory") as call:
            pointer = ctypes.c_uint64()
            fixes = {_OUT_OF_MEMORY: "fewer objects at once, or free GPU memory: nvidia-smi lists who holds it"}
            call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size_bytes)), fixes=fixes)
            self.address = pointer.value
            if size_bytes:
                size = ctypes.c_size_t(size_bytes)
                call("cuMemsetD8Async", ctypes.c_uint64(self.address), ctypes.c_ubyte(0), size, _DEFAULT_STREAM)
        self._sources.append(None)  # the zeros are under way

    def copy(self, to: int, source: int, size_bytes: int, *, from_gpu: bool, owner: Any) -> None:
        """Queue a copy."""
        name, pointer = ("cuMemcpyDtoDAsync_v2", ctypes.c_uint64) if from_gpu else ("cuMemcpyHtoDAsync_v2", _host)
        with self._context("copying to GPU memory") as call:
            call(name, ctypes.c_uint64(to), pointer(source), ctypes.c_size_t(size_bytes), _DEFAULT_STREAM)
        self._sources.append(owner)

    def download(self, result: Array, source: int) -> None:
        """Copy to the host; done on return. What was queued before is done, too."""
        with self._context("copying from GPU memory") as call:
            size = ctypes.c_size_t(result.nbytes)
            call("cuMemcpyDtoHAsync_v2", _host(result.ctypes.data), ctypes.c_uint64(source), size, _DEFAULT_STREAM)
            call("cuStreamSynchronize", _DEFAULT_STREAM)
        self._sources.clear()

    def wait(self) -> None:
        """Wait for the copies that still run."""
        if self._sources:
            with self._context("copying to GPU memory") as call:
                call("cuStreamSynchronize", _DEFAULT_STREAM)
            self._sources.clear()

    @contextlib.contextmanager
    def _context(self, doing: str) -> Iterator[DriverCall]:
        with in_primary_context(self._driver, self.device, doing) as call:
            yield call

    def __del__(self) -> None:
        # The end of a process frees everything, and the driver may be gone before this object is.
        if not getattr(self, "address", 0) or sys.is_finalizing():
            return
        with contextlib.suppress(DeviceError):
            self.wait()
        with contextlib.suppress(DeviceError), self._context("freeing GPU memory") as call:
            call("cuMemFree_v2", ctypes.c_uint64(self.address))


def _host(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)
