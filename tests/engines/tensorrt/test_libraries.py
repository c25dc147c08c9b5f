"""Finding and loading TensorRT: what is missing is named, and looking does not disturb the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samrt_engines.errors import BackendError, MissingExtraError
from samrt_engines.tensorrt import Flavour, TensorRT
from samrt_engines.tensorrt import libraries as libraries_module
from samrt_engines.tensorrt.libraries import checked_tensorrt, load_tensorrt, preload_rtx_libraries

FRESH = """
import json, os, sys
from samrt_engines.tensorrt import load_tensorrt
before = dict(os.environ)
tensorrt = load_tensorrt("rtx")
assert load_tensorrt("rtx") is tensorrt
print(json.dumps({
    "is": str(tensorrt), "capabilities": tensorrt.capabilities, "environment": dict(os.environ) == before,
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


@pytest.mark.usefixtures("rtx")
def test_rtx_loads_and_leaves_the_process_as_it_was() -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", FRESH], check=True, capture_output=True, text=True)
    found = json.loads(result.stdout)
    assert found["is"].startswith("TensorRT for RTX 1.")
    assert {"75", "80", "86", "89", "120"} <= set(found["capabilities"])
    assert found["environment"], "LD_LIBRARY_PATH was changed"
    assert not {"onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx", "torch", "onnx"} & set(found["modules"])


def test_importing_the_package_loads_neither_tensorrt_nor_cuda() -> None:
    script = "import json, sys, samrt_engines.tensorrt; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    roots = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert not {"tensorrt", "tensorrt_rtx_bindings", "cuda", "onnxruntime", "onnx", "torch"} & roots


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[Flavour, Any]:
    """What `load_tensorrt` finds, by flavour: a TensorRT, or an error."""
    found: dict[Flavour, Any] = {}

    def load(flavour: Flavour) -> TensorRT:
        if isinstance(found[flavour], Exception):
            raise found[flavour]
        return found[flavour]  # type: ignore[no-any-return]

    monkeypatch.setattr(libraries_module, "_load", load)
    return found


def missing(package: str) -> MissingExtraError:
    return MissingExtraError.for_package(package, extra="rtx", purpose="", got=f"no {package}")


def test_auto_prefers_tensorrt_then_rtx(loads: dict[Flavour, Any]) -> None:
    loads[Flavour.TENSORRT], loads[Flavour.RTX] = "tensorrt", "rtx"
    assert load_tensorrt() == "tensorrt"
    assert load_tensorrt("rtx") == "rtx"
    loads[Flavour.TENSORRT] = missing("tensorrt")
    assert load_tensorrt() == "rtx"
    with pytest.raises(MissingExtraError, match="no tensorrt"):
        load_tensorrt("tensorrt")
    loads[Flavour.RTX] = missing("bindings")
    with pytest.raises(MissingExtraError) as caught:
        load_tensorrt()
    assert caught.value.got == "no tensorrt; no bindings"
    assert caught.value.fix == 'pip install "samrt[tensorrt]", or pip install "samrt[rtx]"'


def test_auto_does_not_hide_a_tensorrt_that_is_too_old(loads: dict[Flavour, Any]) -> None:
    loads[Flavour.TENSORRT], loads[Flavour.RTX] = BackendError("too old"), "rtx"
    with pytest.raises(BackendError, match="too old"):
        load_tensorrt()


def test_unknown_flavours_are_refused() -> None:
    with pytest.raises(BackendError, match=r"got: 'trt' \| expected: auto, tensorrt, rtx"):
        load_tensorrt("trt")


@pytest.mark.parametrize(
    ("version", "new_enough"), [("10.13.3.9", False), ("8.6.1", False), ("10.14.1.48", True), ("11.4.0.106", True)]
)
def test_old_versions_are_refused(version: str, new_enough: bool) -> None:
    module: Any = SimpleNamespace(__version__=version)
    if new_enough:
        assert str(checked_tensorrt(module, Flavour.TENSORRT)) == f"TensorRT {version}"
        return
    with pytest.raises(BackendError, match=rf"too old.*got: {version} \| expected: 10\.14 or later"):
        checked_tensorrt(module, Flavour.TENSORRT)


def test_what_flavours_can_do() -> None:
    members = dict.fromkeys(("NONE", "CURRENT", "SM86", "SM120"))
    module = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members))
    rtx, plain = TensorRT(module, Flavour.RTX, "1.7"), TensorRT(module, Flavour.TENSORRT, "11.4")
    assert (rtx.builds_for_capability, rtx.has_timing_cache, rtx.captures_cuda_graphs) == (True, False, True)
    assert (plain.builds_for_capability, plain.has_timing_cache, plain.captures_cuda_graphs) == (False, True, False)
    assert (rtx.capabilities, plain.capabilities) == (("86", "120"), ())


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> None:
        raise ImportError(f"libnvinfer.so.11: cannot open shared object file, for {name}")

    monkeypatch.setattr(libraries_module.importlib, "import_module", no_module)
    with pytest.raises(MissingExtraError, match=r"tensorrt is needed to .*got: libnvinfer.*samrt\[tensorrt\]"):
        libraries_module._import("tensorrt", Flavour.TENSORRT)


def wheel_with(folder: Path, monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    for name in files:
        (folder / name).write_bytes(b"no library")
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(libraries_module.importlib.util, "find_spec", lambda _: spec)


@pytest.mark.skipif(sys.platform == "win32", reason="names of Linux libraries")
def test_a_wheel_without_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_with(tmp_path, monkeypatch, "libtensorrt_rtx.so.1.7.1")
    with pytest.raises(MissingExtraError, match=r"no libtensorrt_onnxparser_rtx\.so\.\* in .*samrt\[rtx\]"):
        preload_rtx_libraries()
    wheel_with(tmp_path, monkeypatch, "libtensorrt_onnxparser_rtx.so.1.7.1")
    with pytest.raises(MissingExtraError, match=r"libtensorrt_rtx\.so\.1\.7\.1.*(file too short|invalid ELF)"):
        preload_rtx_libraries()


@pytest.mark.skipif(sys.platform == "win32", reason="names of Linux libraries")
def test_the_newest_library_is_taken_and_links_are_not(tmp_path: Path) -> None:
    for version in ("1.7.1", "1.10.0", "1.9.9"):
        (tmp_path / f"libtensorrt_rtx.so.{version}").touch()
    os.symlink("libtensorrt_rtx.so.1.7.1", tmp_path / "libtensorrt_rtx.so.2")
    assert libraries_module._newest_library(tmp_path, "tensorrt_rtx").name == "libtensorrt_rtx.so.1.10.0"


def test_without_the_wheel_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries_module.importlib.util, "find_spec", lambda _: None)
    assert preload_rtx_libraries() == ()
