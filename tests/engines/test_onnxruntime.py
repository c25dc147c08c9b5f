"""The ONNX Runtime executor: options, threads, which provider runs. What all executors owe: test_executor.py."""

import re
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from samrt_engines import providers
from samrt_engines.errors import BackendError, MissingExtraError, ProviderError
from samrt_engines.executor import DeviceExecutor, open_executor
from samrt_engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeOptions

from .tiny_graphs import WEIGHT, linear, rows

CUDA_FIX = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "samrt[gpu]"'


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("options", [OnnxRuntimeOptions(arena=False, prepack=False, spin=False), OnnxRuntimeOptions()])
def test_options_do_not_change_results(options: OnnxRuntimeOptions) -> None:
    with (
        OnnxRuntimeExecutor(linear(), device="cpu", threads=2, options=options) as executor,
        open_executor(linear(), device="cpu", threads=1) as plain,
    ):
        np.testing.assert_allclose(executor.run(rows(5))["y"], plain.run(rows(5))["y"], rtol=1e-6)


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


def test_the_bytes_of_a_model_are_not_kept() -> None:
    """ONNX Runtime itself holds a model's bytes as long as its session lives: 130 MB for SAM 2.1 tiny."""
    model = linear()
    before = sys.getrefcount(model)
    with open_executor(model, device="cpu") as executor:
        assert sys.getrefcount(model) == before
        assert executor.run(rows(1))["y"].shape == (1, 2)


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:0\n", "CPU"])
def test_devices_that_make_no_sense(device: str) -> None:
    message = f"graph: unknown device | got: {device!r} | expected: auto, cpu, cuda or cuda:N"
    with pytest.raises(BackendError, match=exactly(message)):
        open_executor(linear(), device=device)


def test_no_tensorrt_without_a_plan() -> None:
    message = (
        "graph: TensorRT runs plans, not ONNX files | got: backend='tensorrt' | "
        "expected: a plan built for this GPU: samrt_engines.tensorrt.TensorRTExecutor(plan) | "
        "fix: samrt build BUNDLE, then samrt.load(BUNDLE, backend='tensorrt')"
    )
    with pytest.raises(BackendError, match=exactly(message)):
        open_executor(linear(), backend="tensorrt")


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
        monkeypatch.setattr("samrt_engines.providers.cuda_device_count", lambda: gpus)
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


TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"


def test_tensorrt_inside_onnxruntime(pretend: Callable[..., list[Any]]) -> None:
    """What TensorRT cannot run goes to CUDA on the same GPU, and no further."""
    asked = pretend(offered=[TENSORRT, CUDA, CPU], running=[TENSORRT, CUDA, CPU], gpus=2)
    options = OnnxRuntimeOptions(provider=TENSORRT, provider_options={"trt_engine_cache_enable": "1"})
    with OnnxRuntimeExecutor(linear(), device="cuda:1", options=options) as executor:
        assert (executor.provider, executor.device) == (TENSORRT, "cuda:1")
    mine = (TENSORRT, {"device_id": "1", "trt_engine_cache_enable": "1"})
    assert asked == [[mine, (CUDA, {"device_id": "1"}), (CPU, {})]]


def test_tensorrt_dropped_for_cuda_is_no_silent_fallback(pretend: Callable[..., list[Any]]) -> None:
    pretend(offered=[TENSORRT, CUDA, CPU], running=[CUDA, CPU], gpus=1)
    message = (
        "graph: ONNX Runtime dropped TensorrtExecutionProvider while loading the model | "
        "got: CUDAExecutionProvider, CPUExecutionProvider | expected: TensorrtExecutionProvider | fix: "
    )
    with pytest.raises(ProviderError, match=f"^{re.escape(message)}"):
        OnnxRuntimeExecutor(linear(), device="cuda", options=OnnxRuntimeOptions(provider=TENSORRT))


def test_tensorrt_without_a_gpu_build(pretend: Callable[..., list[Any]]) -> None:
    pretend(offered=[CPU], running=[CPU], gpus=1)
    message = (
        "graph: this ONNX Runtime has no TensorRT provider | got: CPUExecutionProvider | "
        f"expected: TensorrtExecutionProvider | fix: {CUDA_FIX}, or device='cpu'"
    )
    with pytest.raises(ProviderError, match=exactly(message)):
        OnnxRuntimeExecutor(linear(), device="auto", options=OnnxRuntimeOptions(provider=TENSORRT))


@pytest.mark.parametrize(
    ("provider", "device", "message"),
    [
        (
            "CUDA",
            "cuda",
            "graph: unknown provider | got: 'CUDA' | expected: CPUExecutionProvider, CUDAExecutionProvider, "
            "TensorrtExecutionProvider, NvTensorRTRTXExecutionProvider",
        ),
        (CPU, "cuda", "graph: CPUExecutionProvider does not run on this device | got: device='cuda'"),
        (TENSORRT, "cpu", "graph: TensorrtExecutionProvider does not run on this device | got: device='cpu'"),
        (RTX, "auto", "graph: NvTensorRTRTXExecutionProvider does not run on this device | got: device='auto', no GPU"),
    ],
)
def test_providers_that_make_no_sense(
    provider: str, device: str, message: str, pretend: Callable[..., list[Any]]
) -> None:
    pretend(offered=[CUDA, CPU], running=[CUDA, CPU], gpus=0)
    with pytest.raises(BackendError, match=exactly(message)):
        OnnxRuntimeExecutor(linear(), device=device, options=OnnxRuntimeOptions(provider=provider))


