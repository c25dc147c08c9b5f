"""The ONNX Runtime executor on tiny graphs: values against numpy, every refusal by its message, threads, close."""

import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from samrt_engines.errors import BackendError, MissingExtraError, ProviderError, TensorError
from samrt_engines.executor import Executor, open_executor
from samrt_engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeOptions
from samrt_engines.tensors import Array, TensorSpec

OPSET = 23
CUDA_FIX = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "samrt[gpu]"'

LINEAR_INPUTS = (TensorSpec("x", "float32", ("rows", 3)), TensorSpec("shift", "float32", (2,)))
LINEAR_OUTPUTS = (TensorSpec("product", "float32", ("rows", 2)), TensorSpec("y", "float32", ("rows", 2)))
WEIGHT = np.array([[1, -2], [0.5, 4], [-3, 0.25]], np.float32)


def model_bytes(nodes: Sequence[onnx.NodeProto], inputs: Any, outputs: Any, **initializers: Array) -> bytes:
    """An ONNX file from nodes and (name, element type, shape) triples."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString())


def linear() -> bytes:
    """product = x @ WEIGHT; y = product + shift."""
    return model_bytes(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "shift"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["rows", 3]), ("shift", TensorProto.FLOAT, [2])],
        [("product", TensorProto.FLOAT, ["rows", 2]), ("y", TensorProto.FLOAT, ["rows", 2])],
        weight=WEIGHT,
    )


def gather() -> bytes:
    """picked = table[index]: fails at run time for an index that is not there."""
    return model_bytes(
        [helper.make_node("Gather", ["table", "index"], ["picked"])],
        [("index", TensorProto.INT64, ["count"])],
        [("picked", TensorProto.FLOAT, ["count"])],
        table=np.arange(4, dtype=np.float32),
    )


def identity(element: int, shape: Sequence[int | str | None]) -> bytes:
    return model_bytes(
        [helper.make_node("Identity", ["t"], ["same"])], [("t", element, shape)], [("same", element, shape)]
    )


def rows(count: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(count, 3)).astype(np.float32), "shift": rng.normal(size=2).astype(np.float32)}


def open_cpu(model: Path | bytes, **options: Any) -> Executor:
    return open_executor(model, device="cpu", threads=1, **options)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# What it computes


@pytest.mark.parametrize("count", [0, 1, 7])
def test_equals_numpy(count: int) -> None:
    feeds = rows(count)
    with open_cpu(linear()) as executor:
        results = executor.run(feeds)
    assert list(results) == ["product", "y"]
    np.testing.assert_allclose(results["product"], feeds["x"] @ WEIGHT, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(results["y"], feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.INT32, "int32"),
        (TensorProto.INT64, "int64"),
        (TensorProto.BOOL, "bool"),
    ],
)
def test_every_dtype_goes_through(element: int, dtype: str) -> None:
    array = np.array([[0, 1, 2], [3, 0, 200]]).astype(dtype)
    with open_cpu(identity(element, ["n", 3])) as executor:
        assert executor.inputs == (TensorSpec("t", dtype, ("n", 3)),)
        same = executor.run({"t": array})["same"]
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, array)


def test_views_and_read_only_arrays_are_fine() -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    wide.flags.writeable = False
    with open_cpu(identity(TensorProto.FLOAT, ["n", 3])) as executor:
        np.testing.assert_array_equal(executor.run({"t": wide[:, ::2]})["same"], wide[:, ::2])
        np.testing.assert_array_equal(executor.run({"t": wide.T[:, :3]})["same"], wide.T[:, :3])


def test_results_belong_to_the_caller() -> None:
    feeds = rows(2)
    with open_cpu(linear()) as executor:
        first = executor.run(feeds)["y"]
        kept = first.copy()
        executor.run(rows(2, seed=1))
        np.testing.assert_array_equal(first, kept)
        first += 1
    np.testing.assert_array_equal(first, kept + 1)


def test_only_the_wanted_outputs_in_their_order() -> None:
    with open_cpu(linear()) as executor:
        assert list(executor.run(rows(1), ["y"])) == ["y"]
        assert list(executor.run(rows(1), ["y", "product", "y"])) == ["y", "product"]


def test_a_path_and_its_bytes_run_alike(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear())
    with open_cpu(path) as from_path, open_cpu(path.read_bytes()) as from_bytes:
        np.testing.assert_array_equal(from_path.run(rows(3))["y"], from_bytes.run(rows(3))["y"])


@pytest.mark.parametrize("options", [OnnxRuntimeOptions(arena=False, prepack=False, spin=False), OnnxRuntimeOptions()])
def test_options_do_not_change_results(options: OnnxRuntimeOptions) -> None:
    with (
        OnnxRuntimeExecutor(linear(), device="cpu", threads=2, options=options) as executor,
        open_cpu(linear()) as plain,
    ):
        np.testing.assert_allclose(executor.run(rows(5))["y"], plain.run(rows(5))["y"], rtol=1e-6)


def test_many_threads_one_executor() -> None:
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


def test_specs_come_from_the_model() -> None:
    with open_cpu(linear()) as executor:
        assert executor.inputs == LINEAR_INPUTS
        assert executor.outputs == LINEAR_OUTPUTS
        assert executor.provider == "CPUExecutionProvider"


def test_a_dimension_without_a_name_gets_one_of_its_own() -> None:
    with open_cpu(identity(TensorProto.FLOAT, [None, None])) as executor:
        assert executor.inputs == (TensorSpec("t", "float32", ("t.0", "t.1")),)
        assert executor.run({"t": np.zeros((2, 5), np.float32)})["same"].shape == (2, 5)


def test_the_manifests_specs_rule_where_they_agree() -> None:
    promised = (LINEAR_INPUTS[1], TensorSpec("x", "float32", ("prompts", 3)))
    with open_cpu(linear(), inputs=promised, outputs=LINEAR_OUTPUTS[::-1], ranges={"prompts": (1, 4)}) as executor:
        assert executor.inputs == promised
        assert list(executor.run(rows(4))) == ["y", "product"]
        with pytest.raises(TensorError, match=r"'prompts' is out of range in input 'x' \(axis 0\) \| got: 5"):
            executor.run(rows(5))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_set(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = onnxruntime.InferenceSession

    def watch(model: bytes, settings: Any, **options: Any) -> Any:
        seen.append(settings.intra_op_num_threads)
        return real(model, settings, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    open_executor(linear(), device="cpu", threads=threads).close()
    assert seen == [threads]


# What it refuses


def test_feeds_are_checked_before_onnxruntime_sees_them() -> None:
    message = (
        "mask_decoder: input 'x' has the wrong dtype | got: float64 | expected: float32 | fix: .astype(\"float32\")"
    )
    with open_cpu(linear(), name="mask_decoder") as executor, pytest.raises(TensorError, match=exactly(message)):
        executor.run({**rows(1), "x": np.zeros((1, 3))})


@pytest.mark.parametrize(("wanted", "got"), [(["masks"], "'masks'"), ([], "nothing")])
def test_outputs_that_are_not_the_graphs(wanted: list[str], got: str) -> None:
    message = f"graph: no such output | got: {got} | expected: 'product', 'y'"
    with open_cpu(linear()) as executor, pytest.raises(TensorError, match=exactly(message)):
        executor.run(rows(1), wanted)


def test_closed() -> None:
    executor = open_cpu(linear(), name="image_encoder")
    executor.close()
    executor.close()
    message = "image_encoder: the executor is closed | fix: open another one: open_executor(...)"
    with pytest.raises(BackendError, match=exactly(message)):
        executor.run(rows(1))


def test_closed_by_its_context_whatever_happens() -> None:
    executor = open_cpu(linear())
    with pytest.raises(KeyError), executor:
        raise KeyError
    with pytest.raises(BackendError, match="the executor is closed"):
        executor.run(rows(1))


def test_failure_while_running() -> None:
    with open_cpu(gather(), name="table") as executor:
        np.testing.assert_array_equal(executor.run({"index": np.array([3, 0])})["picked"], [3, 0])
        with pytest.raises(BackendError, match=r"^table: ONNX Runtime failed on CPUExecutionProvider \| got: .*Gather"):
            executor.run({"index": np.array([4])})
        np.testing.assert_array_equal(executor.run({"index": np.array([1])})["picked"], [1])


@pytest.mark.parametrize(("model", "reason"), [(b"", "No graph"), (b"not a model", "protobuf"), (linear()[:-40], "")])
def test_not_a_model(model: bytes, reason: str) -> None:
    with pytest.raises(BackendError, match=rf"^graph: ONNX Runtime cannot load the model \| got: .*{reason}") as caught:
        open_cpu(model)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"^graph: ONNX Runtime cannot load the model \| got: .*doesn't exist"):
        open_cpu(tmp_path / "nowhere.onnx")


def test_external_data_only_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_type_samrt_does_not_use() -> None:
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
def test_a_model_its_manifest_does_not_know(promise: Any, side: str, difference: str) -> None:
    expected = "; ".join(map(str, promise[side]))
    message = (
        f"prompt_encoder: the model's {side} are not what the manifest says | got: {difference} | "
        f"expected: {expected} | fix: export the model again: samrt export"
    )
    with pytest.raises(BackendError, match=exactly(message)):
        open_cpu(linear(), name="prompt_encoder", **promise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "graph: unknown backend | got: 'onnx' | expected: auto, onnxruntime, tensorrt"),
        (
            {"backend": "tensorrt"},
            "graph: no TensorRT executor yet | got: backend='tensorrt' | "
            "expected: a plan for this GPU, which comes with `samrt build` | fix: backend='onnxruntime'",
        ),
        *(
            ({"device": device}, f"graph: unknown device | got: {device!r} | expected: auto, cpu, cuda or cuda:N")
            for device in ("", "gpu", "cuda:", "cuda:-1", "cuda:0\n", "CPU")
        ),
        ({"threads": 0}, "graph: not a number of threads | got: 0 | expected: 1 or more, or None"),
    ],
)
def test_arguments_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(BackendError, match=exactly(message)):
        open_executor(linear(), **options)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = (
        "the package onnxruntime is needed to run graphs on ONNX Runtime | "
        'got: import of onnxruntime halted; None in sys.modules | fix: pip install "samrt[cpu]"'
    )
    with pytest.raises(MissingExtraError, match=exactly(message)):
        open_executor(linear())


# Which provider runs


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Pretend that ONNX Runtime offers and runs certain providers and that the driver has `gpus` GPUs.

    Returns the list of providers each new session is asked for.
    """

    class Session:
        def __init__(self, running: Sequence[str]) -> None:
            self.running = list(running)
            self.real = onnxruntime_session(linear(), providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return self.running

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    onnxruntime_session = onnxruntime.InferenceSession

    def arrange(*, offered: Sequence[str], running: Sequence[str], gpus: int) -> list[Any]:
        asked: list[Any] = []

        def session(model: bytes, settings: Any, *, providers: list[Any], enable_fallback: int) -> Session:
            assert enable_fallback == 0
            asked.append(providers)
            return Session(running)

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(offered))
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn"))
        monkeypatch.setattr("samrt_engines.onnxruntime.cuda_device_count", lambda: gpus)
        return asked

    return arrange


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("device", "offered", "gpus", "first"),
    [
        ("auto", [CUDA, CPU], 1, (CUDA, {"device_id": "0"})),
        ("auto", [CUDA, CPU], 0, (CPU, {})),
        ("auto", [CPU], 1, (CPU, {})),
        ("cpu", [CUDA, CPU], 1, (CPU, {})),
        ("cuda", [CUDA, CPU], 1, (CUDA, {"device_id": "0"})),
        ("cuda:2", [CUDA, CPU], 3, (CUDA, {"device_id": "2"})),
    ],
)
def test_which_provider_a_device_means(
    device: str, offered: list[str], gpus: int, first: Any, pretend: Callable[..., list[Any]]
) -> None:
    asked = pretend(offered=offered, running=list(dict.fromkeys([first[0], CPU])), gpus=gpus)
    with open_executor(linear(), device=device) as executor:
        assert executor.provider == first[0]
    assert [providers[0] for providers in asked] == [first]


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_dropped_provider_is_no_silent_fallback(device: str, pretend: Callable[..., list[Any]]) -> None:
    pretend(offered=[CUDA, CPU], running=[CPU], gpus=1)
    message = (
        "graph: ONNX Runtime dropped CUDAExecutionProvider while loading the model | got: CPUExecutionProvider | "
        "expected: CUDAExecutionProvider | fix: the reason is in ONNX Runtime's log above, most often a CUDA or cuDNN "
        "library that is missing or of another version; device='cpu' runs without"
    )
    with pytest.raises(ProviderError, match=exactly(message)):
        open_executor(linear(), device=device)


def test_cuda_without_a_cuda_build(pretend: Callable[..., list[Any]]) -> None:
    asked = pretend(offered=[CPU], running=[CPU], gpus=1)
    message = (
        "graph: this ONNX Runtime has no CUDA provider | got: CPUExecutionProvider | expected: CUDAExecutionProvider | "
        f"fix: {CUDA_FIX}, or device='cpu'"
    )
    with pytest.raises(ProviderError, match=exactly(message)):
        open_executor(linear(), device="cuda")
    assert asked == []


def test_stdout_stays_clean_while_cuda_libraries_load(
    pretend: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(offered=[CUDA, CPU], running=[CUDA, CPU], gpus=1)
    open_executor(linear(), device="cuda").close()
    assert capsys.readouterr() == ("", "Failed to load libcudnn\n")


@pytest.mark.gpu
def test_cuda_equals_numpy() -> None:
    feeds = rows(7)
    with open_executor(linear(), device="cuda") as executor:
        assert executor.provider == CUDA
        results = executor.run(feeds)
    np.testing.assert_allclose(results["y"], feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-2, atol=1e-2)  # TF32
