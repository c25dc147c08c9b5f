"""Graphs on ONNX Runtime: the CPU, and NVIDIA GPUs through its CUDA, TensorRT and TensorRT for RTX providers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from samrt_engines.backends import import_onnxruntime
from samrt_engines.closing import ClosesItself
from samrt_engines.device import (
    DeviceArray,
    DeviceFeed,
    Memory,
    check_device_feeds,
    device_parts,
    memory_of,
    wait_for_stream,
)
from samrt_engines.errors import BackendError, TensorError
from samrt_engines.providers import checked_provider, choose_provider
from samrt_engines.sessions import DTYPE_FROM_ORT, LOG_ERRORS, checked_specs, error_types, load_session, one_line
from samrt_engines.tensors import Array, TensorSpec, check_feeds, pick_outputs


@dataclass(frozen=True, slots=True)
class OnnxRuntimeOptions:
    """What a session trades between memory and speed. The defaults are ONNX Runtime's own: the fastest."""

    arena: bool = True
    """Keep freed CPU memory for the next run. Off, memory goes back after each run, and each run asks for it anew."""
    prepack: bool = True
    """Copy weights into the layout the CPU kernels like. Off, a session starts quicker and holds its weights once."""
    spin: bool = True
    """Let idle threads wait busily for work. Off, runs start later, and several sessions share the cores in peace."""
    provider: str | None = None
    """What runs the graph on a GPU, by ONNX Runtime's name; None is CUDA. Others: `providers.GPU_PROVIDERS`."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """The provider's own options, by its own names."""
    stream: int | None = None
    """Handle of the CUDA stream that all runs are queued on; None is one of the session's own."""


