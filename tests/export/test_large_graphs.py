"""Graphs whose constants lie in a file of their own, as those over protobuf's 2 GB have to; here the limit is lowered."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from samrt.build import check_bundle
from samrt.bundle import open_bundle
from samrt.selftest import SelfTest
from samrt_engines.errors import BackendError, ChecksumError, ExportError
from samrt_engines.executor import open_executor
from samrt_engines.tensors import TensorSpec
from samrt_export import external
from samrt_export.export import export_model
from samrt_export.external import Place, data_files, external_tensor, load_graph, openable, store, values_of
from samrt_export.families.sam2 import FAMILY as SAM2
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.precision.divergence import first_divergence
from samrt_export.precision.emulate import open_runnable
from samrt_export.precision.typed import typed_graph
from samrt_export.randomize import randomize_live
from samrt_export.registry import Family, Feeds, Form, GraphSpec, families
from samrt_export.verify import verify_bundle

WIDTH = 64
MODEL = "tower"


class Tower(nn.Module):
    """A block of a transformer: everything that large graphs are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.position = nn.Parameter(torch.empty(64, WIDTH))

    def forward(self, image: Tensor) -> tuple[Tensor]:
        x = self.stem(image.flatten(1, 2) / 255) + self.position  # (B, 64, C)
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return (x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)),)


def specs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        random = np.random.default_rng(seed)
        return {"image": (255 * random.random((sizes["images"], 8, 8, 3))).astype(np.float32)}

    return (
        GraphSpec(
            "image_encoder",
            module,
            (TensorSpec("image", "float32", ("images", 8, 8, 3)),),
            (TensorSpec("image_embed", "float32", ("images", 64, WIDTH)),),
            {"images": (1, 1, 4)},
            ({"images": 1}, {"images": 2}),
            sample,
            (Form(module),),
        ),
    )


TOWER = Family(
    name="tower",
    models=(MODEL,),
    build=lambda model: Tower(),
    graphs=specs,
    numbers=lambda model: SAM2.numbers("nano"),
    abilities=lambda model: ("points",),
    official_from_hf=dict,
    randomize=randomize_live,
    licence=lambda model: ("Apache-2.0", ""),
    hub_id=lambda model: None,
    shipped_checkpoint=lambda model: None,
)


@pytest.fixture(scope="module", autouse=True)
def low_limit() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families(), "tower", TOWER)
        patch.setattr(external, "LIMIT_BYTES", 1 << 15)
        yield


