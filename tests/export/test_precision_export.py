"""Bundles of other precisions, from the command line's side: what they hold, that they answer rightly, that faults are caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from precision_cases import random_case
from typer.testing import CliRunner

import samrt
from samrt.bundle import open_bundle
from samrt.cli import build_app
from samrt.selftest import SelfTest, SelfTestRow, check_rows
from samrt_engines import SelfTestError
from samrt_engines.executor import open_executor
from samrt_export.export import ExportReport, export_model
from samrt_export.precision.emulate import runnable
from samrt_export.precision.masks import compare_masks, open_forms
from samrt_export.verify import verify_bundle

GENERAL = {
    "image_encoder": "image_encoder.onnx",
    "prompt_encoder": "prompt_encoder.onnx",
    "mask_decoder": "mask_decoder.onnx",
    "memory_attention": "memory_attention.onnx",
    "memory_encoder": "memory_encoder.onnx",
    "mask_downsampler": "mask_downsampler.onnx",
}


def run_selftest(bundle: Path, models: dict[str, bytes]) -> tuple[SelfTestRow, ...]:
    """A bundle's self-test on other files."""
    opened = open_bundle(bundle)
    assert opened.manifest.selftest is not None
    test = SelfTest.from_bytes(opened.read_file(opened.manifest.selftest))
    with ExitStack() as stack:
        executors = {
            name: stack.enter_context(open_executor(runnable(model), backend="onnxruntime", device="cpu", name=name))
            for name, model in models.items()
        }
        return test.run(executors)


def test_an_fp16_bundle_is_for_gpus_and_runs_on_cpus(nano_fp16_export: ExportReport) -> None:
    manifest = open_bundle(nano_fp16_export.path).manifest
    for graph in manifest.graphs.values():
        by_target = {target: form.precision for form in graph.forms for target in form.targets}
        assert by_target == {"onnxruntime-cpu": "fp32", "openvino": "fp32"}
        assert graph.forms[-1].precision == "fp16"
        assert not graph.forms[-1].targets
    with samrt.load(nano_fp16_export.path, device="cpu") as model:
        assert set(model.precisions.values()) == {"fp32"}


def test_what_stays_fp32_stands_in_the_manifest_with_its_reason(nano_fp16_bundle: Path) -> None:
    document = json.loads((nano_fp16_bundle / "manifest.json").read_text())
    for name, graph in document["graphs"].items():
        form = graph["forms"][-1]
        nodes = {node.name: node.op_type for node in onnx.load(nano_fp16_bundle / form["file"]).graph.node}
        for group in form["kept_fp32"]:
            assert group["reason"]
            assert group["count"] == len(group["nodes"])
            assert {nodes[node] for node in group["nodes"]} == {group["op"]}
        kept = sum(group["count"] for group in form["kept_fp32"])
        assert kept < 0.15 * len(nodes) or name == "prompt_encoder"


def test_fp16_holds_its_bar(nano_fp16_export: ExportReport) -> None:
    rows = [row for row in nano_fp16_export.parity if row.form.startswith("fp16")]
    assert {row.graph for row in rows} == set(GENERAL)
    for row in rows:
        assert row.relative_l2 <= 5e-3
        assert row.cosine >= 0.9999
        assert row.alive > 0.01
    assert max(row.relative_l2 for row in rows) > 1e-5  # narrow indeed
    assert verify_bundle(nano_fp16_export.path).ok


def test_fp16_masks_are_the_fp32_masks(nano_bundle: Path, nano_fp16_bundle: Path) -> None:
    """A few of the 500 pictures; `samrt verify --masks 500` looks at all."""
    with (
        samrt.load(nano_bundle, "onnxruntime", device="cpu") as reference,
        open_forms(nano_fp16_bundle, "fp16") as fp16,
    ):
        (found,) = compare_masks(reference, {"fp16": fp16}, count=12)
    assert found.ok, found
    assert found.prompts > 50
    assert found.mean < 1  # it did compute in fp16


def test_the_self_test_passes_what_was_exported(nano_bundle: Path, nano_fp16_bundle: Path) -> None:
    for bundle in (nano_bundle, nano_fp16_bundle):
        graphs = open_bundle(bundle).manifest.graphs
        models = {name: (bundle / graph.forms[-1].file.file).read_bytes() for name, graph in graphs.items()}
        rows = run_selftest(bundle, models)
        check_rows(rows, "graphs")
        assert len(rows) == 6 + 2 + 4 + 4 + 2 + 5


