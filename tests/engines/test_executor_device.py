"""Arrays that stay on the device, on the device that every machine has; a GPU's side is checked with doubles."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from samrt_engines import device as device_module
from samrt_engines.device import DeviceArray, memory_of, wait_for_stream
from samrt_engines.errors import BackendError, DeviceError, TensorError
from samrt_engines.executor import DeviceExecutor, open_executor
from samrt_engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeOptions, OrtArray

from .tiny_graphs import ELEMENTS, WEIGHT, identity, linear, rows, square


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def open_cpu(model: bytes, **options: Any) -> OnnxRuntimeExecutor:
    return OnnxRuntimeExecutor(model, device="cpu", threads=1, **options)


class OnGpu:
    """What a library's array on a GPU says about itself."""

    def __init__(self, array: np.ndarray[Any, Any], **more: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            **more,
        }


class DlpackOnly:
    """An array of another library, on the CPU."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


# On the CPU, for real


def test_executors_that_keep_arrays_on_the_device_say_so() -> None:
    with open_cpu(linear()) as executor, open_executor(linear(), backend="openvino") as other:
        assert isinstance(executor, DeviceExecutor)
        assert not isinstance(other, DeviceExecutor)
        assert isinstance(executor.run_device(rows(1))["y"], DeviceArray)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_equals_numpy(count: int) -> None:
    feeds = rows(count)
    with open_cpu(linear()) as executor:
        results = executor.run_device(feeds)
    assert list(results) == ["product", "y"]
    for name, expected in {"product": feeds["x"] @ WEIGHT, "y": feeds["x"] @ WEIGHT + feeds["shift"]}.items():
        assert (results[name].shape, results[name].dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(results[name].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_one_graphs_results_feed_another() -> None:
    """square(linear(x)) without a numpy array in between; its inputs are the very memory of the first one's outputs."""
    x = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
    with open_cpu(square(seed=1)) as first, open_cpu(square(seed=2)) as second:
        middle = first.run_device({"x": x})["y"]
        memory = memory_of(middle, "x", "graph")
        assert memory.pointer == middle._value.data_ptr()
        result = second.run_device({"x": middle})["y"].numpy()
        np.testing.assert_array_equal(result, second.run({"x": first.run({"x": x})["y"]})["y"])


@pytest.mark.parametrize(("element", "dtype"), ELEMENTS)
def test_every_dtype_goes_through(element: int, dtype: str) -> None:
    array = np.array([[0, 1, 2], [3, 0, 200]]).astype(dtype)
    with open_cpu(identity(element, ["n", 3])) as executor:
        once = executor.run_device({"t": array})["same"]
        twice = executor.run_device({"t": once})["same"]
    assert once.dtype == twice.dtype == dtype
    np.testing.assert_array_equal(twice.numpy(), array)


def test_views_read_only_arrays_and_dlpack_are_fine() -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    with open_cpu(identity(TensorProto.FLOAT, ["n", 3])) as executor:
        for feed, expected in (
            (wide[:, ::2], wide[:, ::2]),
            (DlpackOnly(wide[:2].reshape(4, 3)), wide[:2].reshape(4, 3)),
            (DlpackOnly(wide[:, ::2]), wide[:, ::2]),
        ):
            np.testing.assert_array_equal(executor.run_device({"t": feed})["same"].numpy(), expected)
        wide.flags.writeable = False
        np.testing.assert_array_equal(executor.run_device({"t": wide[:, 1:4]})["same"].numpy(), wide[:, 1:4])


def test_results_outlive_their_executor_and_share_by_dlpack() -> None:
    executor = open_cpu(linear())
    feeds = rows(3)
    result = executor.run_device(feeds)["y"]
    executor.run_device(rows(3, seed=9))
    executor.close()
    del executor
    shared = np.from_dlpack(result)
    np.testing.assert_allclose(shared, feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-6, atol=1e-6)
    assert shared.ctypes.data == result._value.data_ptr()
    del result
    np.testing.assert_allclose(shared, feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-6, atol=1e-6)


def test_a_host_copy_is_a_copy() -> None:
    with open_cpu(linear()) as executor:
        result = executor.run_device(rows(2))["y"]
        kept = result.numpy().copy()
        result.numpy()[:] = 0
        np.testing.assert_array_equal(result.numpy(), kept)


@pytest.mark.parametrize(("element", "dtype"), ELEMENTS)
def test_rows_are_the_same_memory(element: int, dtype: str) -> None:
    array = np.array([[0, 1, 2], [3, 0, 200], [1, 0, 1], [9, 8, 0]]).astype(dtype)
    with open_cpu(identity(element, ["n", 3])) as executor:
        whole = executor.run_device({"t": array})["same"]
        for start, stop in ((0, 4), (1, 3), (3, 9), (2, 2)):
            part = whole.rows(start, stop)
            assert isinstance(part, DeviceArray)
            assert (part.shape, part.dtype) == (array[start:stop].shape, dtype)
            np.testing.assert_array_equal(part.numpy(), array[start:stop])
            np.testing.assert_array_equal(executor.run_device({"t": part})["same"].numpy(), array[start:stop])
        part = whole.rows(1, 4).rows(1, 2)
        address = whole._value.data_ptr() + 2 * 3 * array.itemsize
        assert memory_of(part, "t", "graph").pointer == address
        del whole
    shared = np.from_dlpack(part)
    del part
    np.testing.assert_array_equal(shared, array[2:3])
    assert shared.ctypes.data == address


def test_dlpack_that_asks_for_a_copy_or_another_device_is_refused() -> None:
    with open_cpu(linear()) as executor:
        result = executor.run_device(rows(1))["y"]
    message = "DLPack shares this memory where it is; it copies nothing: use numpy()"
    with pytest.raises(BufferError, match=exactly(message)):
        result.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=exactly(message)):
        result.__dlpack__(dl_device=(2, 0))
    assert result.__dlpack_device__() == (1, 0)
    assert not hasattr(result, "__cuda_array_interface__")


def test_only_the_wanted_outputs_in_their_order() -> None:
    with open_cpu(linear()) as executor:
        assert list(executor.run_device(rows(1), ["y", "product", "y"])) == ["y", "product"]


def test_many_threads_one_executor() -> None:
    together = threading.Barrier(4)

    def ask(thread: int) -> bool:
        together.wait()
        for turn in range(30):
            feeds = rows(1 + (thread + turn) % 5, seed=thread * 30 + turn)
            result = executor.run_device(feeds, ["y"])["y"].numpy()
            np.testing.assert_allclose(result, feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-5, atol=1e-6)
        return True

    with open_cpu(linear()) as executor, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))


def test_feeds_are_checked_as_ever() -> None:
    with open_cpu(linear(), name="decoder", ranges={"rows": (1, 4)}) as executor:
        result = executor.run_device(rows(2))["y"]
        with pytest.raises(
            TensorError, match=r"^decoder: input 'x' has the wrong shape \| got: \(2, 2\) \| expected: x: "
        ):
            executor.run_device({**rows(2), "x": result})
        with pytest.raises(TensorError, match=r"'rows' is out of range in input 'x' \(axis 0\) \| got: 5"):
            executor.run_device(rows(5))
        with pytest.raises(TensorError, match=r"^decoder: the inputs are not the graph's \| got: missing 'shift'"):
            executor.run_device({"x": rows(1)["x"]})
        with pytest.raises(TensorError, match=r"^decoder: no such output \| got: 'z'"):
            executor.run_device(rows(1), ["z"])


def test_what_is_no_array() -> None:
    message = (
        "decoder: input 'x' is not an array | got: list | "
        "expected: a numpy array, an array with __cuda_array_interface__, or one on the CPU with DLPack"
    )
    with open_cpu(linear(), name="decoder") as executor, pytest.raises(TensorError, match=exactly(message)):
        executor.run_device({**rows(1), "x": [[1.0, 2.0, 3.0]]})


