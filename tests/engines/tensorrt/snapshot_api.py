"""Record the Python API of a TensorRT: every member of the classes that samrt touches, with its signature.

    python tests/engines/tensorrt/snapshot_api.py FOLDER...    print what the bindings installed in each folder offer
    python tests/engines/tensorrt/snapshot_api.py --write      fetch all of VERSIONS with pip, and record them in api/

The bindings of TensorRT are one extension module that wants libraries which pip does not bring. Empty ones, with the names
it asks for, let it be imported; nothing of it may be called then. They take a C compiler. TensorRT for RTX comes with its
libraries.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).with_name("api")

VERSIONS = {
    "tensorrt-10.14": ("tensorrt-cu13-bindings==10.14.1.48.post1",),
    "tensorrt-10.16": ("tensorrt-cu13-bindings==10.16.1.11",),
    "tensorrt-11.4": ("tensorrt-cu13-bindings==11.4.0.106",),
    "rtx-1.7": ("tensorrt-rtx-cu13-bindings==1.7.1.116", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"),
}
"""Name of the record -> what pip installs for it. The first is the oldest that `load_tensorrt` takes."""

CLASSES = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "EngineInspector",
    "EngineStat",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IAttention",
    "IAttentionInputLayer",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "TensorIOMode",
    "ComputeCapability",
    "CudaGraphStrategy",
]

_ENTRY_POINTS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
]


def read_api(folder: Path) -> dict[str, Any]:
    """The API of the bindings that are installed in a folder, read in a process of its own."""
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    api: dict[str, Any] = json.loads(result.stdout)
    return api


def describe(trt: Any) -> dict[str, Any]:
    """{"version": ..., "classes": {class: {member: kind}}}; a method's kind is the list of its signatures."""
    classes = {name: _members(getattr(trt, name)) for name in sorted(CLASSES) if hasattr(trt, name)}
    return {"version": trt.__version__, "classes": classes}


def _members(cls: type) -> dict[str, Any]:
    names = [name for name in dir(cls) if not name.startswith("_") or name == "__init__"]
    return {name: _kind(inspect.getattr_static(cls, name), getattr(cls, name)) for name in names}


def _kind(static: Any, value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        text = (getattr(value, "__doc__", None) or "").strip()
        lines = re.findall(r"^(?:\d+\. )?(\w+\(.*?\) -> .*)$", text, re.M)
        return [re.sub(r"\b\w+_bindings\.\w+\.", "", line) for line in lines if "*args" not in line]
    return "property" if isinstance(static, property) else "value"


def load_bindings(folder: Path) -> Any:
    """Import the bindings in a folder. Only in a process that ends soon: empty libraries stay loaded."""
    sys.path.insert(0, str(folder))
    if (folder / "tensorrt_rtx_bindings").is_dir():
        for name in ("tensorrt_rtx", "tensorrt_onnxparser_rtx"):
            (file,) = (folder / "onnxruntime_ep_nv_tensorrt_rtx").glob(f"lib{name}.so.*.*.*")
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module("tensorrt_rtx_bindings")
    (info,) = folder.glob("tensorrt_*_bindings-*.dist-info")
    match = re.search(r"-(\d+)\.", info.name)
    assert match
    _load_empty_libraries(match[1])
    return importlib.import_module("tensorrt_bindings")


def _load_empty_libraries(major: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("\n".join(f"void* {name}(void) {{ return 0; }}" for name in _ENTRY_POINTS))
        for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            library = f"lib{name}.so.{major}"
            target = str(Path(folder) / library)
            compiler = os.environ.get("CC", "cc")
            subprocess.run(
                [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", target, str(source)], check=True
            )
            ctypes.CDLL(target, mode=ctypes.RTLD_GLOBAL)


def install(name: str, folder: Path) -> None:
    """Install what a record is made from, into a folder of its own: two versions do not fit into one environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *VERSIONS[name]]
    subprocess.run(command, check=True)


def write_records() -> None:
    shutil.rmtree(RECORDS, ignore_errors=True)
    RECORDS.mkdir()
    for name in VERSIONS:
        with tempfile.TemporaryDirectory() as folder:
            install(name, Path(folder))
            api = read_api(Path(folder))
            (RECORDS / f"{name}.json").write_text(json.dumps(api, indent=1, sort_keys=True) + "\n")
            print(name, api["version"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_records()
    else:
        for argument in sys.argv[1:]:
            print(json.dumps(describe(load_bindings(Path(argument)))))