class OnnxRuntimeExecutor(ClosesItself):
    """An `Executor` on ONNX Runtime. Arguments and errors: see `open_executor`.

    A session runs wherever ONNX Runtime reports it to run, and that is checked: a session without the provider that was
    chosen is refused, and ONNX Runtime's own way of retrying on another provider is off.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        device: str = "auto",
        threads: int | None = None,
        inputs: Sequence[TensorSpec] | None = None,
        outputs: Sequence[TensorSpec] | None = None,
        ranges: Mapping[str, tuple[int, int]] | None = None,
        name: str = "graph",
        options: OnnxRuntimeOptions | None = None,
    ) -> None:
        ort = import_onnxruntime()
        options = options or OnnxRuntimeOptions()
        self._name = name
        self._ranges = dict(ranges or {})
        self._errors = error_types(ort)
        settings = _session_settings(ort, threads, options, name)
        choice = choose_provider(ort, device, options.provider, _provider_options(options), settings, name)
        session = load_session(ort, model, settings, providers=choice.providers, name=name)
        self.provider = checked_provider(session, choice.name, name)
        self.device = choice.device
        """Where it runs and `run_device` leaves its results: "cpu" or "cuda:N"."""
        self.precision: str | None = None  # the graph's own types decide
        self.inputs, self.outputs = checked_specs(session, inputs, outputs, name)
        self._stream = options.stream
        self._session: Any = session

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        session = self._open_session()
        check_feeds(feeds, self.inputs, ranges=self._ranges, graph=self._name)
        names = pick_outputs(outputs, self.outputs, graph=self._name)
        try:
            arrays = session.run(names, dict(feeds))
        except self._errors as error:
            raise self._failure(error) from error
        return dict(zip(names, arrays, strict=True))

    def run_device(
        self, feeds: Mapping[str, DeviceFeed], outputs: Sequence[str] | None = None, *, stream: int | None = None
    ) -> dict[str, DeviceArray]:
        """Run the graph once and leave the results where they were computed. See `DeviceExecutor`.

        The results are ready on return. Each keeps the session's memory from being freed.
        """
        session = self._open_session()
        memories = {name: memory_of(feed, name, self._name) for name, feed in feeds.items()}
        check_device_feeds(memories, self.inputs, ranges=self._ranges, graph=self._name)
        names = pick_outputs(outputs, self.outputs, graph=self._name)
        kind, index = device_parts(self.device)
        on_gpu = [memory for memory in memories.values() if memory.on_gpu]
        foreign = [memory for memory in on_gpu if not isinstance(memory.owner, OrtArray)]  # ours are ready
        if on_gpu and kind == "cpu":
            raise TensorError(
                f"{self._name}: an input lies on a GPU", got=f"{self.provider}", expected="arrays on the CPU"
            )
        streams = {memory.stream or 0 for memory in foreign} if stream is None else {stream}
        for handle in streams - {self._stream} if foreign else ():
            wait_for_stream(handle, index)
        try:
            binding = session.io_binding()
            for name, memory in memories.items():
                _bind(binding, name, memory, index)
            for name in names:
                binding.bind_output(name, kind, index)
            session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except self._errors as error:
            raise self._failure(error) from error
        return {name: OrtArray(value, self.device) for name, value in zip(names, values, strict=True)}

    def close(self) -> None:
        self._session = None

    def _open_session(self) -> Any:
        """The session; whoever holds it keeps it alive until a run is done, when another thread closes the executor."""
        if self._session is None:
            raise BackendError(f"{self._name}: the executor is closed", fix="open another one: open_executor(...)")
        return self._session

    def _failure(self, error: Exception) -> BackendError:
        return BackendError(f"{self._name}: ONNX Runtime failed on {self.provider}", got=one_line(error))


class OrtArray:
    """A `DeviceArray` in memory of ONNX Runtime's, which hands bools on by DLPack as uint8."""

    def __init__(self, value: Any, device: str) -> None:
        """value: onnxruntime.OrtValue; device: where it is"""
        self._value = value
        self._rows: slice | None = None  # of the value; None is all of it
        self._address: int = value.data_ptr()
        self.device = device
        self.shape = tuple(value.shape())
        self.dtype = np.dtype(DTYPE_FROM_ORT[value.data_type()])

    def numpy(self) -> Array:
        array = self._value.numpy()
        return np.array(array if self._rows is None else array[self._rows])

    def rows(self, start: int, stop: int) -> OrtArray:
        first = 0 if self._rows is None else self._rows.start
        part = OrtArray(self._value, self.device)
        part.shape = (max(0, min(stop, self.shape[0]) - start), *self.shape[1:])
        part._rows = slice(first + start, first + start + part.shape[0])
        part._address += part._rows.start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return part

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("DLPack shares this memory where it is; it copies nothing: use numpy()")
        if self._rows is not None:
            from samrt_engines.tensorrt.dlpack import export_capsule  # ONNX Runtime gives only whole arrays away

            return export_capsule(self._address, self.shape, self.dtype, self.__dlpack_device__(), self)
        return self._value._ortvalue.__dlpack__(stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._value._ortvalue.__dlpack_device__()
        return kind, index

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device == "cpu":
            raise AttributeError("not on a GPU")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # nothing to wait for: the run that made it is done
        }


def _bind(binding: Any, name: str, memory: Memory, index: int) -> None:
    """Bind an input without a copy, or with one to the GPU where the memory is the host's."""
    if memory.on_gpu:
        binding.bind_input(name, "cuda", index, memory.dtype.type, memory.shape, memory.pointer)
    else:
        binding.bind_cpu_input(name, memory.owner)


def _provider_options(options: OnnxRuntimeOptions) -> dict[str, str]:
    stream = {} if options.stream is None else {"user_compute_stream": str(options.stream)}
    return {**stream, **options.provider_options}


def _session_settings(ort: ModuleType, threads: int | None, options: OnnxRuntimeOptions, name: str) -> Any:
    """An onnxruntime.SessionOptions."""
    settings = ort.SessionOptions()
    settings.log_severity_level = LOG_ERRORS
    if threads is not None:
        if threads < 1:
            raise BackendError(f"{name}: not a number of threads", got=str(threads), expected="1 or more, or None")
        settings.intra_op_num_threads = threads
    settings.enable_cpu_mem_arena = options.arena
    settings.add_session_config_entry("session.disable_prepacking", "0" if options.prepack else "1")
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings
