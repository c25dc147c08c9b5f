"""What every executor on a CPU owes its caller: one set of behaviours, run against each of them."""

import re
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from samrt_engines.errors import BackendError, TensorError
from samrt_engines.executor import Executor, open_executor
from samrt_engines.tensors import TensorSpec

from .tiny_graphs import (
    ELEMENTS,
    LINEAR_INPUTS,
    LINEAR_OUTPUTS,
    WEIGHT,
    identity,
    linear,
    rows,
    square,
    threes,
)

PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "openvino": "OpenVINO CPU"}
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

Open = Callable[..., Executor]


@pytest.fixture(params=list(PROVIDERS))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_cpu(backend: str) -> Open:
    def open_one(model: Path | bytes, **options: Any) -> Executor:
        return open_executor(model, backend=backend, **{"device": "cpu", "threads": 1, **options})

    return open_one


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# What it computes


@pytest.mark.parametrize("count", [0, 1, 7])
def test_equals_numpy(count: int, open_cpu: Open) -> None:
    feeds = rows(count)
    with open_cpu(linear()) as executor:
        results = executor.run(feeds)
    assert list(results) == ["product", "y"]
    np.testing.assert_allclose(results["product"], feeds["x"] @ WEIGHT, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(results["y"], feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-6, atol=1e-6)


def test_one_executor_takes_any_size(open_cpu: Open) -> None:
    with open_cpu(linear()) as executor:
        for count in (3, 1, 8, 3):
            feeds = rows(count, seed=count)
            expected = feeds["x"] @ WEIGHT + feeds["shift"]
            np.testing.assert_allclose(executor.run(feeds)["y"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("element", "dtype"), ELEMENTS)
def test_every_dtype_goes_through(element: int, dtype: str, open_cpu: Open) -> None:
    array = np.array([[0, 1, 2], [3, 0, 200]]).astype(dtype)
    with open_cpu(identity(element, ["n", 3])) as executor:
        assert executor.inputs == (TensorSpec("t", dtype, ("n", 3)),)
        same = executor.run({"t": array})["same"]
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, array)


def test_a_scalar(open_cpu: Open) -> None:
    with open_cpu(identity(TensorProto.FLOAT, [])) as executor:
        same = executor.run({"t": np.array(2.5, np.float32)})["same"]
    assert (same.shape, float(same)) == ((), 2.5)


def test_views_and_read_only_arrays_are_fine(open_cpu: Open) -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    wide.flags.writeable = False
    square = wide[:2].reshape(4, 3)
    assert square.flags.c_contiguous
    assert not square.flags.writeable
    with open_cpu(identity(TensorProto.FLOAT, ["n", 3])) as executor:
        for array in (wide[:, ::2], wide.T[:, :3], square, wide[:0, :3]):
            np.testing.assert_array_equal(executor.run({"t": array})["same"], array)


def test_feeds_are_not_changed(open_cpu: Open) -> None:
    """The graph begins with an activation, which could be computed in place."""
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    before = x.copy()
    with open_cpu(square()) as executor:
        executor.run({"x": x})
        np.testing.assert_array_equal(x, before)
        x.flags.writeable = False
        executor.run({"x": x})
    np.testing.assert_array_equal(x, before)


def test_results_belong_to_the_caller(open_cpu: Open) -> None:
    feeds = rows(2)
    with open_cpu(linear()) as executor:
        first = executor.run(feeds)["y"]
        kept = first.copy()
        executor.run(rows(2, seed=1))
        np.testing.assert_array_equal(first, kept)
        first += 1
        np.testing.assert_allclose(executor.run(feeds)["y"], kept, rtol=1e-6)
    np.testing.assert_array_equal(first, kept + 1)


def test_an_input_handed_through_is_a_copy(open_cpu: Open) -> None:
    array = np.ones((2, 3), np.float32)
    with open_cpu(identity(TensorProto.FLOAT, ["n", 3])) as executor:
        same = executor.run({"t": array})["same"]
    same += 1
    np.testing.assert_array_equal(array, 1)


def test_feeds_are_not_kept(open_cpu: Open) -> None:
    """Memory that Python hands out goes back when the caller drops the feeds, while the executor lives on."""
    with open_cpu(identity(TensorProto.UINT8, ["n"])) as executor:
        executor.run({"t": np.zeros(1, np.uint8)})
        tracemalloc.start()
        try:
            executor.run({"t": np.zeros(1 << 24, np.uint8)})
            left, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak >= 1 << 24
    assert left < 1 << 20


def test_only_the_wanted_outputs_in_their_order(open_cpu: Open) -> None:
    with open_cpu(linear()) as executor:
        assert list(executor.run(rows(1), ["y"])) == ["y"]
        assert list(executor.run(rows(1), ["y", "product", "y"])) == ["y", "product"]


def test_a_path_and_its_bytes_run_alike(tmp_path: Path, open_cpu: Open) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear())
    with open_cpu(path) as from_path, open_cpu(path.read_bytes()) as from_bytes:
        np.testing.assert_array_equal(from_path.run(rows(3))["y"], from_bytes.run(rows(3))["y"])