@pytest.fixture(scope="module", params=["fp16", "int8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    return export_model(MODEL, out, random_seed=0, precision=request.param).path


@pytest.fixture
def spec() -> GraphSpec:
    module = Tower().eval().requires_grad_(False)
    randomize_live(module, 0)
    return specs(module, MODEL)[0]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The tower's graph with its constants in a file. Read only."""
    module = Tower().eval().requires_grad_(False)
    randomize_live(module, 0)
    return onnx_from_spec(specs(module, MODEL)[0], module, tmp_path_factory.mktemp("traced") / "graph.data")


@pytest.fixture
def large(traced: onnx.ModelProto, tmp_path: Path) -> onnx.ModelProto:
    """A copy of it, in a folder of its own: ``graph.onnx`` and ``graph.data``."""
    (source,) = data_files(traced)
    shutil.copyfile(source, tmp_path / "graph.data")
    copy = onnx.ModelProto()
    copy.CopyFrom(traced)
    for tensor in copy.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(tmp_path / "graph.data")
    return copy


def manifest_forms(bundle: Path) -> list[dict[str, Any]]:
    forms: list[dict[str, Any]] = json.loads((bundle / "manifest.json").read_text())["graphs"]["image_encoder"]["forms"]
    return forms


def test_every_form_is_two_files_and_nothing_else_is_left(bundle: Path) -> None:
    recorded = {record["file"] for form in manifest_forms(bundle) for record in (form, *form["data"])}
    assert {path.name for path in bundle.iterdir()} == recorded | {"manifest.json", "selftest.npz"}
    for form in manifest_forms(bundle):
        (data,) = form["data"]
        assert data["file"] == form["file"].removesuffix("onnx") + "data"
        onnx.checker.check_model(bundle / form["file"])
        assert form["size"] < data["size"]


def test_verify_finds_the_model_it_was_made_from(bundle: Path) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    report = verify_bundle(bundle)
    assert report.ok, report.rows
    assert len(report.rows) == 2 * len(manifest_forms(bundle))
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_samrt_runs_the_stored_files(bundle: Path, spec: GraphSpec) -> None:
    opened = open_bundle(bundle)
    graph = opened.manifest.graphs["image_encoder"]
    feeds = spec.sample({"images": 3}, 7)
    expected = spec.module(torch.from_numpy(feeds["image"]))[0].numpy()
    for form in graph.forms:
        path = opened.read_model(form)
        assert path == bundle / form.file.file
        with open_executor(path, device="cpu", inputs=graph.inputs, outputs=graph.outputs) as executor:
            found = executor.run(feeds)["image_embed"]
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < {"fp32": 1e-5, "fp16": 5e-3, "int8": 5e-2}[form.precision], form.precision


def test_the_selftest_holds(bundle: Path) -> None:
    opened = open_bundle(bundle)
    form = opened.manifest.graphs["image_encoder"].forms[-1]
    assert opened.manifest.selftest is not None
    selftest = SelfTest.from_bytes(opened.read_file(opened.manifest.selftest))
    with (
        open_runnable(opened.read_model(form)) as model,
        open_executor(model, device="cpu") as executor,
    ):
        (row,) = selftest.run({"image_encoder": executor})
    assert row.ok, row


def test_a_changed_data_file_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for form in opened.manifest.graphs["image_encoder"].forms:
        data = bundle / form.data[0].file
        right = data.read_bytes()
        try:
            data.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
            with pytest.raises(ChecksumError, match=rf"{data.name} differs from the manifest"):
                opened.read_model(form)
            data.write_bytes(right[:-1])
            with pytest.raises(ChecksumError, match=f"{len(right) - 1} bytes"):
                opened.read_model(form)
        finally:
            data.write_bytes(right)
        assert opened.read_model(form) == bundle / form.file.file


def test_large_and_small_forms_compute_the_same(
    bundle: Path, spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit decides where constants lie, and nothing else."""
    monkeypatch.setattr(external, "LIMIT_BYTES", 1 << 30)
    (precision,) = {form["precision"] for form in manifest_forms(bundle)} - {"fp32"}
    small = export_model(MODEL, tmp_path / "small", random_seed=0, precision=precision).path
    feeds = spec.sample({"images": 2}, 3)
    for one, other in zip(manifest_forms(small), manifest_forms(bundle), strict=True):
        assert not one["data"]
        assert one["flops"] == other["flops"]
        assert one.get("kept_fp32") == other.get("kept_fp32")
        results = []
        for folder, form in ((small, one), (bundle, other)):
            with (
                open_runnable(folder / form["file"]) as model,
                open_executor(model, device="cpu") as executor,
            ):
                results.append(executor.run(feeds)["image_embed"])
        np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.tensorrt
def test_large_graphs_build(bundle: Path) -> None:
    if manifest_forms(bundle)[0]["precision"] == "int8":
        pytest.skip("int8 is for CPUs")
    report = check_bundle(bundle, sm="86")
    assert [graph.graph for graph in report.graphs] == ["image_encoder"]
    assert report.graphs[0].plan_bytes > 4 * WIDTH * WIDTH


def test_a_killed_export_leaves_no_bundle(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_large_graphs as here
here.families()["tower"] = here.TOWER
here.external.LIMIT_BYTES = 1 << 15
def kill(stage, done, total):
    if "fp16" in stage:
        os.kill(os.getpid(), signal.SIGKILL)
here.export_model(here.MODEL, Path(sys.argv[1]), random_seed=0, precision="fp16", progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert left.name.endswith(".partial")


def test_the_same_weights_give_the_same_files(spec: GraphSpec, large: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = onnx_from_spec(spec, spec.module, tmp_path / "again" / "graph.data")
    assert store(again, tmp_path / "again" / "graph.onnx") == tmp_path / "again" / "graph.onnx"
    assert store(large, tmp_path / "graph.onnx") == tmp_path / "graph.onnx"
    for file in ("graph.onnx", "graph.data"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_constants_are_read_where_they_lie(
    spec: GraphSpec, large: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "LIMIT_BYTES", 1 << 20)  # too high now for a data file
    small = onnx_from_spec(spec, spec.module, tmp_path / "none.data")
    assert store(small, tmp_path / "none.onnx") == small.SerializeToString(deterministic=True)
    assert {file.name for file in tmp_path.iterdir()} == {"graph.data"}
    assert large.ByteSize() < 8192 < small.ByteSize()
    stored = store(typed_graph(large, "fp16", {}), tmp_path / "typed.onnx")
    assert isinstance(stored, Path)
    assert 2 * (tmp_path / "typed.data").stat().st_size < 1.1 * (tmp_path / "graph.data").stat().st_size
    for ours, theirs in ((large, small), (load_graph(stored), typed_graph(small, "fp16", {}))):
        for one, other in zip(ours.graph.initializer, theirs.graph.initializer, strict=True):
            assert (one.name, one.data_type) == (other.name, other.data_type)
            np.testing.assert_array_equal(values_of(one), numpy_helper.to_array(other))


def test_a_difference_is_found_between_large_graphs(spec: GraphSpec, large: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(large)
    (norm,) = (node for node in broken.graph.node if node.op_type == "LayerNormalization")
    (epsilon,) = (attribute for attribute in norm.attribute if attribute.name == "epsilon")
    epsilon.f = 1.0
    first = first_divergence(large, broken, spec.sample({"images": 2}, 0), 1e-3)
    assert first is not None
    assert first.op == "LayerNormalization"


def test_what_an_executor_opens_is_gone_afterwards(large: onnx.ModelProto, tmp_path: Path) -> None:
    with openable(large) as content:
        assert isinstance(content, Path)
        assert content.parent == tmp_path
        assert content.is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["graph.data"]


def test_a_data_file_that_ends_too_soon(tmp_path: Path) -> None:
    (tmp_path / "short.data").write_bytes(bytes(100))
    model = onnx.ModelProto()
    place = Place(tmp_path / "short.data", 0, 4 * 64)
    model.graph.initializer.append(external_tensor("w", TensorProto.FLOAT, (64,), place))
    with pytest.raises(ExportError, match="a file of constants is too short"):
        store(model, tmp_path / "graph.onnx")


def test_without_its_data_file_a_graph_does_not_load(large: onnx.ModelProto, tmp_path: Path) -> None:
    path = store(large, tmp_path / "graph.onnx")
    (tmp_path / "graph.data").unlink()
    with pytest.raises(BackendError, match="ONNX Runtime cannot load the model"):
        open_executor(path, device="cpu")
