"""Plans, run by TensorRT: arrays in and out on the host, or left on the GPU between graphs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samrt_engines.closing import ClosesItself
from samrt_engines.device import DeviceFeed
from samrt_engines.errors import BackendError
from samrt_engines.tensorrt.arrays import CudaArray
from samrt_engines.tensorrt.binding import Binding, Bound, largest_shapes
from samrt_engines.tensorrt.cuda import open_cuda
from samrt_engines.tensorrt.engine import all_ranges, check_fits, open_engine
from samrt_engines.tensorrt.feeds import DeviceFeeds
from samrt_engines.tensorrt.graphs import CapturedGraphs
from samrt_engines.tensorrt.keys import Plan
from samrt_engines.tensorrt.libraries import Flavour, load_tensorrt
from samrt_engines.tensorrt.memory import Block, Scratch, Staging
from samrt_engines.tensors import Array, TensorSpec, check_feeds, pick_outputs

PROVIDERS = {Flavour.TENSORRT: "TensorRT", Flavour.RTX: "TensorRT-RTX"}
"""What an executor calls what it runs on."""


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """What an executor trades between memory and speed."""

    cuda_graphs: bool = False
    """Capture the kernels of each shape and launch them together: faster for small graphs; arrays on the GPU are copied
    to where the capture expects them."""
    reserve: bool = False
    """Take all memory that the profile's largest sizes need when opening, so that no later run can run out of it."""


