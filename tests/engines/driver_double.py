"""libcuda on a simulated GPU: what is queued on the default stream happens when the host waits for it."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from .tensorrt.doubles import POISON, CudaDouble, Memory

OUT_OF_MEMORY = 2


class DriverDouble:
    """`samrt_engines.backends.load_cuda_driver`'s library, as far as we call it. Shares a `CudaDouble`'s memory.

    Copies run late, and freed memory is overwritten at once: cuMemFree waits for nothing here. A number that C would cut to
    32 bits is an error.
    """

    def __init__(self, gpu: CudaDouble) -> None:
        self.gpu = gpu
        self.calls: Counter[str] = Counter()
        self.sizes: dict[str, list[int]] = {}
        """Bytes of each copy, by the function's name."""
        self.failing = ""
        """A function that fails from now on."""
        self.spare = 0
        """How often it still works before."""
        self.depth = 0
        """Contexts this thread is in."""
        self.retained = 0
        self._blocks: list[Memory] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self, f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            for argument in arguments:
                assert not isinstance(argument, int) or abs(argument) < 2**31, f"{name}: {argument} passed as an int"
            if name == self.failing:
                self.spare -= 1
            return 700 if name == self.failing and self.spare < 0 else function(*arguments) or 0

        return call

    def live(self) -> list[Memory]:
        """What was allocated here and not freed."""
        return [block for block in self._blocks if block.live]

    def forget(self) -> None:
        """Count copies anew, and let go of freed memory."""
        self.calls.clear()
        self.sizes.clear()
        self.gpu.calls.clear()
        self.gpu.memory[:] = [block for block in self.gpu.memory if block.live]
        self._blocks = self.live()

    def _cuDeviceGet(self, device: Any, index: int) -> None:
        device._obj.value = index

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> None:
        self.retained += 1
        context._obj.value = 4096 + device.value

    def _cuDevicePrimaryCtxRelease_v2(self, device: ctypes.c_int) -> None:
        self.retained -= 1

    def _cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> None:
        assert context.value == 4096
        self.depth += 1

    def _cuCtxPopCurrent_v2(self, context: Any) -> None:
        self.depth -= 1

    def _cuStreamSynchronize(self, stream: ctypes.c_void_p) -> None:
        self.gpu.drain(self.gpu.streams[stream.value or 0])

    def _cuMemAlloc_v2(self, pointer: Any, size: ctypes.c_size_t) -> int:
        assert self.depth == 1
        if self.gpu.live_bytes() + size.value > self.gpu.limit_bytes:
            return OUT_OF_MEMORY
        block = self.gpu.new(size.value)
        self._blocks.append(block)
        pointer._obj.value = block.address
        return 0

    def _cuMemFree_v2(self, pointer: ctypes.c_uint64) -> None:
        (block,) = (one for one in self.live() if one.address == pointer.value)
        block.content[:] = POISON
        block.live = False

    def _cuMemsetD8Async(
        self, to: ctypes.c_uint64, value: ctypes.c_ubyte, size: ctypes.c_size_t, stream: ctypes.c_void_p
    ) -> None:
        self._queue(stream, lambda: self._at(to.value, size.value).fill(value.value))

    def _cuMemcpyDtoDAsync_v2(
        self, to: ctypes.c_uint64, source: ctypes.c_uint64, size: ctypes.c_size_t, stream: ctypes.c_void_p
    ) -> None:
        self._note("cuMemcpyDtoDAsync_v2", size)

        def copy() -> None:
            self._at(to.value, size.value)[:] = self._at(source.value, size.value)

        self._queue(stream, copy)

    def _cuMemcpyHtoDAsync_v2(
        self, to: ctypes.c_uint64, source: ctypes.c_void_p, size: ctypes.c_size_t, stream: ctypes.c_void_p
    ) -> None:
        self._note("cuMemcpyHtoDAsync_v2", size)
        taken = np.frombuffer(ctypes.string_at(source, size.value), np.uint8)  # pageable: read before the call returns

        def copy() -> None:
            self._at(to.value, size.value)[:] = taken

        self._queue(stream, copy)

    def _cuMemcpyDtoHAsync_v2(
        self, to: ctypes.c_void_p, source: ctypes.c_uint64, size: ctypes.c_size_t, stream: ctypes.c_void_p
    ) -> None:
        self._note("cuMemcpyDtoHAsync_v2", size)
        self._queue(
            stream, lambda: ctypes.memmove(to, self._at(source.value, size.value).ctypes.data, size.value) and None
        )

    def _queue(self, stream: ctypes.c_void_p, work: Callable[[], None]) -> None:
        assert self.depth == 1, "no context"
        self.gpu.enqueue(stream.value or 0, work)

    def _at(self, address: int, size: int) -> np.ndarray[Any, Any]:
        return self.gpu.at(address, size, kinds=("device",))

    def _note(self, name: str, size: ctypes.c_size_t) -> None:
        self.sizes.setdefault(name, []).append(size.value)
