"""The memory of a run: known sums, real graphs, and what ONNX Runtime takes."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import TensorProto, helper

from samrt.bundle import Bundle, open_bundle
from samrt.manifest import FileRecord, Form, Graph, Profile
from samrt_engines.errors import BackendError, ExportError
from samrt_engines.tensors import TensorSpec
from samrt_export.budget import GraphBudget, budget
from samrt_export.external import Place, external_tensor

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sam3d_budget.py"
MIB = 2**20

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def graph_of(
    nodes: list[onnx.NodeProto],
    *,
    constants: tuple[TensorProto, ...] = (),
    inputs: dict[str, tuple[list[int | str], int]] | None = None,
    output: int = FULL,
) -> onnx.ModelProto:
    """A graph that makes y, of this element type. inputs: name -> shape, type; x of shape (n, 4) unless told"""
    inputs = inputs or {"x": (["n", 4], FULL)}
    values = [helper.make_tensor_value_info(name, element, shape) for name, (shape, element) in inputs.items()]
    results = [helper.make_tensor_value_info("y", output, None)]
    graph = helper.make_graph(nodes, "one", values, results, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def integers(name: str, *values: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


ROW = 4 * 4 * 10
"""Bytes of a float32 tensor (10, 4)."""


def nodes_of(text: str) -> list[onnx.NodeProto]:
    """Nodes out of ``a=Relu(x) y=Add(a,x)``; Half and Full are casts."""
    casts = {"Half": {"to": HALF}, "Full": {"to": FULL}}
    return [
        helper.make_node(
            "Cast" if operator in casts else operator, takes.split(","), [gives], name=gives, **casts.get(operator, {})
        )
        for gives, operator, takes in re.findall(r"(\w+)=(\w+)\(([\w,]*)\)", text)
    ]


@pytest.mark.parametrize(
    ("text", "activations", "peak"),
    [
        ("y=Relu(x)", 0, ""),
        ("a=Relu(x) b=Relu(a) c=Relu(b) y=Relu(c)", 2 * ROW, "b"),
        # read again at the end, a is there beside b and c
        ("a=Relu(x) b=Relu(a) c=Relu(b) y=Add(a,c)", 3 * ROW, "c"),
        # nobody reads b: it is there at its own node alone
        ("a=Relu(x) b=Relu(a) c=Relu(a) y=Relu(c)", 2 * ROW, "b"),
        # a view costs nothing, and keeps what it is a view of
        ("a=Relu(x) v=Reshape(a,shape) y=Relu(v)", ROW, "a"),
        ("a=Relu(x) v=Flatten(a) b=Relu(x) c=Relu(b) y=Add(v,c)", 3 * ROW, "c"),
        ("a=Relu(x) v=Identity(a) w=Flatten(v) b=Relu(x) c=Relu(b) y=Add(w,c)", 3 * ROW, "c"),
        # a view of an input is in the caller's memory; an output is too, and never a view
        ("v=Identity(x) y=Relu(v)", 0, ""),
        ("a=Relu(x) y=Identity(a)", ROW, "a"),
        # a transpose is a copy
        ("a=Relu(x) b=Transpose(a) y=Relu(b)", 2 * ROW, "b"),
        # two of half the size; one byte for each truth value
        ("a=Half(x) b=Relu(a) y=Full(b)", ROW, "b"),
        ("a=IsNaN(x) y=Where(a,x,x)", ROW // 4, "a"),
    ],
)
def test_intermediates_are_summed_while_they_live(text: str, activations: int, peak: str) -> None:
    found = budget(graph_of(nodes_of(text), constants=(integers("shape", 4, -1),)), {"n": 10, "another": 3})
    assert found == GraphBudget(16, ROW, ROW, activations, peak)
    assert found.total_bytes == 16 + 2 * ROW + activations


def test_attention_is_counted_without_its_scores() -> None:
    """512 tokens on 512 would be 8 MiB of scores in eight heads."""
    qkv: dict[str, tuple[list[int | str], int]] = {name: ([1, 8, 512, 64], FULL) for name in "qkv"}
    model = graph_of(nodes_of("a=Relu(q) b=Attention(a,k,v) y=Relu(b)"), inputs=qkv)
    assert budget(model, {}).activations_bytes == 2 * MIB  # a and b


def test_weights_elsewhere_count_by_their_record_and_are_not_read(tmp_path: Path) -> None:
    weight = external_tensor("w", HALF, (4, 600), Place(tmp_path / "missing.data", 4096, 4800))
    model = graph_of(nodes_of("a=Half(x) y=MatMul(a,w)"), constants=(weight,), output=HALF)
    assert budget(model, {"n": 10}) == GraphBudget(4800, ROW, 10 * 600 * 2, ROW // 2, "a")


def test_a_symbol_without_a_size_is_named() -> None:
    text = "no size for 'n' of input 'x'; sizes for m | expected: a size for every symbol"
    with pytest.raises(ExportError, match=re.escape(text)):
        budget(graph_of(nodes_of("y=Relu(x)")), {"m": 3})


def test_a_shape_that_depends_on_data_is_refused() -> None:
    model = graph_of(nodes_of("a=NonZero(x) y=Full(a)"))
    with pytest.raises(ExportError, match=r"memory of a run cannot be counted .* got: no shape for a, y"):
        budget(model, {"n": 10})


def of_bundle(folder: Path, name: str, precision: str, sizes: dict[str, int]) -> GraphBudget:
    """The budget of the form for GPUs, at the profiles' opt sizes but for some."""
    bundle = open_bundle(folder)
    graph = bundle.manifest.graphs[name]
    form = next(form for form in graph.forms if form.precision == precision and not form.targets)
    usual = {symbol: profile.opt for symbol, profile in graph.profiles.items()}
    return budget(bundle.read_model(form), usual | sizes)