class TensorRTExecutor(ClosesItself):
    """A `DeviceExecutor` on TensorRT.

    Weights lie in GPU memory once per executor; what a graph computes in lies in a `Scratch`, which executors share
    when they are given the same one. Threads take turns.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        device: int = 0,
        scratch: Scratch | None = None,
        weights: bytes | Path | None = None,
        inputs: Sequence[TensorSpec] | None = None,
        outputs: Sequence[TensorSpec] | None = None,
        ranges: Mapping[str, tuple[int, int]] | None = None,
        name: str = "graph",
        options: ExecutorOptions | None = None,
    ) -> None:
        """Load a plan.

        plan: it is code; whoever passes it has checked where it comes from
        device: the GPU, as CUDA counts them; with `scratch`, the scratch's
        scratch: memory to share with other graphs; None for a block of its own
        weights: the ONNX file of a plan built with `strip_weights`
        inputs, outputs, ranges, name: as in `open_executor`

        Raises DeviceError without a GPU, MissingExtraError, PlanError for a plan of another machine or graph.
        """
        options = options or ExecutorOptions()
        self._name = name
        self._lock = threading.RLock()
        self._closed = False
        # First of all a GPU has to answer: a TensorRT runtime without a driver ends the process.
        self._cuda = open_cuda(device) if scratch is None else scratch.cuda
        self._cuda.activate()
        tensorrt = load_tensorrt(plan.key.flavour)
        check_fits(plan.key, tensorrt, self._cuda.describe(), name)
        self._engine = open_engine(plan, tensorrt, inputs=inputs, outputs=outputs, weights=weights, name=name)
        self.inputs = self._engine.inputs
        self.outputs = self._engine.outputs
        self.provider = PROVIDERS[tensorrt.flavour]
        self.device = f"cuda:{self._cuda.device}"
        self.precision = None  # strongly typed: the graph says
        self.plan_bytes = len(plan.data)
        """Size of the plan."""
        self.ranges = all_ranges(self._engine.ranges, ranges)
        """Symbolic dimension -> (smallest, largest) size that `run` takes."""
        with contextlib.ExitStack() as stack:  # closes what was opened, should the rest fail
            self._binding = Binding(self._engine, tensorrt, cuda_graphs=options.cuda_graphs, name=name)
            self._scratch = scratch or stack.enter_context(contextlib.closing(Scratch(self._cuda)))
            self._stream = self._cuda.create_stream()
            stack.callback(self._cuda.destroy_stream, self._stream)
            self._staging = stack.enter_context(contextlib.closing(Staging(self._cuda)))
            self._blocks = {spec.name: Block(self._scratch.pool) for spec in (*self.inputs, *self.outputs)}
            self._graphs = None
            if options.cuda_graphs and not tensorrt.captures_cuda_graphs:
                self._graphs = stack.enter_context(contextlib.closing(CapturedGraphs(self._cuda)))
            stack.callback(self._free_blocks)
            if options.reserve:
                self._reserve()
            self._resources = stack.pop_all()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        check_feeds(feeds, self.inputs, ranges=self.ranges, graph=self._name)
        names = pick_outputs(outputs, self.outputs, graph=self._name)
        stream = self._stream
        with self._turn(stream):
            bound = self._binding.bind({spec.name: feeds[spec.name].shape for spec in self.inputs})
            with self._scratch.lend(bound.scratch_bytes, stream) as scratch:
                addresses = self._grow_blocks(bound, stream)
                for spec in self.inputs:
                    self._upload(feeds[spec.name], spec, addresses[spec.name])
                self._launch(bound, addresses, scratch, stream)
                landed = {name: self._download(name, bound, addresses[name]) for name in names}
            self._cuda.synchronize(stream)
            return {name: array.copy() for name, array in landed.items()}

    def run_device(
        self, feeds: Mapping[str, DeviceFeed], outputs: Sequence[str] | None = None, *, stream: int | None = None
    ) -> dict[str, CudaArray]:
        """Run the graph once, and leave what it gives on the GPU.

        feeds: by name, arrays on the GPU (anything with `__cuda_array_interface__` or `__dlpack__`: torch, CuPy, PyCUDA,
            our own), which are used where they lie, or numpy arrays, which are uploaded
        outputs: names of the outputs to return, in this order; None returns all
        stream: a CUDA stream (torch.cuda.current_stream().cuda_stream) on which all of it is queued, in order with what
            the caller queues there, and which has to outlive the arrays; None: all is done when this returns

        Returns new arrays by name. Raises what `run` raises; TensorError too for arrays that are not on this GPU.
        """
        names = pick_outputs(outputs, self.outputs, graph=self._name)
        queue = self._stream if stream is None else stream
        with self._turn(queue):
            given = DeviceFeeds(
                feeds, self.inputs, self.ranges, pool=self._scratch.pool, stream=queue, graph=self._name
            )
            bound = self._binding.bind(given.shapes)
            with self._scratch.lend(bound.scratch_bytes, queue) as scratch:
                given.wait()
                run = self._run_in_place if self._graphs is None else self._run_in_blocks
                results = run(given, bound, scratch, queue)
                given.queued()
            if stream is None:
                self._cuda.synchronize(queue)
                given.read()  # our stream ends with us, and the feeds may live longer
                for array in results.values():
                    array.settle()
            return {name: results[name] for name in names}

    @property
    def scratch(self) -> Scratch:
        """The block it computes in; executors with the same one share it, and its pool."""
        return self._scratch

    def memory_bytes(self) -> dict[str, int]:
        """GPU memory by use. "scratch" is what the profile's largest run needs, "shared_scratch" the block as it is."""
        with self._lock:
            self._check_open()
            return {
                "weights": self._binding.weights_bytes,
                "scratch": self._binding.scratch_bytes,
                "shared_scratch": self._scratch.size_bytes,
                "inputs_outputs": sum(block.size_bytes for block in self._blocks.values()),
            }

    def layers(self) -> str:
        """What the engine does, layer by layer, as TensorRT's inspector tells it: JSON."""
        with self._lock:
            self._check_open()
            return self._binding.layers()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._cuda.activate()
            self._resources.close()
            del self._binding, self._engine  # frees the weights

    @contextlib.contextmanager
    def _turn(self, stream: int) -> Iterator[None]:
        """One thread at a time; and after a failure, nothing of it is still under way."""
        with self._lock:
            self._check_open()
            self._cuda.activate()
            try:
                yield
            except BackendError:
                with contextlib.suppress(BackendError):  # the first failure says more than what follows from it
                    self._cuda.synchronize(stream)
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"{self._name}: the executor is closed", fix="open another one: open_executor(...)")

    def _run_in_place(self, given: DeviceFeeds, bound: Bound, scratch: int, stream: int) -> dict[str, CudaArray]:
        """Read the feeds where they are, and write where the results stay."""
        placed = {spec.name: given.place(spec.name, nowhere=scratch) for spec in self.inputs}
        results = self._new_arrays(bound, stream)
        addresses = {name: address for name, (address, _) in placed.items()}
        addresses |= {name: array.address for name, array in results.items()}
        self._launch(bound, addresses, scratch, stream)
        return results

    def _run_in_blocks(self, given: DeviceFeeds, bound: Bound, scratch: int, stream: int) -> dict[str, CudaArray]:
        """A captured graph has its addresses noted down: copy in and out of them."""
        addresses = self._grow_blocks(bound, stream)
        for spec in self.inputs:
            given.copy_to(spec.name, addresses[spec.name])
        self._launch(bound, addresses, scratch, stream)
        results = self._new_arrays(bound, stream)
        for name, array in results.items():
            if array.nbytes:
                self._cuda.copy(array.address, addresses[name], array.nbytes, stream)
        return results

    def _launch(self, bound: Bound, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        def enqueue(queue: int) -> None:
            self._binding.enqueue(bound, addresses, scratch, queue)

        if self._graphs is None:
            enqueue(stream)
        else:
            self._graphs.run((bound.inputs, tuple(addresses.items()), scratch), stream, enqueue)

    def _new_arrays(self, bound: Bound, stream: int) -> dict[str, CudaArray]:
        pool = self._scratch.pool
        return {spec.name: CudaArray(pool, bound.outputs[spec.name], spec.dtype, stream) for spec in self.outputs}

    def _grow_blocks(self, bound: Bound, stream: int) -> dict[str, int]:
        """The addresses of our own blocks for inputs and outputs, large enough."""
        shapes = {**dict(bound.inputs), **bound.outputs}
        specs = (*self.inputs, *self.outputs)
        return {spec.name: self._blocks[spec.name].grow(_nbytes(shapes[spec.name], spec), stream) for spec in specs}

    def _upload(self, array: Array, spec: TensorSpec, address: int) -> None:
        pinned, landing = self._staging.view(spec.name, array.shape, spec.dtype)
        np.copyto(landing, array)
        if array.nbytes:
            self._cuda.copy(address, pinned, array.nbytes, self._stream)

    def _download(self, name: str, bound: Bound, address: int) -> Array:
        """Queue the copy. The array is filled once the stream is done, and lasts until the next run."""
        (spec,) = (spec for spec in self.outputs if spec.name == name)
        pinned, landing = self._staging.view(name, bound.outputs[name], spec.dtype)
        if landing.nbytes:
            self._cuda.copy(pinned, address, landing.nbytes, self._stream)
        return landing

    def _reserve(self) -> None:
        bound = self._binding.bind(largest_shapes(self.inputs, self.ranges))
        scratch_bytes = max(bound.scratch_bytes, self._binding.scratch_bytes)
        with self._scratch.lend(scratch_bytes, self._stream):
            self._grow_blocks(bound, self._stream)
        self._cuda.synchronize(self._stream)

    def _free_blocks(self) -> None:
        with self._scratch.lend(0, self._stream):  # waits, on the GPU, for whoever used them last
            for block in self._blocks.values():
                block.release(self._stream)
        self._cuda.synchronize(self._stream)


def _nbytes(shape: tuple[int, ...], spec: TensorSpec) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
