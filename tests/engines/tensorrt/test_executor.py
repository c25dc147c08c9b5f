"""The executor on a simulated GPU: values through streams that run late, memory that is poisoned when it is freed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from samrt_engines.device import DeviceArray
from samrt_engines.errors import BackendError, DeviceError, PlanError, TensorError
from samrt_engines.executor import DeviceExecutor
from samrt_engines.tensorrt import (
    BuildOptions,
    Cuda,
    CudaArray,
    ExecutorOptions,
    Flavour,
    Plan,
    PlanKey,
    Scratch,
    TensorRT,
    TensorRTExecutor,
)
from samrt_engines.tensorrt import executor as executor_module
from samrt_engines.tensors import TensorSpec

from .doubles import CudaDouble, DataType, Graph, TensorRTDouble

FLOAT, INT32 = DataType.FLOAT, DataType.INT32

ENCODER = Graph(
    inputs={"image": (FLOAT, ("images", 3))},
    outputs={"embed": (FLOAT, ("images", 3)), "total": (FLOAT, ("images",))},
    profile={"images": (1, 1, 8)},
    compute=lambda image: {"embed": image * 2, "total": image.sum(axis=1)},
    scratch_bytes_per=1024,
)
DECODER = Graph(
    inputs={"embed": (FLOAT, ("images", 3)), "points": (INT32, ("points", 2))},
    outputs={"mask": (FLOAT, ("images", 3))},
    profile={"images": (1, 1, 8), "points": (0, 2, 16)},
    compute=lambda embed, points: {"mask": embed + points.sum()},
    scratch_bytes_per=4096,
)
IMAGE = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
POINTS = np.array([[10, 20]], np.int32)


def key(**changes: Any) -> PlanKey:
    fields: dict[str, Any] = {
        "onnx_sha256": "ab" * 32,
        "flavour": Flavour.TENSORRT,
        "version": "11.4.0.106",
        "gpu": "Double 4090",
        "capability": "8.9",
        "precision": "fp16",
        "profiles": {"images": (1, 1, 8)},
        "options": BuildOptions(),
    }
    return PlanKey.of(**(fields | changes))


class Bench:
    """A simulated machine, and executors on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = CudaDouble()
        self.trt = TensorRTDouble(self.gpu, {b"encoder": ENCODER, b"decoder": DECODER})
        self.cuda = Cuda(self.gpu)
        tensorrt = TensorRT(self.trt, Flavour.TENSORRT, self.trt.__version__)
        monkeypatch.setattr(executor_module, "open_cuda", lambda device: self.cuda)
        monkeypatch.setattr(executor_module, "load_tensorrt", lambda flavour: tensorrt)
        self._open: list[TensorRTExecutor] = []

    def open(self, graph: bytes, **arguments: Any) -> TensorRTExecutor:
        plan = arguments.pop("plan", None) or Plan(graph, key())
        executor = TensorRTExecutor(plan, name=graph.decode(), **arguments)
        self._open.append(executor)
        return executor

    def torch_like(self, values: np.ndarray[Any, Any], *, stream: int | None = None, fill: bool = True) -> Any:
        """An array of somebody else's on the GPU, with `__cuda_array_interface__` as CuPy has it."""
        block = self.gpu.new(max(values.nbytes, 1))

        def write() -> None:
            block.content[: values.nbytes] = np.frombuffer(values.tobytes(), np.uint8)

        if stream is None:
            write()
        elif fill:
            self.gpu.enqueue(stream, write)
        return ForeignArray(block.address, values.shape, values.dtype.str, stream)

    def close(self) -> None:
        for executor in self._open:
            executor.close()


class ForeignArray:
    def __init__(self, address: int, shape: tuple[int, ...], typestr: str, stream: int | None) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
            "version": 3,
            "strides": None,
            "stream": stream,
        }


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    machine = Bench(monkeypatch)
    yield machine
    machine.close()