def test_many_threads_one_executor(open_cpu: Open) -> None:
    """Every thread gets the answer to its own question, with its own number of rows."""
    threads, turns = 8, 40
    together = Barrier(threads)

    def ask(thread: int) -> bool:
        together.wait()
        for turn in range(turns):
            feeds = rows(1 + (thread + turn) % 5, seed=thread * turns + turn)
            expected = feeds["x"] @ WEIGHT + feeds["shift"]
            np.testing.assert_allclose(executor.run(feeds, ["y"])["y"], expected, rtol=1e-5, atol=1e-6)
        return True

    with open_cpu(linear()) as executor, ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(ask, range(threads)))


# What it says about itself


def test_specs_come_from_the_model(backend: str, open_cpu: Open) -> None:
    with open_cpu(linear()) as executor:
        assert executor.inputs == LINEAR_INPUTS
        assert executor.outputs == LINEAR_OUTPUTS
        assert (executor.provider, executor.device) == (PROVIDERS[backend], "cpu")


def test_a_dimension_without_a_name_gets_one_of_its_own(open_cpu: Open) -> None:
    with open_cpu(identity(TensorProto.FLOAT, [None, None])) as executor:
        assert executor.inputs == (TensorSpec("t", "float32", ("t.0", "t.1")),)
        assert executor.run({"t": np.zeros((2, 5), np.float32)})["same"].shape == (2, 5)


def test_the_manifests_specs_rule_where_they_agree(open_cpu: Open) -> None:
    promised = (LINEAR_INPUTS[1], TensorSpec("x", "float32", ("prompts", 3)))
    with open_cpu(linear(), inputs=promised, outputs=LINEAR_OUTPUTS[::-1], ranges={"prompts": (1, 4)}) as executor:
        assert executor.inputs == promised
        assert list(executor.run(rows(4))) == ["y", "product"]
        with pytest.raises(TensorError, match=r"'prompts' is out of range in input 'x' \(axis 0\) \| got: 5"):
            executor.run(rows(5))


# What it refuses


def test_feeds_are_checked_before_the_backend_sees_them(open_cpu: Open) -> None:
    message = (
        "mask_decoder: input 'x' has the wrong dtype | got: float64 | expected: float32 | fix: .astype(\"float32\")"
    )
    with open_cpu(linear(), name="mask_decoder") as executor, pytest.raises(TensorError, match=exactly(message)):
        executor.run({**rows(1), "x": np.zeros((1, 3))})


@pytest.mark.parametrize(("wanted", "got"), [(["masks"], "'masks'"), ([], "nothing")])
def test_outputs_that_are_not_the_graphs(wanted: list[str], got: str, open_cpu: Open) -> None:
    message = f"graph: no such output | got: {got} | expected: 'product', 'y'"
    with open_cpu(linear()) as executor, pytest.raises(TensorError, match=exactly(message)):
        executor.run(rows(1), wanted)


def test_closed(open_cpu: Open) -> None:
    executor = open_cpu(linear(), name="image_encoder")
    executor.close()
    executor.close()
    message = "image_encoder: the executor is closed | fix: open another one: open_executor(...)"
    with pytest.raises(BackendError, match=exactly(message)):
        executor.run(rows(1))


def test_closed_by_its_context_whatever_happens(open_cpu: Open) -> None:
    executor = open_cpu(linear())
    with pytest.raises(KeyError), executor:
        raise KeyError
    with pytest.raises(BackendError, match="the executor is closed"):
        executor.run(rows(1))


