"""FastSAM's place: a user's ONNX file becomes a bundle, and what is no such file is refused with what it looks like."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from samrt.bench import bench, run
from samrt.bench.peak import Peak
from samrt.bundle import open_bundle
from samrt.proposals import ProposalModel
from samrt_engines.errors import CheckpointError, DeadOutputError, ExportError, ParityError
from samrt_engines.executor import open_executor
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.export import ExportReport, export_model
from samrt_export.families.fast_sam import FAMILY, graphs
from samrt_export.families.fast_sam.brought import open_file
from samrt_export.families.fast_sam.detector import DetectorGraph, StandIn, anchor_count
from samrt_export.families.fast_sam.file import read_file
from samrt_export.forms import checked_parity
from samrt_export.onnx_module import OnnxModule
from samrt_export.samples import sample_image
from samrt_export.source import load_weights
from samrt_export.verify import verify_bundle

SIZE = 96
MODEL, TOY = "fast-sam-s", "fast-sam-s-toy"
COMMAND = r"fix: in an environment of its own: yolo export model=FastSAM-s.pt format=onnx imgsz=1024"


def network(seed: int = 0) -> StandIn:
    """A small network with the files' interface."""
    module = DetectorGraph(StandIn(SIZE)).eval()
    FAMILY.randomize(module, seed)
    stand_in = module.network
    assert isinstance(stand_in, StandIn)
    return stand_in


def save(path: Path, net: torch.nn.Module, opset: int, **options: Any) -> Path:
    """A file as the TorchScript exporter writes it: constants as nodes, sizes worked out in the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and what most such files were made with
        torch.onnx.export(
            net,
            (torch.rand(1, 3, SIZE, SIZE),),
            path,
            input_names=["images"],
            output_names=["output0", "output1"],
            opset_version=opset,
            dynamo=False,
            do_constant_folding=False,
            **options,
        )
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's file. Read only."""
    return save(tmp_path_factory.mktemp("user") / "FastSAM-s.onnx", network(), 17)


@pytest.fixture(scope="module")
def fp16(file: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """That file as a bundle. Read only."""
    return export_model(MODEL, tmp_path_factory.mktemp("bundle") / "fp16", checkpoint=file, precision="fp16")


def test_every_part_is_within_tolerance_and_alive(fp16: ExportReport) -> None:
    rows = {(row.form, row.output): row for row in fp16.parity}
    outputs = ("boxes", "scores", "coefficients", "prototypes")
    forms = ("fp32 for onnxruntime-cpu, openvino", "fp16")
    assert rows.keys() == {(form, output) for form in forms for output in outputs}
    assert all(row.alive > 0.05 for row in rows.values())
    assert all(row.relative_l2 < (5e-3 if row.form == "fp16" else 1e-5) for row in rows.values())


def test_the_stored_graph_is_the_network_that_the_file_was_made_from(fp16: ExportReport) -> None:
    bundle = open_bundle(fp16.path)
    graph = bundle.manifest.graphs["detector"]
    image = sample_image(1, SIZE, 5)
    with torch.inference_mode():
        everything, prototypes = network()(torch.from_numpy(image).permute(0, 3, 1, 2) / 255)
    with open_executor(bundle.read_model(graph.forms[0]), inputs=graph.inputs, outputs=graph.outputs) as executor:
        made = executor.run({"image": image})
    parts = np.split(everything.numpy(), [4, 5], axis=1)
    wanted = dict(zip(("boxes", "scores", "coefficients", "prototypes"), (*parts, prototypes.numpy()), strict=True))
    for name, value in wanted.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=name)