def test_run_gives_values_and_new_arrays(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    one = encoder.run({"image": IMAGE})
    two = encoder.run({"image": IMAGE * 10})
    np.testing.assert_array_equal(one["embed"], IMAGE * 2)
    np.testing.assert_array_equal(one["total"], [6, 15])
    np.testing.assert_array_equal(two["embed"], IMAGE * 20)
    assert list(encoder.run({"image": IMAGE}, ["total"])) == ["total"]
    assert isinstance(encoder, DeviceExecutor)
    assert (encoder.provider, encoder.device, encoder.precision) == ("TensorRT", "cuda:0", None)


def test_run_takes_any_layout_and_empty_inputs(bench: Bench) -> None:
    encoder, decoder = bench.open(b"encoder"), bench.open(b"decoder")
    turned = np.asfortranarray(IMAGE)
    np.testing.assert_array_equal(encoder.run({"image": turned})["embed"], IMAGE * 2)
    none = np.empty((0, 2), np.int32)
    np.testing.assert_array_equal(decoder.run({"embed": IMAGE, "points": none})["mask"], IMAGE)


def test_shapes_may_alternate(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    for image in (IMAGE, IMAGE[:1], IMAGE, IMAGE[:1]):
        np.testing.assert_array_equal(encoder.run({"image": image})["embed"], image * 2)


def test_refused_shapes_leave_no_trace(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    encoder.run({"image": IMAGE})
    bench.trt.refuse_shapes = True
    with pytest.raises(BackendError, match="TensorRT refuses"):
        encoder.run({"image": IMAGE[:1]})
    bench.trt.refuse_shapes = False
    np.testing.assert_array_equal(encoder.run({"image": IMAGE * 3})["embed"], IMAGE * 6)


def test_specs_and_ranges_come_from_the_engine(bench: Bench) -> None:
    decoder = bench.open(b"decoder")
    assert decoder.inputs == (
        TensorSpec("embed", "float32", ("embed.0", 3)),
        TensorSpec("points", "int32", ("points.0", 2)),
    )
    assert decoder.ranges == {"embed.0": (1, 8), "points.0": (0, 16)}


def test_promised_specs_give_the_symbols_their_names(bench: Bench) -> None:
    specs = (TensorSpec("image", "float32", ("images", 3)),)
    encoder = bench.open(b"encoder", inputs=specs, ranges={"images": (1, 4)})
    assert encoder.ranges == {"images": (1, 4)}
    with pytest.raises(TensorError, match=r"'images' is out of range .* got: 5 \| expected: 1 to 4"):
        encoder.run({"image": np.zeros((5, 3), np.float32)})
    assert not [what for what in bench.trt.noted if what[0] == "set_input_shape"], "TensorRT saw it"
    wrong = (TensorSpec("image", "float16", ("images", 3)),)
    with pytest.raises(PlanError, match="the plan's inputs are not what the manifest says"):
        bench.open(b"encoder", inputs=wrong)


def test_the_order_of_a_run(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    encoder.run({"image": IMAGE})
    bench.gpu.calls.clear()
    bench.trt.noted.clear()
    encoder.run({"image": IMAGE})
    names = [name for name in bench.gpu.names() if name != "cudaSetDevice"]
    assert names == [
        "cudaStreamWaitEvent",  # for whoever had the scratch before
        "cudaMemcpyAsync",  # image in
        "cudaMemcpyAsync",  # embed out
        "cudaMemcpyAsync",  # total out
        "cudaEventRecord",  # the scratch may be used again
        "cudaStreamSynchronize",
    ]
    assert [what[0] for what in bench.trt.noted] == ["execute_async_v3"], "known shapes are not set again"


def test_features_stay_on_the_gpu(bench: Bench) -> None:
    scratch = Scratch(bench.cuda)
    encoder, decoder = bench.open(b"encoder", scratch=scratch), bench.open(b"decoder", scratch=scratch)
    stream = bench.cuda.create_stream()
    features = encoder.run_device({"image": IMAGE}, ["embed"], stream=stream)
    result = decoder.run_device({"embed": features["embed"], "points": POINTS}, stream=stream)
    assert "cudaStreamSynchronize" not in bench.gpu.names(), "nobody waited on the host"
    np.testing.assert_array_equal(result["mask"].numpy(), IMAGE * 2 + 30)


def test_graphs_on_two_streams_wait_for_each_other(bench: Bench) -> None:
    """The second stream is drained alone: without waits the features would still be poison."""
    scratch = Scratch(bench.cuda)
    encoder, decoder = bench.open(b"encoder", scratch=scratch), bench.open(b"decoder", scratch=scratch)
    one, two = bench.cuda.create_stream(), bench.cuda.create_stream()
    features = encoder.run_device({"image": IMAGE}, stream=one)
    result = decoder.run_device({"embed": features["embed"], "points": POINTS}, stream=two)
    del features
    np.testing.assert_array_equal(result["mask"].numpy(), IMAGE * 2 + 30)


def test_freed_features_outlive_the_work_that_reads_them(bench: Bench) -> None:
    """The features are freed on the first stream, which the second one has to hold back."""
    scratch = Scratch(bench.cuda)
    encoder, decoder = bench.open(b"encoder", scratch=scratch), bench.open(b"decoder", scratch=scratch)
    one, two = bench.cuda.create_stream(), bench.cuda.create_stream()
    features = encoder.run_device({"image": IMAGE}, stream=one)
    result = decoder.run_device({"embed": features["embed"], "points": POINTS}, stream=two)
    del features
    bench.cuda.synchronize(one)  # frees
    np.testing.assert_array_equal(result["mask"].numpy(), IMAGE * 2 + 30)


def test_without_a_stream_all_is_done_on_return(bench: Bench) -> None:
    result = bench.open(b"encoder").run_device({"image": IMAGE})["embed"]
    content = bench.gpu.at(result.address, result.nbytes).view(np.float32)
    np.testing.assert_array_equal(content.reshape(result.shape), IMAGE * 2)


def test_somebody_elses_array_is_read_where_it_lies(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    theirs = bench.torch_like(IMAGE)
    before = bench.gpu.names().count("cudaMemcpyAsync")
    result = encoder.run_device({"image": theirs})
    assert bench.gpu.names().count("cudaMemcpyAsync") == before, "zero copies"
    np.testing.assert_array_equal(result["embed"].numpy(), IMAGE * 2)


def test_we_wait_for_the_stream_that_an_array_names(bench: Bench) -> None:
    theirs = bench.cuda.create_stream()
    array = bench.torch_like(IMAGE, stream=theirs)  # written when that stream is drained
    result = bench.open(b"encoder").run_device({"image": array})
    np.testing.assert_array_equal(result["embed"].numpy(), IMAGE * 2)


def test_a_misaligned_array_is_copied_on_the_gpu(bench: Bench) -> None:
    both = bench.torch_like(np.concatenate([IMAGE, IMAGE * 3]))
    both.__cuda_array_interface__ |= {"shape": (2, 3), "data": (both.__cuda_array_interface__["data"][0] + 24, False)}
    result = bench.open(b"encoder").run_device({"image": both})
    np.testing.assert_array_equal(result["embed"].numpy(), IMAGE * 6)


def test_an_empty_array_on_the_gpu_needs_no_address(bench: Bench) -> None:
    nothing = ForeignArray(0, (0, 2), "<i4", None)
    result = bench.open(b"decoder").run_device({"embed": IMAGE, "points": nothing})
    np.testing.assert_array_equal(result["mask"].numpy(), IMAGE)


def test_numpy_feeds_may_change_once_the_call_returns(bench: Bench) -> None:
    stream = bench.cuda.create_stream()
    image = IMAGE.copy()
    result = bench.open(b"encoder").run_device({"image": image}, stream=stream)
    image[:] = 0
    np.testing.assert_array_equal(result["embed"].numpy(), IMAGE * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"typestr": "<f8"}, r"has the wrong dtype \| got: float64"),
        ({"shape": (2, 4)}, r"has the wrong shape \| got: \(2, 4\)"),
        ({"strides": (4, 8)}, r"is not contiguous .*fix: make it contiguous"),
        ({"shape": (9, 3)}, r"out of range .* got: 9 \| expected: 1 to 8"),
        ({"data": (12288, False)}, "is not on the graph's GPU .*pycuda.autoprimaryctx"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(bench: Bench, change: dict[str, Any], message: str) -> None:
    array = bench.torch_like(IMAGE)
    array.__cuda_array_interface__ |= change
    encoder = bench.open(b"encoder")
    with pytest.raises(TensorError, match=message):
        encoder.run_device({"image": array})
    assert not bench.trt.noted, "TensorRT saw it"


def test_names_and_strange_objects_are_refused(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    with pytest.raises(TensorError, match="missing 'image' and unknown 'picture'"):
        encoder.run_device({"picture": IMAGE})
    with pytest.raises(TensorError, match=r"is not an array \| got: list"):
        encoder.run_device({"image": [[1, 2, 3]]})
    with pytest.raises(TensorError, match="no such output"):
        encoder.run_device({"image": IMAGE}, ["mask"])


def test_shared_scratch_is_the_largest_not_the_sum(bench: Bench) -> None:
    scratch = Scratch(bench.cuda)
    encoder, decoder = bench.open(b"encoder", scratch=scratch), bench.open(b"decoder", scratch=scratch)
    encoder.run({"image": np.zeros((8, 3), np.float32)})
    assert scratch.size_bytes == 8 * 1024
    decoder.run({"embed": IMAGE, "points": np.zeros((16, 2), np.int32)})
    assert scratch.size_bytes == 16 * 4096
    encoder.run({"image": IMAGE})
    assert scratch.size_bytes == 16 * 4096, "it does not shrink"
    blocks = sum(executor.memory_bytes()["inputs_outputs"] for executor in (encoder, decoder))
    assert scratch.pool.used_bytes == 16 * 4096 + blocks, "what was outgrown is given back"
    assert encoder.scratch is decoder.scratch is scratch
    assert encoder.plan_bytes == len(b"encoder")
    assert decoder.memory_bytes() == {
        "weights": 4096,
        "scratch": 16 * 4096,
        "shared_scratch": 16 * 4096,
        "inputs_outputs": 3 * 256,
    }


def test_growing_scratch_waits_for_its_user(bench: Bench) -> None:
    """The block moves while the first run is still queued on another stream."""
    scratch = Scratch(bench.cuda)
    encoder, decoder = bench.open(b"encoder", scratch=scratch), bench.open(b"decoder", scratch=scratch)
    one, two = bench.cuda.create_stream(), bench.cuda.create_stream()
    first = encoder.run_device({"image": IMAGE}, stream=one)
    second = decoder.run_device({"embed": IMAGE, "points": np.zeros((16, 2), np.int32)}, stream=two)
    bench.cuda.synchronize(two)
    np.testing.assert_array_equal(second["mask"].numpy(), IMAGE)
    np.testing.assert_array_equal(first["embed"].numpy(), IMAGE * 2)


def test_reserved_memory_never_grows(bench: Bench) -> None:
    decoder = bench.open(b"decoder", options=ExecutorOptions(reserve=True))
    before = bench.gpu.names().count("cudaMallocFromPoolAsync")
    decoder.run({"embed": np.ones((8, 3), np.float32), "points": np.zeros((16, 2), np.int32)})
    decoder.run({"embed": IMAGE, "points": POINTS})
    assert bench.gpu.names().count("cudaMallocFromPoolAsync") == before


def test_all_memory_is_given_back(bench: Bench) -> None:
    scratch = Scratch(bench.cuda)
    encoder = bench.open(b"encoder", scratch=scratch, options=ExecutorOptions(cuda_graphs=True))
    own = bench.open(b"decoder")
    for _ in range(3):
        features = encoder.run_device({"image": IMAGE})
        own.run({"embed": IMAGE, "points": POINTS})
    del features
    encoder.close()
    own.close()
    scratch.close()
    bench.cuda.synchronize(0)  # where results are freed that no caller's stream owns
    assert (bench.gpu.live_bytes("device"), bench.gpu.live_bytes("pinned")) == (0, 0)
    assert not bench.gpu.pools
    assert not bench.gpu.graphs
    assert not bench.gpu.events
    assert set(bench.gpu.streams) == {0, 1}


def test_results_outlive_their_executor(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    results = [encoder.run_device({"image": IMAGE}, stream=stream)["embed"] for stream in (0, None)]
    encoder.close()
    for result in results:
        np.testing.assert_array_equal(result.numpy(), IMAGE * 2)


@pytest.mark.parametrize("stream", [None, 0])
def test_cuda_graphs_give_the_same_values(bench: Bench, stream: int | None) -> None:
    encoder = bench.open(b"encoder", options=ExecutorOptions(cuda_graphs=True))
    for factor in range(1, 6):
        for image in (IMAGE * factor, IMAGE[:1] * factor):
            out = encoder.run_device({"image": bench.torch_like(image)}, stream=stream)
            np.testing.assert_array_equal(out["embed"].numpy(), image * 2)
            np.testing.assert_array_equal(encoder.run({"image": image})["total"], image.sum(axis=1))
    executions = [what for what in bench.trt.noted if what[0] == "execute_async_v3"]
    assert len(executions) == 2 * 2, "one ordinary run and one capture per shape"
    assert bench.gpu.names().count("cudaGraphLaunch") == 20 - 2


def test_a_graph_is_captured_anew_when_the_scratch_has_moved(bench: Bench) -> None:
    scratch = Scratch(bench.cuda)
    encoder = bench.open(b"encoder", scratch=scratch, options=ExecutorOptions(cuda_graphs=True))
    decoder = bench.open(b"decoder", scratch=scratch)
    for _ in range(3):
        encoder.run({"image": IMAGE})
    decoder.run({"embed": IMAGE, "points": np.zeros((16, 2), np.int32)})
    for _ in range(3):
        np.testing.assert_array_equal(encoder.run({"image": IMAGE})["embed"], IMAGE * 2)


def test_a_failed_capture_leaves_the_executor_usable(bench: Bench) -> None:
    encoder = bench.open(b"encoder", options=ExecutorOptions(cuda_graphs=True))
    encoder.run({"image": IMAGE})
    bench.trt.fail_execution = True
    with pytest.raises(BackendError, match=r"encoder: TensorRT failed \| got: enqueueV3: no kernel image"):
        encoder.run({"image": IMAGE})
    bench.trt.fail_execution = False
    np.testing.assert_array_equal(encoder.run({"image": IMAGE})["embed"], IMAGE * 2)


def test_failures_name_the_reason_and_pass(bench: Bench) -> None:
    encoder = bench.open(b"encoder")
    bench.trt.refuse_shapes = True
    with pytest.raises(BackendError, match="encoder: TensorRT refuses the inputs' shapes"):
        encoder.run({"image": IMAGE})
    bench.trt.refuse_shapes = False
    bench.gpu.limit_bytes = 0
    with pytest.raises(DeviceError, match=r"CUDA failed in cudaMallocFromPoolAsync \| got: cudaErrorMemoryAllocation"):
        encoder.run({"image": IMAGE})
    bench.gpu.limit_bytes = 1 << 30
    np.testing.assert_array_equal(encoder.run({"image": IMAGE})["embed"], IMAGE * 2)


def test_threads_take_turns(bench: Bench) -> None:
    scratch = Scratch(bench.cuda)
    executors = [bench.open(b"encoder", scratch=scratch) for _ in range(2)]
    failures: list[BaseException] = []

    def work(executor: TensorRTExecutor, factor: int) -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(executor.run({"image": IMAGE * factor})["embed"], IMAGE * 2 * factor)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(executors[n % 2], n + 1)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_closed_executor_says_so(bench: Bench) -> None:
    with bench.open(b"encoder") as encoder:
        pass
    encoder.close()
    for call in (lambda: encoder.run({"image": IMAGE}), lambda: encoder.run_device({"image": IMAGE}), encoder.layers):
        with pytest.raises(BackendError, match="the executor is closed"):
            call()


@pytest.mark.parametrize(
    ("changes", "got", "expected"),
    [
        ({"gpu": "NVIDIA A100"}, "GPU NVIDIA A100", "GPU Double 4090"),
        ({"capability": "8.6"}, "compute capability 8.6", "compute capability 8.9"),
        ({"version": "10.16.1.11"}, "built by TensorRT 10.16.1.11", "built by TensorRT 11.4.0.106"),
        ({"gpu": "any", "capability": "9.0+"}, "compute capability 9.0+", "compute capability 8.9"),
        (
            {"version": "12.0.0", "options": BuildOptions(version_compatible=True)},
            "built by TensorRT 12.0.0",
            "built by TensorRT 11.4.0.106",
        ),
    ],
)
def test_a_plan_of_another_machine_is_refused_with_both_sides(
    bench: Bench, changes: dict[str, Any], got: str, expected: str
) -> None:
    with pytest.raises(PlanError) as caught:
        bench.open(b"encoder", plan=Plan(b"encoder", key(**changes)))
    assert (caught.value.got, caught.value.expected, caught.value.fix) == (got, expected, "samrt build")
    assert bench.trt.runtimes == 0, "TensorRT has not seen it"


@pytest.mark.parametrize(
    ("changes", "host_code"),
    [
        ({}, False),
        ({"gpu": "any", "capability": "8.0+"}, False),
        ({"version": "10.16.1.11", "options": BuildOptions(version_compatible=True)}, True),
    ],
)
def test_a_plan_that_fits_is_loaded(bench: Bench, changes: dict[str, Any], host_code: bool) -> None:
    encoder = bench.open(b"encoder", plan=Plan(b"encoder", key(**changes)))
    np.testing.assert_array_equal(encoder.run({"image": IMAGE})["embed"], IMAGE * 2)
    assert bench.trt.host_code_allowed is host_code


def test_a_plan_that_tensorrt_refuses(bench: Bench) -> None:
    with pytest.raises(PlanError, match=r"encoder: TensorRT cannot read the plan \| got: .*magic tag"):
        bench.open(b"encoder", plan=Plan(b"noise", key()))


def test_without_a_gpu_no_runtime_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from samrt_engines.tensorrt import cuda as cuda_module

    def no_tensorrt(flavour: str) -> Any:
        raise AssertionError("TensorRT was loaded")

    monkeypatch.setattr(cuda_module, "cuda_device_count", lambda: 0)
    monkeypatch.setattr(executor_module, "load_tensorrt", no_tensorrt)
    with pytest.raises(DeviceError, match="no NVIDIA GPU answers"):
        TensorRTExecutor(Plan(b"encoder", key()))


def test_device_arrays_speak_both_protocols(bench: Bench) -> None:
    result = bench.open(b"encoder").run_device({"image": IMAGE})["embed"]
    assert isinstance(result, CudaArray)
    assert isinstance(result, DeviceArray)
    assert result.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (result.address, False),
        "strides": None,
        "stream": None,  # it is computed
        "version": 3,
    }
    queued = bench.open(b"encoder").run_device({"image": IMAGE}, stream=0)["embed"]
    assert queued.__cuda_array_interface__["stream"] == 1
    assert result.__dlpack_device__() == (2, 0)
    assert repr(result) == "CudaArray(shape=(2, 3), dtype=float32, device='cuda:0')"


def test_rows_hold_the_memory_and_feed_other_graphs(bench: Bench) -> None:
    encoder, decoder = bench.open(b"encoder"), bench.open(b"decoder")
    whole = encoder.run_device({"image": IMAGE})["embed"]
    last = whole.rows(0, 2).rows(1, 5)
    assert isinstance(last, DeviceArray)
    assert (last.shape, last.nbytes, last.address) == ((1, 3), 12, whole.address + 12)
    assert last.__cuda_array_interface__["data"] == (whole.address + 12, False)
    assert whole.rows(2, 2).shape == (0, 3)
    del whole
    np.testing.assert_array_equal(last.numpy(), IMAGE[1:] * 2)
    stream = bench.cuda.create_stream()
    result = decoder.run_device({"embed": last, "points": POINTS}, stream=stream)["mask"]
    wrapped = OnlyDlpack(last)
    del last
    again = decoder.run_device({"embed": wrapped, "points": POINTS}, stream=stream)["mask"]
    del wrapped  # queued work still reads it
    np.testing.assert_array_equal(result.numpy(), IMAGE[1:] * 2 + 30)
    np.testing.assert_array_equal(again.numpy(), IMAGE[1:] * 2 + 30)


def test_an_array_outlives_the_executor_that_read_it(bench: Bench) -> None:
    """Whose stream is gone by the time the array gives its memory back."""
    scratch = Scratch(bench.cuda)
    encoder, decoder = bench.open(b"encoder", scratch=scratch), bench.open(b"decoder", scratch=scratch)
    embed = encoder.run_device({"image": IMAGE})["embed"]
    decoder.run_device({"embed": embed, "points": POINTS})
    streams = set(bench.gpu.streams)
    decoder.close()
    assert streams - set(bench.gpu.streams)
    bench.gpu.calls.clear()
    np.testing.assert_array_equal(embed.numpy(), IMAGE * 2)
    del embed
    assert bench.gpu.names()[-1] == "cudaFreeAsync"
    assert "cudaEventRecord" not in bench.gpu.names()
    encoder.close()
    scratch.close()


class OnlyDlpack:
    """A DeviceArray as a library sees it that has no `__cuda_array_interface__`."""

    def __init__(self, array: CudaArray) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **arguments: Any) -> object:
        return self._array.__dlpack__(**arguments)


def test_dlpack_goes_from_one_stream_to_another(bench: Bench) -> None:
    encoder, decoder = bench.open(b"encoder"), bench.open(b"decoder")
    one, two = bench.cuda.create_stream(), bench.cuda.create_stream()
    features = encoder.run_device({"image": IMAGE}, stream=one)
    wrapped = OnlyDlpack(features.pop("embed"))
    del features
    result = decoder.run_device({"embed": wrapped, "points": POINTS}, stream=two)
    del wrapped
    np.testing.assert_array_equal(result["mask"].numpy(), IMAGE * 2 + 30)


def test_a_host_array_of_another_library_is_uploaded(bench: Bench) -> None:
    class OnHost:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **arguments: Any) -> object:
            return IMAGE.__dlpack__(**arguments)

    result = bench.open(b"encoder").run_device({"image": OnHost()})
    np.testing.assert_array_equal(result["embed"].numpy(), IMAGE * 2)


def test_what_a_library_says_about_its_array_is_passed_on(bench: Bench) -> None:
    class NeedsGradient:
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    with pytest.raises(TensorError, match=r"does not give its memory away .* requires grad"):
        bench.open(b"encoder").run_device({"image": NeedsGradient()})