class Plugin:
    """The wheel of TensorRT for RTX, and what ONNX Runtime's registry makes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gpus: int) -> None:
        self.registered: list[tuple[str, str]] = []
        self.added: list[Any] = []
        self.gpus = gpus
        package = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
        package.__dict__["get_library_path"] = lambda: "/wheel/librtx.so"
        monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self.register)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", self.devices)
        real = onnxruntime.SessionOptions
        plugin = self

        class Settings(real):  # type: ignore[misc,valid-type]
            def add_provider_for_devices(self, devices: Any, options: Any) -> None:
                plugin.added.append(([device.index for device in devices], options))

        monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
        providers._register.cache_clear()

    def register(self, name: str, library: str) -> None:
        if self.registered:
            raise RuntimeError("library is already registered")
        self.registered.append((name, library))

    def devices(self) -> list[Any]:
        cpu = SimpleNamespace(ep_name=CPU, index=-1)
        gpus = [SimpleNamespace(ep_name=RTX, index=index) for index in range(self.gpus)]
        return [cpu, *(gpus if self.registered else [])]


def test_the_rtx_plugin_is_registered_once_and_given_its_gpu(
    pretend: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend(offered=[CPU], running=[RTX, CPU], gpus=2)
    plugin = Plugin(monkeypatch, gpus=2)
    options = OnnxRuntimeOptions(provider=RTX, provider_options={"nv_max_workspace_size": "0"}, stream=5)
    for device in ("auto", "cuda:1"):
        with OnnxRuntimeExecutor(linear(), device=device, options=options) as executor:
            assert executor.provider == RTX
    assert executor.device == "cuda:1"
    assert plugin.registered == [(RTX, "/wheel/librtx.so")]
    given = {"user_compute_stream": "5", "nv_max_workspace_size": "0"}
    assert plugin.added == [([0], given), ([1], given)]
    assert asked == [[], []]  # a list of providers would overrule the plugin's device


def test_the_rtx_plugin_without_its_gpu(pretend: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(offered=[CPU], running=[CPU], gpus=1)
    Plugin(monkeypatch, gpus=0)
    message = (
        "graph: NvTensorRTRTXExecutionProvider does not have this GPU | got: cuda:0, where it has 0 in all | "
        "expected: an NVIDIA RTX GPU, Ampere or later, with a driver for CUDA 13 | fix: samrt doctor, or device='cpu'"
    )
    for _ in range(2):  # the second time, the plugin is registered already
        with pytest.raises(ProviderError, match=exactly(message)):
            OnnxRuntimeExecutor(linear(), device="cuda", options=OnnxRuntimeOptions(provider=RTX))


def test_the_rtx_plugin_without_a_driver(pretend: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(offered=[CPU], running=[CPU], gpus=0)
    plugin = Plugin(monkeypatch, gpus=1)
    message = (
        "graph: NvTensorRTRTXExecutionProvider needs a GPU | got: no NVIDIA driver or no GPU | "
        "fix: samrt doctor, or device='cpu'"
    )
    with pytest.raises(ProviderError, match=exactly(message)):
        OnnxRuntimeExecutor(linear(), device="cuda", options=OnnxRuntimeOptions(provider=RTX))
    assert plugin.registered == []


def test_the_rtx_plugin_that_does_not_load(pretend: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(offered=[CPU], running=[CPU], gpus=1)
    plugin = Plugin(monkeypatch, gpus=0)
    plugin.registered.append(("somebody", "else"))
    message = "graph: ONNX Runtime cannot load NvTensorRTRTXExecutionProvider | got: library is already registered"
    with pytest.raises(ProviderError, match=exactly(message)):
        OnnxRuntimeExecutor(linear(), device="cuda", options=OnnxRuntimeOptions(provider=RTX))


def test_the_rtx_plugin_that_is_missing(pretend: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(offered=[CPU], running=[CPU], gpus=1)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    message = (
        "the package onnxruntime-ep-nv-tensorrt-rtx-cu13 is needed for ONNX Runtime's NvTensorRTRTXExecutionProvider | "
        'got: import of onnxruntime_ep_nv_tensorrt_rtx halted; None in sys.modules | fix: pip install "samrt[rtx]"'
    )
    with pytest.raises(MissingExtraError, match=exactly(message)):
        OnnxRuntimeExecutor(linear(), device="cuda", options=OnnxRuntimeOptions(provider=RTX))


def test_the_plugin_interface_of_onnxruntime_is_there() -> None:
    """What the doubles above stand for exists in the ONNX Runtime that is installed, and a wrong library is an error."""
    assert hasattr(onnxruntime.SessionOptions, "add_provider_for_devices")
    assert CPU in [device.ep_name for device in onnxruntime.get_ep_devices()]
    with pytest.raises(Exception, match="nowhere"):
        onnxruntime.register_execution_provider_library("nobody", "/nowhere.so")


@pytest.mark.gpu
def test_cuda_equals_numpy() -> None:
    feeds = rows(7)
    with open_executor(linear(), device="cuda") as executor:
        assert executor.provider == CUDA
        results = executor.run(feeds)
    np.testing.assert_allclose(results["y"], feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-2, atol=1e-2)  # TF32


@pytest.mark.gpu
def test_cuda_keeps_its_results_on_the_gpu() -> None:
    feeds = rows(7)
    with open_executor(linear(), device="cuda") as executor:
        assert isinstance(executor, DeviceExecutor)
        first = executor.run_device(feeds)
        second = executor.run_device({"x": feeds["x"], "shift": feeds["shift"]})
    assert first["y"].__dlpack_device__()[0] == 2
    np.testing.assert_array_equal(first["y"].numpy(), second["y"].numpy())
    np.testing.assert_allclose(first["y"].numpy(), feeds["x"] @ WEIGHT + feeds["shift"], rtol=1e-2, atol=1e-2)