def test_a_real_graph_grows_with_its_batch_and_not_its_weights(nano_bundle: Path) -> None:
    one, two, four = (of_bundle(nano_bundle, "image_encoder", "fp32", {"images": count}) for count in (1, 2, 4))
    assert one.weights_bytes == two.weights_bytes == four.weights_bytes
    assert 2 * one.inputs_bytes == two.inputs_bytes
    assert 2 * one.outputs_bytes == two.outputs_bytes
    assert two.activations_bytes - one.activations_bytes == (four.activations_bytes - two.activations_bytes) / 2
    assert one.activations_bytes < two.activations_bytes < 2.01 * one.activations_bytes


def test_a_narrow_form_takes_half(nano_bundle: Path, nano_fp16_bundle: Path) -> None:
    wide = of_bundle(nano_bundle, "image_encoder", "fp32", {})
    narrow = of_bundle(nano_fp16_bundle, "image_encoder", "fp16", {})
    assert narrow.weights_bytes == pytest.approx(wide.weights_bytes / 2, rel=0.02)
    assert 0.45 < narrow.activations_bytes / wide.activations_bytes < 0.8  # some of it stays float32
    assert (narrow.inputs_bytes, narrow.outputs_bytes) == (wide.inputs_bytes, wide.outputs_bytes)


PROBE = """
import ctypes, json, sys
from pathlib import Path
import numpy as np, onnxruntime
from samrt.resident import peak_resident_mib, resident_mib

options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # what is freed goes back at once
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # as in the file, where priorities are equal
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
sizes, few = (json.loads(text) for text in sys.argv[2:4])

def feeds(sizes):
    numpy = {"tensor(float)": np.float32, "tensor(int32)": np.int32}
    shapes = {one.name: ([sizes.get(dim, dim) for dim in one.shape], numpy[one.type]) for one in session.get_inputs()}
    return {name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items()}

ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks are the system's own
session.run(None, feeds(few))
large = feeds(sizes)
ctypes.CDLL(None).malloc_trim(0)
before = resident_mib()
Path("/proc/self/clear_refs").write_text("5")
session.run(None, large)
print(peak_resident_mib() - before)
"""


