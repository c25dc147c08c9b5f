"""Every name and signature of TensorRT that we touch exists in every version we claim, or is guarded by flavour.

What we touch is read from our source; what exists, from records of the real bindings (see snapshot_api.py).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import samrt_engines.tensorrt
from samrt_engines.backends import cuda_device_count
from samrt_engines.tensorrt.cuda import Cuda
from samrt_engines.tensorrt.libraries import FIRST_TENSORRT

from . import doubles
from .snapshot_api import RECORDS, VERSIONS, read_api

SOURCES = Path(samrt_engines.tensorrt.__file__).parent
APIS: dict[str, dict[str, Any]] = {name: json.loads((RECORDS / f"{name}.json").read_text()) for name in VERSIONS}

# Which class an expression of a file is of. A row that matches nothing fails: it is a leftover.
RECEIVERS = {
    ("build", "builder"): "Builder",
    ("build", "cache"): "ITimingCache",
    ("build", "config"): "IBuilderConfig",
    ("build", "parser_error"): "ParserError",
    ("build", "flag"): "BuilderFlag",
    ("build", "network"): "INetworkDefinition",
    ("build", "parser"): "OnnxParser",
    ("build", "profile"): "IOptimizationProfile",
    ("network", "attention"): "IAttention",
    ("network", "layer"): "ILayer",
    ("network", "network"): "INetworkDefinition",
    ("network", "tensor"): "ITensor",
    ("engine", "engine"): "ICudaEngine",
    ("engine", "parser"): "OnnxParserRefitter",
    ("engine", "refitter"): "Refitter",
    ("engine", "runtime"): "Runtime",
    ("binding", "config"): "IRuntimeConfig",
    ("binding", "inspector"): "EngineInspector",
    ("binding", "self._context"): "IExecutionContext",
    ("binding", "self._engine"): "ICudaEngine",
}
MODULES = {"trt", "self._trt", "tensorrt.module", "self.module"}  # expressions that are TensorRT's package itself

# Guarded in libraries.TensorRT: RTX alone has them.
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.cuda_graph_strategy",
}
PYTHONS_OWN = {"__class__", "__members__"}
# Turned into their own class first, as the line above it in the source says.
CAST = {"ILayer.attention": "IAttentionInputLayer.attention"}


def touched() -> Iterator[tuple[str, int | None]]:
    """ "Class.member" or "Class", and the number of arguments where it is called."""
    for path in sorted(SOURCES.glob("*.py")):
        tree = ast.parse(path.read_text())
        calls = {id(node.func): len(node.args) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr in PYTHONS_OWN:
                continue
            owner = ast.unparse(node.value)
            arguments = calls.get(id(node))
            if owner in MODULES:
                yield (f"{node.attr}.__init__" if arguments is not None else node.attr), arguments
            elif isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) in MODULES:
                given_self = arguments is not None and node.attr == "__init__"  # trt.ILogger.__init__(self)
                yield f"{node.value.attr}.{node.attr}", arguments - 1 if given_self and arguments else arguments
            elif (path.stem, owner) in RECEIVERS:
                name = f"{RECEIVERS[path.stem, owner]}.{node.attr}"
                yield CAST.get(name, name), arguments


TOUCHED = sorted(set(touched()), key=str)


def exists(api: dict[str, Any], name: str) -> bool:
    cls, _, member = name.partition(".")
    return cls in api["classes"] and (not member or member in api["classes"][cls])


def takes(signature: str, arguments: int) -> bool:
    """Does a signature ("f(self: A, b: int, c: int = 0) -> None") take that many arguments after self?"""
    inner = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    depth, parameters = 0, [""]
    for character in inner:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parameters.append("")
        else:
            parameters[-1] += character
    parameters = [parameter for parameter in parameters if parameter.strip()][1:]
    required = [parameter for parameter in parameters if "=" not in parameter]
    return len(required) <= arguments <= len(parameters)


def test_the_source_is_understood() -> None:
    """The scan sees what it has to see, and every row of the table is used."""
    names = {name for name, _ in TOUCHED}
    assert {"Builder.build_serialized_network", "Runtime.__init__", "IExecutionContext.execute_async_v3"} <= names
    assert names >= {"BuilderFlag.STRIP_PLAN", "ILogger.Severity", "IAttentionInputLayer.attention", *RTX_ONLY}
    assert len(names) > 70
    used = {(path.stem, ast.unparse(node.value))
            for path in SOURCES.glob("*.py")
            for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}  # fmt: skip
    assert set(RECEIVERS) <= used


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_every_version(version: str) -> None:
    wanted = {name for name, _ in TOUCHED} - (set() if version.startswith("rtx") else RTX_ONLY)
    assert sorted(name for name in wanted if not exists(APIS[version], name)) == []


@pytest.mark.parametrize("version", [name for name in VERSIONS if not name.startswith("rtx")])
def test_what_is_guarded_has_to_be(version: str) -> None:
    assert [name for name in RTX_ONLY if exists(APIS[version], name)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_has_as_many_arguments_as_the_method(version: str) -> None:
    classes = APIS[version]["classes"]
    faults = []
    for name, arguments in TOUCHED:
        cls, _, member = name.partition(".")
        if arguments is None or not exists(APIS[version], name):
            continue
        signatures = classes[cls][member]
        if isinstance(signatures, list) and not any(takes(signature, arguments) for signature in signatures):
            faults.append(f"{name} with {arguments}: {signatures}")
    assert faults == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_tensorrt_calls_of_ours_has_its_parameters(version: str) -> None:
    source = (SOURCES / "messages.py").read_text()
    ours = {node.name: [argument.arg for argument in node.args.args]
            for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}  # fmt: skip
    for cls, method in (
        ("ILogger", "log"),
        ("IProgressMonitor", "phase_start"),
        ("IProgressMonitor", "step_complete"),
        ("IProgressMonitor", "phase_finish"),
    ):
        (signature,) = APIS[version]["classes"][cls][method]
        theirs = re.findall(r"(\w+): ", signature)
        assert len(theirs) == len(ours[method]), signature
        if cls == "IProgressMonitor":
            assert theirs == ours[method], signature


@pytest.mark.parametrize("version", VERSIONS)
def test_our_names_of_dtypes_are_tensorrts(version: str) -> None:
    from samrt_engines.tensorrt.network import DTYPE_FROM_TRT

    assert DTYPE_FROM_TRT.keys() <= APIS[version]["classes"]["DataType"].keys()
    assert set(doubles.DataType.__members__) <= APIS[version]["classes"]["DataType"].keys()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("double", [doubles.ICudaEngine, doubles.IExecutionContext, doubles.Runtime])
def test_the_doubles_have_what_the_originals_have(version: str, double: type) -> None:
    """A method that only the double has would let the executor's tests pass on nothing."""
    members = APIS[version]["classes"][double.__name__]
    for name, value in vars(double).items():
        if name.startswith("_"):
            continue
        assert name in members
        if inspect.isfunction(value):
            arguments = len(inspect.signature(value).parameters) - 1
            assert any(takes(signature, arguments) for signature in members[name]), members[name]