def test_an_array_on_a_gpu_is_no_feed_for_the_cpu() -> None:
    feeds = rows(2)
    message = "graph: an input lies on a GPU | got: CPUExecutionProvider | expected: arrays on the CPU"
    with open_cpu(linear()) as executor, pytest.raises(TensorError, match=exactly(message)):
        executor.run_device({**feeds, "x": OnGpu(feeds["x"])})


def test_closed() -> None:
    executor = open_cpu(linear(), name="decoder")
    executor.close()
    with pytest.raises(BackendError, match=r"^decoder: the executor is closed \| fix: open another one"):
        executor.run_device(rows(1))


# Arrays on a GPU, by what they say about themselves


@pytest.mark.parametrize("strides", [None, (24, 4), "size one"])
def test_memory_of_an_array_on_a_gpu(strides: Any) -> None:
    array = np.zeros((1, 6) if strides == "size one" else (4, 6), np.float32)
    feed = OnGpu(array, strides=(999, 4) if strides == "size one" else strides, stream=7)
    memory = memory_of(feed, "x", "graph")
    assert (memory.pointer, memory.shape, memory.dtype) == (array.ctypes.data, array.shape, np.float32)
    assert (memory.on_gpu, memory.stream, memory.owner) == (True, 7, feed)


def test_an_array_on_a_gpu_with_gaps_is_refused() -> None:
    feed = OnGpu(np.zeros((4, 3), np.float32), strides=(24, 4))
    message = (
        "graph: input 'x' is not contiguous | got: shape (4, 3), strides (24, 4) | "
        "expected: C order without gaps: nothing is copied on the GPU | "
        "fix: make it contiguous, for example by .contiguous() or cupy.ascontiguousarray(...)"
    )
    with pytest.raises(TensorError, match=exactly(message)):
        memory_of(feed, "x", "graph")


class Recorder:
    """An io_binding and a session that note what is asked of them."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.calls: list[tuple[Any, ...]] = []

    def io_binding(self) -> Any:
        return self

    def bind_input(self, *arguments: Any) -> None:
        self.calls.append(("bind_input", *arguments))

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.calls.append(("bind_cpu_input", name))

    def bind_output(self, *arguments: Any) -> None:
        self.calls.append(("bind_output", *arguments))

    def run_with_iobinding(self, binding: Any) -> None:
        self.calls.append(("run",))

    def get_outputs(self) -> list[Any]:
        binding = self.real.io_binding()
        for name, array in rows(2).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("y", "cpu", 0)
        self.real.run_with_iobinding(binding)
        return list(binding.get_outputs())


@pytest.fixture
def on_gpu_one(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An executor that believes to run on cuda:1, with a recorder for a session and for waiting."""

    def arrange(**options: Any) -> tuple[OnnxRuntimeExecutor, Recorder]:
        executor = open_cpu(linear())
        recorder = Recorder(executor._session)
        executor._session, executor.device = recorder, "cuda:1"
        executor._stream = options.get("stream")
        wait = lambda stream, index: recorder.calls.append(("wait", stream, index))  # noqa: E731
        monkeypatch.setattr("samrt_engines.onnxruntime.wait_for_stream", wait)
        return executor, recorder

    return arrange