def measured_mib(model: onnx.ModelProto, folder: Path, sizes: dict[str, int], few: dict[str, int]) -> float:
    """By how much a run made a process of its own grow at most."""
    path = folder / "graph.onnx"
    onnx.save(model, path)
    command = [sys.executable, "-c", PROBE, str(path), json.dumps(sizes), json.dumps(few)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_onnx_runtime_takes_what_was_counted(tmp_path: Path) -> None:
    """Neighbours gathered, flattened under another shape, multiplied, and a skip that is read late."""
    nodes = nodes_of(
        "skip=Tanh(x) many=Gather(skip,index) wide=Reshape(many,flat) narrow=MatMul(wide,w) y=Add(narrow,skip)"
    )
    weight = helper.make_tensor("w", FULL, (27 * 32, 32), bytes(4 * 27 * 32 * 32), raw=True)
    model = graph_of(
        nodes,
        constants=(weight, integers("flat", -1, 27 * 32)),
        inputs={"x": (["n", 32], FULL), "index": (["n", 27], TensorProto.INT32)},
    )
    found = budget(model, {"n": 20_000})
    assert found.activations_bytes == 20_000 * 4 * 32 * (1 + 27 + 1)  # skip, many, narrow
    assert found.peak_node == "narrow"
    taken = measured_mib(model, tmp_path, {"n": 20_000}, {"n": 64})
    assert taken * MIB == pytest.approx(found.activations_bytes, rel=0.1)


@pytest.mark.slow
def test_the_mesh_decoder_takes_what_was_counted(tmp_path: Path) -> None:
    from sam3d_toy import toy_spec

    from samrt_export.onnx_graph import onnx_from_spec
    from samrt_export.precision.narrow import choose

    spec = toy_spec("slat_mesh_up")
    model = onnx_from_spec(spec, choose(spec, "tensorrt").module)
    few, some, many = (budget(model, {"voxels": voxels}) for voxels in (2000, 4000, 8000))
    assert many.activations_bytes - some.activations_bytes == pytest.approx(
        2 * (some.activations_bytes - few.activations_bytes), rel=1e-3
    )
    taken = measured_mib(model, tmp_path, {"voxels": 8000}, {"voxels": 64})
    assert taken * MIB == pytest.approx(many.activations_bytes, rel=0.1)  # the outputs are made after the peak


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sam3d_budget", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sam3d_budget"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def form(precision: str, *targets: str) -> Form:
    return Form(FileRecord(f"{precision}.onnx", "0" * 64, 1), (), precision, targets, 23, {})


def test_the_form_for_gpus_is_counted(script: ModuleType) -> None:
    graph = Graph((), (), {}, (form("fp32", "onnxruntime-cpu"), form("fp32", "tensorrt"), form("fp16")))
    assert script.gpu_form(graph, "dino", "fp16") is graph.forms[2]
    assert script.gpu_form(graph, "dino", "fp32") is graph.forms[1]
    lonely = Graph((), (), {}, graph.forms[:1])
    with pytest.raises(BackendError, match=r"dino: the bundle has no form .* in fp16 .* got: fp32 for onnxruntime-cpu"):
        script.gpu_form(lonely, "dino", "fp16")


def test_sizes_come_from_the_voxels_and_else_from_profiles(script: ModuleType) -> None:
    from samrt.sparse import MAP_NAMES, SparseMaps

    maps = SparseMaps.from_coords(script.shell(16, 200), grid=16, window=8).feeds(MAP_NAMES)
    specs = [("slat", ("voxels", 8)), ("children", ("coarse", 8)), ("windows", ("windows", "window_length"))]
    graph = Graph(
        tuple(TensorSpec(name, "float32", shape) for name, shape in specs),
        (),
        {symbol: Profile(1, 7, 9999) for symbol in ("voxels", "coarse", "windows", "window_length", "slat_tokens")},
        (),
    )
    width, length = maps["windows"].shape
    expected = {"coarse": len(maps["coarse_coords"]), "windows": width, "window_length": length, "slat_tokens": 7}
    assert script.symbol_sizes(graph, maps) == expected | {"voxels": 200}


def test_a_bundle_is_summed(script: ModuleType, nano_fp16_bundle: Path) -> None:
    bundle: Bundle = open_bundle(nano_fp16_bundle)
    rows = script.count(bundle, "fp16", {})
    assert [row.graph for row in rows] == list(bundle.manifest.graphs)
    for row in rows:
        assert row.sum == of_bundle(nano_fp16_bundle, row.graph, "fp16", {}).total_bytes
    document = script.summarize(rows)
    assert document["staged_bytes"] == max(row.sum for row in rows)
    weights = sum(row.weights for row in rows)
    assert document["resident_bytes"] - weights == max(row.sum - row.weights for row in rows)
    assert document["staged_bytes"] < document["resident_bytes"]