def test_the_oldest_record_is_the_oldest_version_we_take() -> None:
    assert f"tensorrt-{'.'.join(map(str, FIRST_TENSORRT))}" == next(iter(VERSIONS))


@pytest.mark.parametrize("version", VERSIONS)
def test_records_are_of_the_pinned_bindings(version: str) -> None:
    assert VERSIONS[version][0].endswith(f"=={APIS[version]['version']}")


@pytest.mark.parametrize("version", [name for name in VERSIONS if not name.startswith("rtx")])
def test_records_are_what_the_real_bindings_say(version: str) -> None:
    folder = Path(sys.prefix) / "tensorrt-bindings" / version
    if not folder.is_dir():
        pytest.skip(f"the bindings are not in {folder}, where `make` puts them")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the empty libraries")
    assert read_api(folder) == APIS[version]


def test_the_record_of_rtx_is_what_its_real_bindings_say() -> None:
    spec = importlib.util.find_spec("tensorrt_rtx_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("TensorRT for RTX is not installed")
    assert read_api(Path(spec.origin).parents[1]) == APIS["rtx-1.7"]


# --- CUDA


def cuda_functions() -> dict[str, list[str]]:
    """What we call of `cuda.bindings.runtime`, with the arguments as written."""
    tree = ast.parse((SOURCES / "cuda.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call"]
    named = [(node.args[0], [ast.unparse(argument) for argument in node.args[1:]]) for node in calls]
    return {name.value: rest for name, rest in named if isinstance(name, ast.Constant)}


def test_every_cuda_function_is_called_and_doubled() -> None:
    functions = cuda_functions()
    assert len(functions) > 20
    assert [name for name in functions if not hasattr(doubles.CudaDouble, name)] == []
    for name, arguments in functions.items():
        method = getattr(doubles.CudaDouble, name)
        assert len(inspect.signature(method).parameters) - 1 == len(arguments), name


def test_the_real_cuda_bindings_have_them() -> None:
    """Without a driver each call comes back with an error code: so the argument types are right, and none is run."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name, arguments in cuda_functions().items():
        parameters = inspect.signature(getattr(runtime, name)).parameters
        assert len(parameters) == len(arguments), f"{name}{tuple(parameters)}"
    if cuda_device_count() > 0:
        pytest.skip("there is a GPU: made-up addresses would be used")
    assert _codes_of_all_calls(runtime) == {"cudaErrorInsufficientDriver"}


def _codes_of_all_calls(runtime: Any) -> set[str]:
    """Call every method of `Cuda` with made-up numbers, and collect the errors' names."""
    cuda = Cuda(runtime)
    codes = set()
    for name, method in inspect.getmembers(cuda, inspect.ismethod):
        if name.startswith("_") or name == "drop_capture":
            continue
        arguments = [256] * len(inspect.signature(method).parameters)
        with pytest.raises(samrt_engines.errors.DeviceError) as caught:
            method(*arguments)
        codes.add(str(caught.value.got).partition(" ")[0])
    return codes
