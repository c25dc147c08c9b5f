"""What an executor is, and the one function that opens one.

An executor runs one graph: named arrays in, named arrays out. It knows tensors, not images. To the caller all backends
are alike, and each says what it really runs on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from samrt_engines.device import DeviceArray, DeviceFeed
from samrt_engines.errors import BackendError
from samrt_engines.onnxruntime import OnnxRuntimeExecutor
from samrt_engines.openvino import OpenVinoExecutor
from samrt_engines.tensors import Array, TensorSpec

BACKENDS = ("auto", "onnxruntime", "openvino", "tensorrt")
"""What `open_executor` takes as `backend`."""


class Executor(Protocol):
    """A graph ready to run, on one backend and one device. A context manager that closes itself.

    `run` may be called from many threads at once.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    @property
    def provider(self) -> str:
        """What really runs the graph, as the backend reports it: "CPUExecutionProvider", "OpenVINO CPU"."""

    @property
    def device(self) -> str:
        """Where that is: "cpu" or "cuda:N"."""

    @property
    def precision(self) -> str | None:
        """What the backend computes in where it chooses that, read back from it: "fp32", "bf16". None: the graph does."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the graph once.

        feeds: exactly the arrays of `inputs`, by name; they are neither changed nor kept
        outputs: names of the outputs to return, in this order; None returns all
        Returns new arrays by name; the caller owns them.
        Raises TensorError for feeds or output names that are not the graph's, before the backend sees them;
        BackendError when the backend fails or the executor is closed.
        """

    def close(self) -> None:
        """Free the backend's memory, once runs under way in other threads are done. Closing twice is fine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class DeviceExecutor(Executor, Protocol):
    """An executor whose results may stay where they were computed, to feed another one: on a GPU, nothing is copied."""

    def run_device(
        self, feeds: Mapping[str, DeviceFeed], outputs: Sequence[str] | None = None, *, stream: int | None = None
    ) -> dict[str, DeviceArray]:
        """Run the graph once, as `Executor.run` does.

        feeds: arrays on the host or the device, as `DeviceFeed` says; they are neither changed nor kept
        outputs: names of the outputs to return, in this order; None returns all
        stream: handle of the CUDA stream that the feeds are computed on. None: the stream that an array names, or the
            default stream
        Returns new arrays on the device, by name.
        Raises TensorError also for an array that lies elsewhere or is not contiguous.
        """


def open_executor(
    model: Path | bytes,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    inputs: Sequence[TensorSpec] | None = None,
    outputs: Sequence[TensorSpec] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    name: str = "graph",
) -> Executor:
    """Make a graph ready to run.

    model: an ONNX file, or its bytes: what was checksummed is then what runs, and the file is not read a second time.
        A model with external data (over 2 GB) has to be a path.
    backend: one of `BACKENDS`; "auto" is ONNX Runtime
    device: "cpu", "cuda", "cuda:N", or "auto": CUDA where the backend has it and a GPU answers, else the CPU
    threads: CPU threads one run uses, None for the backend's choice
    precision: what to compute in, for a backend that can choose: OpenVINO's "fp32" (None) or "bf16". The others compute
        in the types of the graph
    inputs, outputs: what the manifest says about them; the model has to agree
    ranges: limits of symbolic dimensions, as in `check_feeds`
    name: what messages call the graph

    Raises BackendError when the model cannot be loaded or an argument makes no sense; of its kinds, MissingExtraError
    when the backend is not installed, ProviderError when the device cannot be had. Nothing falls back to another one.
    """
    if backend not in BACKENDS:
        raise BackendError(f"{name}: unknown backend", got=repr(backend), expected=", ".join(BACKENDS))
    if backend == "tensorrt":
        raise BackendError(
            f"{name}: TensorRT runs plans, not ONNX files",
            got="backend='tensorrt'",
            expected="a plan built for this GPU: samrt_engines.tensorrt.TensorRTExecutor(plan)",
            fix="samrt build BUNDLE, then samrt.load(BUNDLE, backend='tensorrt')",
        )
    if backend == "openvino":
        return OpenVinoExecutor(
            model,
            device=device,
            threads=threads,
            precision=precision or "fp32",
            inputs=inputs,
            outputs=outputs,
            ranges=ranges,
            name=name,
        )
    if precision is not None:
        raise BackendError(
            f"{name}: ONNX Runtime computes in the types of the graph",
            got=f"precision={precision!r}",
            expected="precision=None",
            fix="export the model in this precision: samrt export --precision, or backend='openvino'",
        )
    return OnnxRuntimeExecutor(
        model, device=device, threads=threads, inputs=inputs, outputs=outputs, ranges=ranges, name=name
    )