def test_failure_while_running(backend: str, open_cpu: Open) -> None:
    with open_cpu(threes(), name="table") as executor:
        np.testing.assert_array_equal(executor.run({"x": np.arange(6, dtype=np.float32)})["y"], [[0, 1, 2], [3, 4, 5]])
        message = rf"^table: {TITLES[backend]} failed on {PROVIDERS[backend]} \| got: .*[Rr]eshape"
        with pytest.raises(BackendError, match=message) as caught:
            executor.run({"x": np.zeros(4, np.float32)})
        assert "\n" not in str(caught.value)
        np.testing.assert_array_equal(executor.run({"x": np.ones(3, np.float32)})["y"], [[1, 1, 1]])


@pytest.mark.parametrize(("model", "reason"), [(b"", "No graph"), (b"not a model", "protobuf"), (linear()[:-40], "")])
def test_not_a_model(model: bytes, reason: str, open_cpu: Open) -> None:
    with pytest.raises(BackendError, match=rf"^graph: ONNX Runtime cannot load the model \| got: .*{reason}") as caught:
        open_cpu(model)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path, open_cpu: Open) -> None:
    with pytest.raises(BackendError, match=r"^graph: ONNX Runtime cannot load the model \| got: .*doesn't exist"):
        open_cpu(tmp_path / "nowhere.onnx")


def test_external_data_only_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_cpu: Open) -> None:
    """Data beside a checked model is found; data that happens to lie in the working directory, which nobody checked, is not."""
    path = tmp_path / "linear.onnx"
    options = {"save_as_external_data": True, "location": "linear.data", "size_threshold": 0}
    onnx.save_model(onnx.load_from_string(linear()), path, **options)
    monkeypatch.chdir(tmp_path)
    with open_cpu(path) as executor, open_cpu(linear()) as whole:
        np.testing.assert_array_equal(executor.run(rows(2))["y"], whole.run(rows(2))["y"])
    with pytest.raises(
        BackendError, match=r"cannot load the model .* fix: pass the path: this model has external data$"
    ):
        open_cpu(path.read_bytes())


def test_a_type_samrt_does_not_use(open_cpu: Open) -> None:
    with pytest.raises(
        BackendError, match=r"'t' is of a type samrt does not use \| got: tensor\(double\) \| expected: "
    ):
        open_cpu(identity(TensorProto.DOUBLE, [1]))


@pytest.mark.parametrize(
    ("promise", "side", "difference"),
    [
        ({"inputs": LINEAR_INPUTS[:1]}, "inputs", "'shift' is unknown"),
        ({"outputs": (*LINEAR_OUTPUTS, TensorSpec("z", "float32", (1,)))}, "outputs", "'z' is missing"),
        (
            {"inputs": (TensorSpec("x", "float16", ("rows", 3)), LINEAR_INPUTS[1])},
            "inputs",
            "x: float32 (rows, 3) instead of x: float16 (rows, 3)",
        ),
        (
            {"outputs": (LINEAR_OUTPUTS[0], TensorSpec("y", "float32", ("rows", 2, 1)))},
            "outputs",
            "y: float32 (rows, 2) instead of y: float32 (rows, 2, 1)",
        ),
    ],
)
def test_a_model_its_manifest_does_not_know(promise: Any, side: str, difference: str, open_cpu: Open) -> None:
    expected = "; ".join(map(str, promise[side]))
    message = (
        f"prompt_encoder: the model's {side} are not what the manifest says | got: {difference} | "
        f"expected: {expected} | fix: export the model again: samrt export"
    )
    with pytest.raises(BackendError, match=exactly(message)):
        open_cpu(linear(), name="prompt_encoder", **promise)


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_that_make_no_sense(threads: int, open_cpu: Open) -> None:
    message = f"graph: not a number of threads | got: {threads} | expected: 1 or more, or None"
    with pytest.raises(BackendError, match=exactly(message)):
        open_cpu(linear(), threads=threads)


# Choosing one


def test_an_unknown_backend() -> None:
    message = "graph: unknown backend | got: 'onnx' | expected: auto, onnxruntime, openvino, tensorrt"
    with pytest.raises(BackendError, match=exactly(message)):
        open_executor(linear(), backend="onnx")


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_a_precision_onnxruntime_cannot_choose(backend: str) -> None:
    message = (
        "graph: ONNX Runtime computes in the types of the graph | got: precision='bf16' | expected: precision=None | "
        "fix: export the model in this precision: samrt export --precision, or backend='openvino'"
    )
    with pytest.raises(BackendError, match=exactly(message)):
        open_executor(linear(), backend=backend, device="cpu", precision="bf16")