def overflow(model: onnx.ModelProto) -> None:
    """One block's values pass what fp16 holds, as a kernel would that accumulates in it."""
    first = next(node for node in model.graph.node if node.op_type == "Gelu")
    big, zero = numpy_helper.from_array(np.float32(2e4), "big"), numpy_helper.from_array(np.float32(np.inf), "endless")
    model.graph.initializer.extend([big, zero])
    index = list(model.graph.node).index(first)
    made = [
        helper.make_node("Greater", [first.input[0], "threshold"], ["over"]),
        helper.make_node("Where", ["over", "endless", first.input[0]], ["overflown"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3), "threshold"))
    first.input[0] = "overflown"
    for offset, node in enumerate(made):
        model.graph.node.insert(index + offset, node)


def swap_scale(model: onnx.ModelProto) -> None:
    """One attention multiplies by the root of its width and does not divide."""
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    kept = [attribute for attribute in attention.attribute if attribute.name != "scale"]
    del attention.attribute[:]
    attention.attribute.extend([*kept, helper.make_attribute("scale", 32.0**0.5)])


def largest_constant(model: onnx.ModelProto, dims: int) -> onnx.TensorProto:
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    square = [tensor for tensor in floats if len(tensor.dims) == dims and len(set(tensor.dims)) == 1]
    return max(square, key=lambda tensor: float(np.abs(numpy_helper.to_array(tensor)).sum()))


def zero_bias(model: onnx.ModelProto) -> None:
    """One bias is gone."""
    tensor = largest_constant(model, 1)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))


def turn_layer(model: onnx.ModelProto) -> None:
    """One square weight is read in the other order."""
    tensor = largest_constant(model, 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), tensor.name))


@pytest.mark.parametrize("fault", [overflow, swap_scale, zero_bias, turn_layer])
def test_the_self_test_catches_a_fault(nano_bundle: Path, fault: Callable[[onnx.ModelProto], None]) -> None:
    models = {name: (nano_bundle / file).read_bytes() for name, file in GENERAL.items()}
    broken = onnx.load_from_string(models["image_encoder"])
    fault(broken)
    rows = run_selftest(nano_bundle, models | {"image_encoder": broken.SerializeToString()})
    with pytest.raises(SelfTestError, match="image_encoder is wrong on this machine"):
        check_rows(rows, "graphs")


@pytest.mark.parametrize("graph", ["image_encoder", "mask_decoder", "memory_attention", "memory_encoder"])
def test_the_self_test_catches_the_plan_of_another_model(nano_bundle: Path, graph: str) -> None:
    models = {name: (nano_bundle / file).read_bytes() for name, file in GENERAL.items()}
    rows = run_selftest(nano_bundle, models | {graph: random_case(graph).model.SerializeToString()})
    with pytest.raises(SelfTestError, match=f"{graph} is wrong on this machine"):
        check_rows(rows, "graphs")


def test_build_check_from_the_command_line(nano_fp16_bundle: Path) -> None:
    done = CliRunner().invoke(build_app(), ["build", str(nano_fp16_bundle), "--check", "--sm", "86", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    built = [(graph["graph"], graph["precision"], graph["key"]["capability"]) for graph in document["graphs"]]
    assert built == [(name, "fp16", "8.6") for name in GENERAL]
    assert not (nano_fp16_bundle / "plans").exists()


def test_int8_is_for_the_encoder_on_a_cpu(tmp_path: Path, nano_bundle: Path) -> None:
    report = export_model("nano", tmp_path / "int8", precision="int8")
    forms = open_bundle(report.path).manifest.graphs["image_encoder"].forms
    assert [(form.precision, form.targets) for form in forms] == [("int8", ("onnxruntime-cpu",)), ("fp32", ())]
    with samrt.load(report.path, "onnxruntime", device="cpu") as model:
        assert model.precisions == {"image_encoder": "int8", "prompt_encoder": "fp32", "mask_decoder": "fp32"}
    with samrt.load(nano_bundle, "onnxruntime", device="cpu") as reference, open_forms(report.path, "int8") as int8:
        (found,) = compare_masks(reference, {"int8": int8}, count=12)
    assert found.mean >= 0.98, found
