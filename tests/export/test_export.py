"""Exporting: the graphs, the gate, and what a failure leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

import samrt
from samrt import BundleError, DeadOutputError, ParityError
from samrt_export.export import ExportReport
from samrt_export.families.sam2 import FAMILY, graphs
from samrt_export.forms import checked_parity
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights
from samrt_export.verify import verify_bundle
from samrt_export.writer import bundle_folder

FORBIDDEN = {"If", "Loop", "NonZero", "OneHot", "Tile", "ScatterND", "ScatterElements"}
KILLED_EXPORT = """
import os, signal, sys
from pathlib import Path
from samrt_export.export import export_model
def kill(stage, done, total):
    if stage.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
export_model("nano", Path(sys.argv[1]), progress=kill)
"""


@pytest.fixture(scope="module")
def prompt_encoder() -> GraphSpec:
    """The smallest graph: quick to export again and again."""
    return next(s for s in graphs(load_weights(FAMILY, "nano").module, "nano") if s.name == "prompt_encoder")


def test_graphs_declare_what_the_manifest_says(nano_bundle: Path) -> None:
    manifest = json.loads((nano_bundle / "manifest.json").read_text())
    for graph in manifest["graphs"].values():
        for form in graph["forms"]:
            model = onnx.load(nano_bundle / form["file"])
            onnx.checker.check_model(model)
            for declared, values in ((graph["inputs"], model.graph.input), (graph["outputs"], model.graph.output)):
                found = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
                assert [(v.name, shape) for v, shape in zip(values, found, strict=True)] == [
                    (tensor["name"], tensor["shape"]) for tensor in declared
                ]
            assert [(o.domain, o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")] == [("", 23)]
            assert not FORBIDDEN & {node.op_type for node in model.graph.node}


def test_operators_stay_whole(nano_bundle: Path) -> None:
    counts = Counter(node.op_type for node in onnx.load(nano_bundle / "image_encoder.onnx").graph.node)
    assert (counts["LayerNormalization"], counts["Gelu"], counts["Attention"]) == (18, 9, 9)


def test_files_hold_no_trace_of_the_machine(nano_bundle: Path) -> None:
    for path in nano_bundle.glob("*.onnx"):
        content = path.read_bytes()
        for trace in (b"site-packages", b".py", str(Path.cwd()).encode()):
            assert trace not in content, path.name


def test_the_same_weights_give_the_same_bytes(prompt_encoder: GraphSpec, nano_bundle: Path) -> None:
    again = onnx_from_spec(prompt_encoder, prompt_encoder.module).SerializeToString(deterministic=True)
    assert again == (nano_bundle / "prompt_encoder.onnx").read_bytes()


def test_every_output_of_every_form_is_within_tolerance_and_alive(nano_export: ExportReport) -> None:
    assert {row.graph for row in nano_export.parity} == {
        "image_encoder",
        "prompt_encoder",
        "mask_decoder",
        "memory_attention",
        "memory_encoder",
        "mask_downsampler",
    }
    for row in nano_export.parity:
        assert row.relative_l2 <= 1e-5
        assert row.alive > 0.01  # ten times what the gate asks
    assert verify_bundle(nano_export.path).ok


def test_a_dead_output_is_refused() -> None:
    spec = next(s for s in graphs(load_weights(FAMILY, "nano").module, "nano") if s.name == "prompt_encoder")
    encoder = spec.module.encoder
    with torch.no_grad():
        encoder.mask_downscaling[6].weight.zero_()
        encoder.no_mask_embed.weight.copy_(encoder.mask_downscaling[6].bias[None])
    content = onnx_from_spec(spec, spec.module).SerializeToString()
    with pytest.raises(DeadOutputError, match=r"'dense_embeddings'.*does not depend on the input"):
        checked_parity(spec, content, "fp32")


def test_a_wrong_weight_is_refused(prompt_encoder: GraphSpec) -> None:
    model = onnx_from_spec(prompt_encoder, prompt_encoder.module)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.05
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ParityError, match="differs from PyTorch"):
        checked_parity(prompt_encoder, model.SerializeToString(), "fp32")


@pytest.mark.parametrize("stage", ["weights", "prompt_encoder: parity", "done"])
def test_a_killed_export_leaves_nothing_under_the_name(tmp_path: Path, stage: str) -> None:
    out = tmp_path / "bundle"
    done = subprocess.run([sys.executable, "-c", KILLED_EXPORT, str(out), stage], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    with bundle_folder(out, overwrite=False) as folder:  # the next one is not in the way of what was left
        (folder / "manifest.json").write_text("{}")
    assert out.is_dir()


def test_a_failure_keeps_the_bundle_that_was_there(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    with pytest.raises(RuntimeError, match="midway"), bundle_folder(out, overwrite=True):
        raise RuntimeError("midway")
    assert (out / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
    with bundle_folder(out, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert (out / "manifest.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(BundleError, match="something else is there"), bundle_folder(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_the_runtime_opens_the_bundle_with_the_form_for_its_target(nano_bundle: Path) -> None:
    with samrt.load(nano_bundle, device="cpu") as model:
        assert model.providers["mask_decoder"] == "CPUExecutionProvider"
        files = {form.file.file for form in model.manifest.graphs["mask_decoder"].forms}
    assert files == {"mask_decoder.onnxruntime-cpu.openvino.onnx", "mask_decoder.onnx"}