def test_the_manifest_says_what_it_is(fp16: ExportReport, file: Path) -> None:
    document = json.loads((fp16.path / "manifest.json").read_text())
    source = document["source"]
    assert source["licence"]["name"] == "AGPL-3.0"
    assert "carries that licence" in source["licence"]["note"].replace("\n", " ")
    assert (source["opset"], [form["opset"] for form in document["graphs"]["detector"]["forms"]]) == (17, [17, 17])
    assert source["checkpoint"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert document["numbers"]["proposals"]["size_hw"] == [SIZE, SIZE]
    assert document["abilities"] == ["automatic", "points", "boxes"]
    anchors = document["graphs"]["detector"]["outputs"][0]["shape"][2]
    assert anchors == anchor_count(SIZE) == 144 + 36 + 9


def test_verify_wants_the_same_file(fp16: ExportReport, file: Path, tmp_path: Path) -> None:
    assert verify_bundle(fp16.path, checkpoint=file).ok
    with pytest.raises(CheckpointError, match="the checkpoint this bundle was made from is needed"):
        verify_bundle(fp16.path)
    other = tmp_path / "other.onnx"
    other.write_bytes(onnx.load(file).SerializeToString() + b"\x32\x01a")  # a doc_string more
    with pytest.raises(CheckpointError, match=r"other.onnx is not the checkpoint this bundle was made from"):
        verify_bundle(fp16.path, checkpoint=other)


def test_it_builds_for_tensorrt(fp16: ExportReport) -> None:
    bundle = open_bundle(fp16.path)
    form = bundle.manifest.graphs["detector"].forms[-1]
    content = bundle.read_model(form)
    assert form.precision == "fp16"
    assert isinstance(content, bytes)
    options = BuildOptions(flavour="rtx", sm="86")
    plan = build_plan(content, profiles={}, precision="fp16", options=options, name="detector")
    assert plan.facts is not None
    assert plan.facts.layers > 50


def test_a_picture_goes_all_the_way(fp16: ExportReport) -> None:
    picture = sample_image(1, SIZE, 3)[0].astype(np.uint8)
    with ProposalModel(fp16.path, backend="onnxruntime", device="cpu") as model:
        segments = model.propose(picture)
    assert len(segments) > 5
    assert (np.diff(segments.scores) <= 0).all()
    assert segments.scores.min() > 0.4


def test_bench_measures_the_form_that_runs(fp16: ExportReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "probe_peak", lambda threads: Peak(100.0, 1, "not probed"))
    picture = sample_image(1, SIZE, 3)[0].astype(np.uint8)
    report = bench(fp16.path, image=picture, backend="onnxruntime", device="cpu", threads=1, runs=5)
    form = open_bundle(fp16.path).manifest.graphs["detector"].forms[0]
    (row,) = (row for row in report.rows if row.kind == "graph")
    assert form.flops is not None
    assert (row.task, row.precision, row.gflop) == ("detector", "fp32", form.flops / 1e9)
    assert report.graphs["detector"].file == form.file.file
    with ProposalModel(fp16.path, backend="onnxruntime", device="cpu") as model:
        assert report.masks_found == len(model.propose(picture)) > 5


@pytest.mark.parametrize("opset", [13, 18])
def test_other_opsets(opset: int, tmp_path: Path) -> None:
    spec = graphs(open_file(save(tmp_path / "file.onnx", network(1), opset), MODEL, 1024), MODEL)[0]
    assert isinstance(spec.module, torch.nn.Module)
    image = sample_image(1, SIZE, 2)
    with torch.inference_mode():
        made = spec.module(torch.from_numpy(image))
        everything, prototypes = network(1)(torch.from_numpy(image).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(torch.cat(made[:3], 1), everything, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(made[3], prototypes, rtol=1e-4, atol=1e-3)


def test_open_sizes_are_fixed(tmp_path: Path) -> None:
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 2: "anchors"}}
    path = save(tmp_path / "file.onnx", network(), 17, dynamic_axes=axes)
    read = read_file(path, MODEL, SIZE)
    assert read.size == SIZE
    (value,) = onnx.load_model_from_string(read.content).graph.input
    assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [1, 3, SIZE, SIZE]


def test_the_toy_needs_no_file(tmp_path: Path) -> None:
    report = export_model(TOY, tmp_path / "toy", random_seed=0)
    assert {row.output for row in report.parity} == {"boxes", "scores", "coefficients", "prototypes"}
    assert all(row.relative_l2 < 1e-5 and row.alive > 0.05 for row in report.parity)
    manifest = open_bundle(report.path).manifest
    assert manifest.source.licence == "Apache-2.0"
    assert verify_bundle(report.path).ok


def test_sources_that_are_none(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ExportError, match=r"FastSAM has no random weights here.*--toy --random-weights 0"):
        load_weights(FAMILY, MODEL, random_seed=0)
    with pytest.raises(CheckpointError, match=r"no weights for fast-sam-x .*fix: .* --checkpoint FILE.onnx"):
        load_weights(FAMILY, "fast-sam-x")
    with pytest.raises(CheckpointError, match=r"fast-sam-s-toy takes no file .*fix: samrt export fast-sam-s "):
        load_weights(FAMILY, TOY, checkpoint=file)
    with pytest.raises(CheckpointError, match=r"not the file of fast-sam-x .*it looks like fast-sam-s"):
        load_weights(FAMILY, "fast-sam-x", checkpoint=file)


def test_a_score_that_never_changes_is_refused(file: Path, tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        for head in net.heads:
            head.weight[4 * net.bins] = 0
    with pytest.raises(DeadOutputError, match=r"detector in fp32: output 'scores' .* does not depend on the input"):
        export_model(MODEL, tmp_path / "bundle", checkpoint=save(tmp_path / "dead.onnx", net, 17))
    assert not (tmp_path / "bundle").exists()


def plain(
    outputs: dict[str, list[int]], images: list[int | str] | None = None, element: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A graph with such inputs and outputs, which are constants."""
    images = [1, 3, 64, 64] if images is None else images
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name} is"], [name]) for name in outputs],
        "plain",
        [helper.make_tensor_value_info("images", element, images)],
        [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()],
        [
            numpy_helper.from_array(np.full(shape, 0.5, helper.tensor_dtype_to_np_dtype(element)), f"{name} is")
            for name, shape in outputs.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


RIGHT = {"output0": [1, 37, 84], "output1": [1, 32, 16, 16]}


@pytest.mark.parametrize(
    ("outputs", "looks"),
    [
        ({"output0": [1, 84, 85]}, r"a detection model of 80 classes, which has no masks"),
        ({"output0": [1, 84, 37], "output1": [1, 32, 16, 16]}, "anchors before channels"),
        ({"output0": [1, 300, 38], "output1": [1, 32, 16, 16]}, r"suppression of overlaps inside .* nms=False$"),
        ({"output0": [1, 116, 84], "output1": [1, 32, 16, 16]}, "a segmentation model of 80 classes; FastSAM has one"),
        ({"output0": [1, 38, 84], "output1": [1, 32, 16, 16]}, "a segmentation model of 2 classes"),
        ({"output0": [2, 37, 84], "output1": [2, 32, 16, 16]}, r"several pictures at once .* batch=1$"),
        ({"output0": [1, 37, 84], "output1": [1, 32, 32, 32]}, r"expected: output0 \(1, 37, 84\); output1 \(1, 32, 16"),
        ({"output0": [1, 37, 84]}, r"output0 \(1, 37, 84\): it looks like"),
        ({"a": [1, 1000]}, r"a \(1, 1000\): it looks like another model"),
    ],
)
def test_other_outputs_say_what_they_look_like(outputs: dict[str, list[int]], looks: str, tmp_path: Path) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(plain(outputs).SerializeToString())
    with pytest.raises(CheckpointError, match=rf"file.onnx is no ONNX file of FastSAM .*{looks}") as caught:
        open_file(path, MODEL, 1024)
    assert f"fix: {caught.value.fix}" in str(caught.value)
    assert str(caught.value.fix).startswith("in an environment of its own: yolo export model=FastSAM-s.pt format=onnx")


@pytest.mark.parametrize(
    ("images", "element", "message"),
    [
        ([1, 3, 64, 96], TensorProto.FLOAT, r"images \(1, 3, 64, 96\) .*a square of a multiple of 32"),
        ([1, 3, 100, 100], TensorProto.FLOAT, "a square of a multiple of 32"),
        ([4, 3, 64, 64], TensorProto.FLOAT, r"a batch of 4 pictures .* batch=1$"),
        ([1, 64, 64, 3], TensorProto.FLOAT, "channels first"),
        ([1, 64, 64], TensorProto.FLOAT, r"images \(1, 64, 64\) .*one input, images \(1, 3, S, S\)"),
        ([1, 3, 64, 64], TensorProto.FLOAT16, "half precision .* half=False$"),
    ],
)
def test_other_inputs(images: list[int], element: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(plain(RIGHT, images, element).SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        open_file(path, MODEL, 1024)


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def _external_in_a_node(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["hidden"], value=tensor))


def _nested(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["yes"], ["c"], then_branch=body, else_branch=body))


def _foreign(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node.append(helper.make_node("Anything", ["images"], ["c"], domain="com.evil"))


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def _quantised(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("DequantizeLinear", ["a", "b"], ["c"]))


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Unheard", ["images"], ["c"]))


def _wild_scores(model: onnx.ModelProto) -> None:
    values = np.full((1, 37, 84), 3, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "output0 is"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_external, "got: constants in other files"),
        (_external_in_a_node, "got: constants in other files"),
        (_nested, "got: graphs within the graph: If .* nms=False"),
        (_foreign, "got: operators of com.evil"),
        (_old, "got: opset 11 .*expected: opset 13 or later .* opset=17"),
        (_quantised, "got: an int8 graph"),
        (_unknown_operator, "got: .*Unheard.*expected: a valid ONNX graph"),
        (_wild_scores, r"got: scores from 3 to 3 in channel 4 .*expected: probabilities"),
    ],
)
def test_hostile_and_odd_graphs(damage: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path) -> None:
    model = plain(RIGHT)
    damage(model)
    path = tmp_path / "file.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        open_file(path, MODEL, 1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got: an empty file|got: no graph in it"),
        (b"PK\x03\x04...", "a PyTorch file: a pickle that only the AGPL code"),
        (b"\x89PNG\r\n\x1a\n" * 20, "got: a file starting with|got: no graph in it"),
        (b"\x08\x0a", "got: no graph in it"),
    ],
)
def test_files_that_are_no_graph(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "FastSAM-s.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_file(path, MODEL, 1024)
    assert COMMAND.removeprefix("fix: ") in str(caught.value.fix)


def test_files_that_are_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file at .*missing.onnx"):
        open_file(tmp_path / "missing.onnx", MODEL, 1024)
    monkeypatch.setattr("samrt_export.families.fast_sam.file.LIMIT_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"got: \d+ bytes .*expected: at most 1000"):
        open_file(file, MODEL, 1024)


def test_names_that_the_bundle_uses_may_be_in_the_file(tmp_path: Path, file: Path) -> None:
    model = onnx.load(file)
    ours = {"images": "image", "output0": "scores", "output1": "boxes"}
    for node in model.graph.node:
        node.input[:] = [ours.get(name, name) for name in node.input]
        node.output[:] = [ours.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = ours[value.name]
    path = tmp_path / "file.onnx"
    path.write_bytes(model.SerializeToString())
    report = export_model(MODEL, tmp_path / "bundle", checkpoint=path)
    assert max(row.relative_l2 for row in report.parity) < 1e-5


def test_a_changed_weight_is_no_longer_the_file(file: Path) -> None:
    module = open_file(file, MODEL, 1024)
    assert isinstance(module, OnnxModule)
    spec = graphs(module, MODEL)[0]
    stored = module.copy_graph()
    weight = max(stored.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    assert checked_parity(spec, module.graph.SerializeToString(), "fp32")
    with pytest.raises(ParityError, match=r"detector in fp32: output '(boxes|scores)'"):
        checked_parity(spec, stored.SerializeToString(), "fp32")