def test_a_gpu_is_fed_by_pointer_and_keeps_its_results(on_gpu_one: Any) -> None:
    executor, recorder = on_gpu_one()
    feeds = rows(2)
    x = OnGpu(feeds["x"], stream=7)
    result = executor.run_device({"x": x, "shift": feeds["shift"]}, ["y"])["y"]
    assert recorder.calls == [
        ("wait", 7, 1),
        ("bind_input", "x", "cuda", 1, np.float32, (2, 3), feeds["x"].ctypes.data),
        ("bind_cpu_input", "shift"),
        ("bind_output", "y", "cuda", 1),
        ("run",),
    ]
    interface = result.__cuda_array_interface__
    assert interface.pop("data") == (result._value.data_ptr(), False)
    assert interface == {"shape": (2, 2), "typestr": "<f4", "strides": None, "version": 3, "stream": None}
    second = result.rows(1, 2).__cuda_array_interface__
    assert (second["data"], second["shape"]) == ((result._value.data_ptr() + 8, False), (1, 2))


@pytest.mark.parametrize(
    ("own", "named", "given", "waits"),
    [
        (None, 7, None, [7]),  # the array names its stream
        (None, None, None, [0]),  # it names none: the default stream
        (None, 7, 9, [9]),  # the caller knows better
        (9, 7, 9, []),  # the session's own stream is in order anyway
        (9, 9, None, []),
    ],
)
def test_what_feeds_wait_for(own: Any, named: Any, given: Any, waits: list[int], on_gpu_one: Any) -> None:
    executor, recorder = on_gpu_one(stream=own)
    feeds = rows(2)
    executor.run_device({**feeds, "x": OnGpu(feeds["x"], stream=named)}, ["y"], stream=given)
    assert [call[1] for call in recorder.calls if call[0] == "wait"] == waits


def test_our_own_results_are_ready_and_wait_for_nothing(on_gpu_one: Any) -> None:
    executor, recorder = on_gpu_one()
    result = executor.run_device(rows(2), ["y"])["y"]
    assert [call for call in recorder.calls if call[0] == "wait"] == []
    x = OrtArray(open_cpu(square(size=3)).run_device({"x": rows(2)["x"]})["y"]._value, "cuda:1")
    assert result.shape == (2, 2)
    executor.run_device({**rows(2), "x": x}, ["y"])
    assert [call for call in recorder.calls if call[0] == "wait"] == []


def test_a_stream_of_the_callers_is_handed_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def choose(ort: Any, device: str, wanted: Any, options: dict[str, str], *rest: Any) -> Any:
        seen.append(options)
        raise BackendError("enough")

    monkeypatch.setattr("samrt_engines.onnxruntime.choose_provider", choose)
    with pytest.raises(BackendError, match=r"^enough$"):
        open_cpu(linear(), options=OnnxRuntimeOptions(stream=77, provider_options={"do_copy_in_default_stream": "1"}))
    assert seen == [{"user_compute_stream": "77", "do_copy_in_default_stream": "1"}]


# Waiting


class Driver:
    """libcuda, as far as waiting needs it."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            values = [getattr(argument, "value", argument) for argument in arguments]
            self.calls.append((name, values[-1] if name != "cuStreamSynchronize" else values[0]))
            return 700 if name == self.failing else 0

        call.__name__ = name
        return call


def test_waiting_borrows_the_primary_context(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(device_module, "load_cuda_driver", lambda: driver)
    wait_for_stream(7, 1)
    assert [name for name, _ in driver.calls] == [
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuStreamSynchronize",
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    ]
    assert dict(driver.calls)["cuDeviceGet"] == 1
    assert dict(driver.calls)["cuStreamSynchronize"] == 7


def test_waiting_that_fails_gives_the_context_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(failing="cuStreamSynchronize")
    monkeypatch.setattr(device_module, "load_cuda_driver", lambda: driver)
    message = "waiting for a CUDA stream failed in cuStreamSynchronize | got: CUDA error 700"
    with pytest.raises(DeviceError, match=exactly(message)):
        wait_for_stream(7, 0)
    assert [name for name, _ in driver.calls][-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_no_driver_to_wait_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "load_cuda_driver", lambda: None)
    with pytest.raises(
        DeviceError, match=exactly("there is no CUDA driver to wait for a stream with | fix: samrt doctor")
    ):
        wait_for_stream(0, 0)
