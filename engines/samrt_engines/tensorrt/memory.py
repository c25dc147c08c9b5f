"""Device memory: a pool, buffers that grow, pinned host memory, and the one scratch block that graphs share.

All device memory is allocated and freed in stream order: a block is free for the next user on a stream once what was
queued there before is done, without the host waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import numpy as np

from samrt_engines.tensorrt.cuda import Cuda
from samrt_engines.tensors import Array

_ALIGNMENT = 256  # bytes; sizes are rounded up to it, so that empty tensors have an address too


class Pool:
    """Device memory of one GPU. Freed memory stays here for the next allocation, until the pool is closed."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._pool = cuda.create_pool()
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}  # address -> bytes
        self._closed = False
        self.peak_bytes = 0
        """The most that was allocated at once."""

    @property
    def used_bytes(self) -> int:
        return sum(self._sizes.values())

    def allocate(self, size_bytes: int, stream: int) -> int:
        """An address, a multiple of 256, for use on the stream. Raises DeviceError when memory is short."""
        size = rounded_up(size_bytes)
        address = self.cuda.allocate(size, self._pool, stream)
        with self._lock:
            self._sizes[address] = size
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return address

    def free(self, address: int, stream: int) -> None:
        """Give memory back after what is queued on the stream."""
        with self._lock:
            del self._sizes[address]
        self.cuda.free(address, stream)

    def close(self) -> None:
        """Blocks that are still in use stay until they are freed, as CUDA promises."""
        if not self._closed:
            self._closed = True
            self.cuda.destroy_pool(self._pool)


class Block:
    """Device memory that grows and keeps its largest size. Not safe for threads: its owner holds a lock."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.address = 0
        self.size_bytes = 0

    def grow(self, size_bytes: int, stream: int) -> int:
        """The address of at least that many bytes. Contents are lost where the block has to move.

        What is queued on the stream may still use the old place; the caller sees to it that nobody else does.
        """
        if self.address == 0 or size_bytes > self.size_bytes:
            self.release(stream)  # first: the two need not fit side by side
            self.address = self._pool.allocate(size_bytes, stream)
            self.size_bytes = rounded_up(size_bytes)
        return self.address

    def release(self, stream: int) -> None:
        if self.address:
            self._pool.free(self.address, stream)
        self.address = self.size_bytes = 0


class Scratch:
    """The memory that graphs compute in, one block for all that share it: it is as large as the largest needs.

    Graphs that share it run one after another, on whatever streams: each waits, on the GPU, for the one before.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.pool = Pool(cuda)
        self.cuda = cuda
        self._block = Block(self.pool)
        self._free_event = cuda.create_event()
        self._used = False
        self._closed = False
        self._lock = threading.RLock()

    @property
    def size_bytes(self) -> int:
        return self._block.size_bytes

    @contextlib.contextmanager
    def lend(self, size_bytes: int, stream: int) -> Iterator[int]:
        """The block's address, for what is queued on the stream inside the `with`. One thread at a time is inside."""
        with self._lock:
            if self._used:
                self.cuda.wait(stream, self._free_event)
            address = self._block.grow(size_bytes, stream)
            try:
                yield address
            finally:
                self.cuda.record(self._free_event, stream)
                self._used = True

    def close(self) -> None:
        """Free it, once no executor uses it any more. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.cuda.activate()
            stream = self.cuda.create_stream()
            if self._used:
                self.cuda.wait(stream, self._free_event)
            self._block.release(stream)
            self.cuda.synchronize(stream)
            self.cuda.destroy_stream(stream)
            self.cuda.destroy_event(self._free_event)
            self.pool.close()


class Staging:
    """Pinned host memory by tensor name, each growing to the largest size it had. Not safe for threads."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._blocks: dict[str, tuple[int, int]] = {}  # name -> address, bytes

    def view(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[int, Array]:
        """An address, and the array that lies there. No copy to or from the old place may be under way."""
        count = int(np.prod(shape, dtype=np.int64))
        size = rounded_up(count * np.dtype(dtype).itemsize)
        address, capacity = self._blocks.get(name, (0, 0))
        if size > capacity:
            if address:
                del self._blocks[name]
                self._cuda.free_pinned(address)
            address = self._cuda.allocate_pinned(size)
            self._blocks[name] = (address, size)
        memory = memoryview((ctypes.c_ubyte * size).from_address(address))
        return address, np.frombuffer(memory, dtype, count).reshape(shape)

    def close(self) -> None:
        while self._blocks:
            _, (address, _) = self._blocks.popitem()
            self._cuda.free_pinned(address)


def rounded_up(size_bytes: int) -> int:
    """To a multiple of 256, and at least that."""
    return max(1, -(-size_bytes // _ALIGNMENT)) * _ALIGNMENT
