"""Tensors that may lie in a GPU's memory, and pass from graph to graph without a copy to the host.

What goes in is anything that says where its memory is: a numpy array, or an array of torch, CuPy, PyCUDA or of an
executor, by ``__cuda_array_interface__``; arrays on the CPU by DLPack too. What comes out is a `DeviceArray`, which
speaks both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from samrt_engines.backends import load_cuda_driver
from samrt_engines.errors import DeviceError, TensorError
from samrt_engines.tensors import Array, TensorSpec, check_feeds

DeviceFeed = Any
"""A numpy array, a `DeviceArray`, or any array with ``__cuda_array_interface__``, or with DLPack on the CPU."""

_DLPACK_CPU = 1  # of DLPack's device types


@runtime_checkable
class DeviceArray(Protocol):
    """A tensor on the device that computed it. It owns its memory, and outlives its executor.

    On a GPU it has ``__cuda_array_interface__`` too.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def numpy(self) -> Array:
        """A copy on the host."""

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Items `start` to `stop` of the first axis, 0 <= start <= stop: the same memory, which stays with both."""

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a feed's bytes are. Whoever holds it holds the feed, so the memory stays."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    on_gpu: bool
    owner: Any
    """The array that owns the memory; where `on_gpu` is False, a contiguous numpy array."""
    stream: int | None = None
    """Handle of the CUDA stream whose work has to be done before the memory is read."""


def memory_of(feed: DeviceFeed, name: str, graph: str) -> Memory:
    """Find a feed's memory. A numpy array that is not contiguous is copied; one on a GPU is refused.

    name, graph: what messages call the input and the graph
    Raises TensorError.
    """
    if isinstance(feed, np.ndarray):
        return _host_memory(feed)
    interface = getattr(feed, "__cuda_array_interface__", None)
    if interface is not None:
        return _gpu_memory(feed, interface, name, graph)
    device = getattr(feed, "__dlpack_device__", None)
    if device is not None and device()[0] == _DLPACK_CPU:
        array = np.from_dlpack(feed)
        # ONNX Runtime (1.31) hands bools on as uint8.
        return _host_memory(array.view(bool) if getattr(feed, "dtype", None) == np.bool_ else array)
    raise TensorError(
        f"{graph}: input '{name}' is not an array",
        got=type(feed).__name__,
        expected="a numpy array, an array with __cuda_array_interface__, or one on the CPU with DLPack",
    )


def check_device_feeds(
    feeds: Mapping[str, Memory],
    specs: Sequence[TensorSpec],
    *,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    graph: str = "graph",
) -> dict[str, int]:
    """`check_feeds`, for arrays wherever they are. Same arguments, result and errors."""
    # An array of one element seen in every place has the shape and dtype to check, and no memory to speak of.
    stand_ins = {name: np.broadcast_to(np.empty((), one.dtype), one.shape) for name, one in feeds.items()}
    return check_feeds(stand_ins, specs, ranges=ranges, graph=graph)


def device_parts(device: str) -> tuple[str, int]:
    """ "cuda:1" -> ("cuda", 1); "cpu" -> ("cpu", 0)."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0)


def wait_for_stream(stream: int, index: int) -> None:
    """Wait until the work queued on a CUDA stream of GPU `index` is done. Raises DeviceError.

    stream: a handle; 0 and 1 are the legacy default stream, 2 the calling thread's
    """
    driver = load_cuda_driver()
    if driver is None:
        raise DeviceError("there is no CUDA driver to wait for a stream with", fix="samrt doctor")
    with in_primary_context(driver, index, "waiting for a CUDA stream") as call:
        call("cuStreamSynchronize", ctypes.c_void_p(stream))


class DriverCall(Protocol):
    """A function of the CUDA driver, by its name. Raises DeviceError when it fails."""

    def __call__(self, name: str, *arguments: Any, fixes: Mapping[int, str] | None = None) -> None:
        """arguments: ctypes objects, since a plain int is passed as 32 bits; fixes: by CUDA's error code"""


@contextmanager
def in_primary_context(driver: Any, index: int, doing: str) -> Iterator[DriverCall]:
    """Call the CUDA driver in the primary context of GPU `index`, the one that torch, CuPy and ONNX Runtime share.

    This thread may have none yet, and has what it had before afterwards.

    driver: libcuda, from `load_cuda_driver`; doing: what messages say has failed
    """

    def call(name: str, *arguments: Any, fixes: Mapping[int, str] | None = None) -> None:
        code = getattr(driver, name)(*arguments)
        if code:
            raise DeviceError(f"{doing} failed in {name}", got=f"CUDA error {code}", fix=(fixes or {}).get(code))

    device, context, before = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        call("cuCtxPushCurrent_v2", context)
        try:
            yield call
        finally:  # failures to give back are not told: what failed before says more
            driver.cuCtxPopCurrent_v2(ctypes.byref(before))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _host_memory(array: Array) -> Memory:
    array = np.asarray(array, order="C")
    return Memory(array.ctypes.data, array.shape, array.dtype, on_gpu=False, owner=array)


def _gpu_memory(feed: DeviceFeed, interface: Mapping[str, Any], name: str, graph: str) -> Memory:
    """Read ``__cuda_array_interface__`` (version 3 and before)."""
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and not _is_contiguous(shape, tuple(strides), dtype.itemsize):
        raise TensorError(
            f"{graph}: input '{name}' is not contiguous",
            got=f"shape {shape}, strides {tuple(strides)}",
            expected="C order without gaps: nothing is copied on the GPU",
            fix="make it contiguous, for example by .contiguous() or cupy.ascontiguousarray(...)",
        )
    return Memory(interface["data"][0], shape, dtype, on_gpu=True, owner=feed, stream=interface.get("stream"))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether strides in bytes are those of C order. Axes of one element may have any."""
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return 0 in shape
        step *= size
    return True
