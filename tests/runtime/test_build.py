"""From a bundle to recorded plans. TensorRT and the GPU are doubled: a "plan" is the ONNX file with a header, run on the CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import samrt
from samrt import build as building
from samrt.bench import process
from samrt.build import build_bundle, check_bundle
from samrt.bundle import open_bundle
from samrt.cli import build_app
from samrt.commands.info import describe
from samrt.selftest import SelfTest, expected_from_output
from samrt_engines import BundleError, DeviceError, PlanError, SelfTestError
from samrt_engines.executor import Executor, open_executor
from samrt_engines.tensorrt import BuildFacts, BuildOptions, Device, Plan, PlanKey
from samrt_engines.tensorrt.libraries import Flavour
from samrt_engines.tensors import Array

PROMPTS = samrt.Prompts(points=[[32, 24]], labels=[1])


class Gpu:
    """What the machine is, to be changed by a test."""

    name = "NVIDIA Test"
    version = "11.4.0"
    built: list[str]
    wrong: tuple[str, ...] = ()
    factor = 1.0
    """Of what the image encoder makes."""

    def __init__(self) -> None:
        self.built = []
        self.opened: list[str] = []
        self.closed = 0
        """Scratch blocks that were given back."""

    def describe(self) -> Device:
        return Device(0, self.name, "8.6", "13.0", 8 << 30)

    def plan_key(self, sha256: str, *, precision: str, profiles: Any, options: BuildOptions) -> PlanKey:
        return PlanKey.of(
            onnx_sha256=sha256,
            flavour=Flavour.TENSORRT,
            version=self.version,
            gpu=self.name,
            capability="8.6",
            precision=precision,
            profiles=profiles,
            options=options,
        )

    def build_plan(self, model: bytes, *, name: str, onnx_sha256: str, **rest: Any) -> Plan:
        rest = {key: rest[key] for key in ("precision", "profiles", "options")}
        self.built.append(name)
        facts = BuildFacts(0.1, 0.2, 10, 2, 1, b"timings")
        return Plan(b"PLAN" + model, self.plan_key(onnx_sha256, **rest), facts)

    def open(self, plan: Plan, *, name: str, inputs: Any, outputs: Any, ranges: Any, **_: Any) -> Executor:
        self.opened.append(name)
        executor = open_executor(
            plan.data[4:], device="cpu", backend="onnxruntime", inputs=inputs, outputs=outputs, ranges=ranges, name=name
        )
        if self.factor != 1 and name == "image_encoder":
            return Wrong(executor, lambda array: array * np.float32(self.factor))  # type: ignore[return-value]
        return Wrong(executor, lambda array: np.roll(array, 1)) if name in self.wrong else executor  # type: ignore[return-value]


class Wrong:
    """A fast engine that answers something else."""

    def __init__(self, executor: Executor, fault: Callable[[Array], Array]) -> None:
        self.inputs, self.close, self._run, self._fault = executor.inputs, executor.close, executor.run, fault
        self.device = executor.device
        self.precision = executor.precision

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._fault(array) for name, array in self._run(feeds).items()}

    def __enter__(self) -> Wrong:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(building, "open_cuda", lambda device: gpu)
    monkeypatch.setattr(building, "plan_key", gpu.plan_key)
    monkeypatch.setattr(building, "build_plan", gpu.build_plan)
    monkeypatch.setattr(building, "TensorRTExecutor", gpu.open)

    class NoScratch:
        def __init__(self, cuda: Gpu) -> None: ...

        def close(self) -> None:
            gpu.closed += 1

    monkeypatch.setattr(building, "Scratch", NoScratch)
    return gpu


@pytest.fixture
def tested(bundle_path: Path, manifest: dict[str, Any], picture: np.ndarray) -> Path:
    """The fake bundle with a self-test."""
    inputs = {
        "image": np.resize(picture, (1, *manifest["numbers"]["image"]["size_hw"], 3)),
        "point_coords": np.array([[[3, 5]]], np.float32),
        "point_labels": np.array([[1]], np.int32),
        "mask_input": np.zeros((1, 1, *manifest["numbers"]["prompts"]["mask_size_hw"]), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    known: dict[str, Array] = dict(inputs)
    expected = {}
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        for name, executor in model.executors.items():
            made = executor.run({spec.name: known[spec.name].astype(spec.dtype) for spec in executor.inputs})
            known |= made
            expected[name] = {output: expected_from_output(array, 5e-3) for output, array in made.items()}
    content = SelfTest(inputs, expected).to_bytes()
    (bundle_path / "selftest.npz").write_bytes(content)
    record = {"file": "selftest.npz", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle_path / "manifest.json").write_text(json.dumps(manifest | {"selftest": record}))
    return bundle_path


def test_build_then_load(tested: Path, gpu: Gpu, picture: np.ndarray) -> None:
    with samrt.load(tested, backend="onnxruntime") as model:
        digest, expected = model.digest, model.decode(model.encode(picture), PROMPTS).masks
        features = model.encode(picture)
    report = build_bundle(tested)
    assert gpu.built == ["image_encoder", "prompt_encoder", "mask_decoder"]
    assert [graph.build_seconds for graph in report.graphs] == [0.2] * 3
    assert {row.graph for row in report.selftest} == set(gpu.built)
    assert all(row.ok for row in report.selftest)
    with samrt.load(tested, backend="tensorrt", device="cuda") as model:
        assert model.digest == digest  # plans change no answer: features of before still fit
        np.testing.assert_array_equal(model.decode(features, PROMPTS).masks, expected)


def test_closing_a_model_gives_the_shared_scratch_back(tested: Path, gpu: Gpu) -> None:
    build_bundle(tested)
    before = gpu.closed
    model = samrt.load(tested, backend="tensorrt")
    assert gpu.closed == before
    model.close()
    model.close()
    assert gpu.closed == before + 1


def test_info_shows_plans(tested: Path, gpu: Gpu) -> None:
    build_bundle(tested)
    shown = CliRunner().invoke(build_app(), ["info", str(tested)]).stdout
    assert "plan of mask_decoder: tensorrt 11.4.0 for NVIDIA Test, 8.6, 0.0 MiB" in shown
    document = json.loads((tested / "manifest.json").read_text())
    document["plans"][0]["key"] = {"version": 1}
    (tested / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match="a plan's key is malformed"):
        describe(open_bundle(tested))


def test_a_second_build_finds_all_there(tested: Path, gpu: Gpu) -> None:
    build_bundle(tested)
    before = (tested / "manifest.json").read_text()
    report = build_bundle(tested)
    assert len(gpu.built) == 3
    assert {graph.build_seconds for graph in report.graphs} == {None}
    assert (tested / "manifest.json").read_text() == before


def test_plans_of_two_gpus_live_side_by_side(tested: Path, gpu: Gpu) -> None:
    build_bundle(tested)
    gpu.name = "NVIDIA Other"
    build_bundle(tested)
    assert len(open_bundle(tested).manifest.plans) == 6
    for name in ("NVIDIA Other", "NVIDIA Test"):
        gpu.name = name
        samrt.load(tested, backend="tensorrt").close()


@pytest.mark.parametrize("options", [{"workspace_bytes": 1 << 20}, {"optimization_level": 5}])
def test_plans_built_with_options_are_found(tested: Path, gpu: Gpu, options: dict[str, int]) -> None:
    build_bundle(tested, BuildOptions(**options))  # type: ignore[arg-type]
    samrt.load(tested, backend="tensorrt").close()


def test_without_a_build_there_is_nothing_to_load(tested: Path, gpu: Gpu) -> None:
    with pytest.raises(PlanError, match=r"image_encoder: no plan for this machine .* fix: samrt build"):
        samrt.load(tested, backend="tensorrt")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("name", "NVIDIA Other", "GPU: wanted NVIDIA Other, found NVIDIA Test"),
        ("version", "11.5.0", "TensorRT: wanted TensorRT 11.5.0, found TensorRT 11.4.0"),
    ],
)
def test_a_foreign_plan_is_refused_with_both_sides(
    tested: Path, gpu: Gpu, attribute: str, value: str, message: str
) -> None:
    build_bundle(tested)
    setattr(gpu, attribute, value)
    with pytest.raises(PlanError, match=f"image_encoder: the plan is stale or foreign .* got: {message}"):
        samrt.load(tested, backend="tensorrt")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b""])
def test_a_changed_plan_is_never_loaded(tested: Path, gpu: Gpu, damage: Callable[[bytes], bytes]) -> None:
    build_bundle(tested)
    plan = next((tested / "plans").glob("mask_decoder-*.plan"))
    plan.write_bytes(damage(plan.read_bytes()))
    with pytest.raises(PlanError, match=r"mask_decoder: the plan (was changed|is truncated)"):
        samrt.load(tested, backend="tensorrt")


def test_a_plan_the_manifest_does_not_vouch_for_is_never_loaded(tested: Path, gpu: Gpu) -> None:
    """A stranger who swaps a plan and its description has still to change the manifest."""
    build_bundle(tested)
    for description in (tested / "plans").glob("mask_decoder-*.json"):
        data = b"PLAN something else"
        entry = json.loads(description.read_text())
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        description.write_text(json.dumps(entry))
        description.with_suffix(".plan").write_bytes(data)
    with pytest.raises(PlanError, match="mask_decoder: the plan is not the one that the manifest vouches for"):
        samrt.load(tested, backend="tensorrt")


@pytest.mark.parametrize("graph", ["image_encoder", "prompt_encoder", "mask_decoder"])
def test_a_wrong_engine_is_refused_and_not_recorded(tested: Path, gpu: Gpu, graph: str) -> None:
    gpu.wrong = (graph,)
    before = (tested / "manifest.json").read_text()
    with pytest.raises(SelfTestError, match=f"TensorRT plans of redness: {graph} is wrong on this machine"):
        build_bundle(tested)
    assert (tested / "manifest.json").read_text() == before
    build_bundle(tested, allow_unverified=True)
    with pytest.raises(SelfTestError):  # once more in production, where the GPU or the driver may be another
        samrt.load(tested, backend="tensorrt")
    samrt.load(tested, backend="tensorrt", allow_unverified=True).close()


def test_an_error_that_rounding_does_not_explain_is_shown(tested: Path, gpu: Gpu) -> None:
    """Half of the tolerance, and more than three times what the export measured: built, recorded, and said."""
    gpu.factor = 1.0025
    document = json.loads((tested / "manifest.json").read_text())
    (form,) = document["graphs"]["image_encoder"]["forms"]
    form["parity"] = {"image_embed": {"relative_l2": 7e-4}, "high_res_feats_0": {"relative_l2": 9e-4}}
    (tested / "manifest.json").write_text(json.dumps(document))
    content = SelfTest.from_bytes((tested / "selftest.npz").read_bytes())
    assert {one.tolerance for outputs in content.expected.values() for one in outputs.values()} == {5e-3}
    shown = CliRunner().invoke(build_app(), ["build", str(tested)])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.stdout.split())
    assert (
        "image_encoder: 'image_embed' is off by 2.5e-03, within its tolerance of 5.0e-03 but more than rounding"
        in words
    )
    assert "explains (2.1e-03): compare --precision bf16 or another TensorRT" in words
    assert "'high_res_feats_0'" not in words
    assert "'low_res_masks'" not in words  # nothing measured at export
    assert len(open_bundle(tested).manifest.plans) == 3


def test_a_graph_is_measured_alone_from_its_plan(tested: Path, gpu: Gpu) -> None:
    build_bundle(tested)
    request = {"bundle": str(tested), "graph": "mask_decoder", "backend": "tensorrt", "device": "cuda"}
    measured = process._one_graph(request)
    assert measured[2:4] == (None, None)  # a double on the CPU has no GPU memory
    assert gpu.opened[-1] == "mask_decoder"


def test_a_bundle_without_a_self_test_is_not_trusted(bundle_path: Path, gpu: Gpu) -> None:
    with pytest.raises(BundleError, match=r"this bundle has no self-test, .* --allow-unverified"):
        build_bundle(bundle_path)
    assert build_bundle(bundle_path, allow_unverified=True).selftest == ()


def test_a_changed_self_test_is_refused(tested: Path, gpu: Gpu) -> None:
    build_bundle(tested)
    (tested / "selftest.npz").write_bytes(b"\0" * (tested / "selftest.npz").stat().st_size)
    with pytest.raises(samrt.BundleError, match=r"selftest.npz differs from the manifest"):
        samrt.load(tested, backend="tensorrt")


def test_timings_are_kept_for_the_next_build(tested: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = gpu.build_plan

    def build_plan(model: bytes, *, timing_cache: bytes | None, **rest: Any) -> Plan:
        seen.append(timing_cache)
        return original(model, **rest)

    monkeypatch.setattr(building, "build_plan", build_plan)
    build_bundle(tested)
    assert seen == [None, b"timings", b"timings"]


def test_check_keeps_nothing(tested: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    original = gpu.build_plan
    options = []

    def build_plan(model: bytes, **rest: Any) -> Plan:
        options.append(rest["options"])
        return original(model, **rest)

    monkeypatch.setattr(building, "build_plan", build_plan)
    report = check_bundle(tested, sm="89")
    assert [graph.graph for graph in report.graphs] == ["image_encoder", "prompt_encoder", "mask_decoder"]
    assert set(options) == {replace(BuildOptions(), flavour="rtx", sm="89")}
    assert not (tested / "plans").exists()


def test_no_gpu_is_one_clear_error(tested: Path) -> None:
    for attempt in (lambda: build_bundle(tested), lambda: samrt.load(tested, backend="tensorrt")):
        with pytest.raises(DeviceError):
            attempt()
    with pytest.raises(DeviceError, match="TensorRT runs on GPUs"):
        samrt.load(tested, backend="tensorrt", device="cpu")
