"""Real builds: TensorRT for RTX parses and optimises nano's graphs, and refuses what it must, with no GPU."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samrt_engines.errors import BackendError, BuildError, DeviceError
from samrt_engines.tensorrt import BuildOptions, BuildStep, PlanCache, TensorRT, build_plan, plan_key
from samrt_engines.tensorrt import build as build_module
from samrt_engines.tensorrt.cuda import Device

SM86 = BuildOptions(flavour="rtx", sm="86")
SM89 = replace(SM86, sm="89")
ATTENTIONS = {
    "image_encoder": (9, 0),
    "prompt_encoder": (0, 0),
    "mask_decoder": (7, 7),
    "memory_attention": (4, 4),  # 256 queries of a single picture: too few for its kernels, not so at full size
    "memory_encoder": (0, 0),
    "mask_downsampler": (0, 0),
}
"""Of nano's graphs in fp16: attentions, and those that may be split."""
GRAPHS = tuple(ATTENTIONS)
PROFILES = {"n": (1, 1, 4)}

pytestmark = pytest.mark.usefixtures("rtx")


def small_model(
    *nodes: onnx.NodeProto, dtype: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("n", 4), **constants: Any
) -> bytes:
    """A graph from `x` to `y`."""
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x, y = (helper.make_tensor_value_info(name, dtype, shape) for name in ("x", "y"))
    graph = helper.make_graph(list(nodes), "small", [x], [y], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()


RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")


@pytest.mark.parametrize("graph", GRAPHS)
def test_nano_builds_for_two_gpus(nano_bundle: Path, graph: str, tmp_path: Path) -> None:
    """With the manifest's dynamic profiles, a minimum of no points included; and the plans can be told apart."""
    entry = json.loads((nano_bundle / "manifest.json").read_text())["graphs"][graph]
    profiles = {symbol: (sizes["min"], sizes["opt"], sizes["max"]) for symbol, sizes in entry["profiles"].items()}
    (form,) = (form for form in entry["forms"] if not form["targets"])
    model, cache = nano_bundle / form["file"], PlanCache(tmp_path)
    plans = [
        build_plan(model, profiles=profiles, precision=form["precision"], options=options, name=graph)
        for options in (SM86, SM89)
    ]
    for plan, options, capability in zip(plans, (SM86, SM89), ("8.6", "8.9"), strict=True):
        assert plan.key == plan_key(form["sha256"], precision="fp32", profiles=profiles, options=options)
        assert (plan.key.gpu, plan.key.capability) == ("any", capability)
        assert len(plan.data) > 0.5 * model.stat().st_size
        assert plan.facts is not None
        assert plan.facts.build_seconds > 0
        assert plan.facts.layers > (10 if graph == "mask_downsampler" else 50)
        assert plan.facts.attentions == plan.facts.decomposable == ATTENTIONS[graph][0]
        cache.save(graph, plan)
        assert cache.load(graph, plan.key).data == plan.data
    assert plans[0].data != plans[1].data
    assert plans[0].key.digest != plans[1].key.digest
    assert len(cache.entries()) == 2
    if "points" in profiles:
        assert profiles["points"][0] == 0


@pytest.mark.parametrize("options", [SM86, SM89], ids=["sm86", "sm89"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_nano_builds_in_fp16(nano_fp16_bundle: Path, graph: str, options: BuildOptions) -> None:
    """The encoder's attentions are all fused. The decoder's heads are too narrow for that, which the plan's facts say."""
    entry = json.loads((nano_fp16_bundle / "manifest.json").read_text())["graphs"][graph]
    profiles = {symbol: (sizes["min"], sizes["opt"], sizes["max"]) for symbol, sizes in entry["profiles"].items()}
    (form,) = (form for form in entry["forms"] if not form["targets"])
    assert form["precision"] == "fp16"
    model = nano_fp16_bundle / form["file"]
    plan = build_plan(model, profiles=profiles, precision="fp16", options=options, name=graph)
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == ATTENTIONS[graph]
    assert plan.key.digest != replace(plan.key, precision="fp32").digest
    if graph == "mask_decoder":
        whole = replace(options, decomposable_attention=False)
        with pytest.raises(BuildError, match="not supported by a dedicated kernel"):
            build_plan(model, profiles=profiles, precision="fp16", options=whole, name=graph)


def test_fp32_attention_needs_leave_to_be_split(nano_bundle: Path) -> None:
    model = nano_bundle / "image_encoder.onnx"
    with pytest.raises(BuildError) as caught:
        build_plan(
            model,
            profiles={"images": (1, 1, 8)},  # of fixed size it builds, at least in 1.7
            precision="fp32",
            options=replace(SM86, decomposable_attention=False),
        )
    assert "Attention operation was not supported by a dedicated kernel" in str(caught.value.got)
    assert str(caught.value.fix).startswith("BuildOptions(decomposable_attention=True)")


def test_progress_counts_to_the_end() -> None:
    steps: list[BuildStep] = []
    build_plan(small_model(RELU), profiles=PROFILES, precision="fp32", options=SM86, progress=steps.append)
    assert steps[0].parent is None
    assert steps[0].done == 0
    last = {step.phase: step for step in steps}
    assert all(step.done == step.steps for step in last.values())
    assert len(last) > 1
    assert {step.parent for step in steps} - {None} <= last.keys()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_what_progress_raises_cancels_the_build(kind: type[BaseException]) -> None:
    seen = []

    def stop(step: BuildStep) -> None:
        seen.append(step)
        if len(seen) == 4:
            raise kind("stop here")

    with pytest.raises(kind, match="stop here"):
        build_plan(small_model(RELU), profiles=PROFILES, precision="fp32", options=SM86, progress=stop)
    assert len(seen) == 4, "it is not called again"


def test_every_node_that_does_not_parse_is_named() -> None:
    nodes = [
        helper.make_node("Unique", ["x"], ["u"], name="the_unique", sorted=1),
        helper.make_node("Reshape", ["u", "flat"], ["y"], name="back"),
    ]
    model = small_model(*nodes, shape=("n",), flat=np.array([-1], np.int64))
    with pytest.raises(
        BuildError, match=r"small: TensorRT cannot parse the graph \| got: .*node 'the_unique' \(Unique\)"
    ):
        build_plan(model, profiles=PROFILES, precision="fp32", options=SM86, name="small")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"this is no ONNX graph \| got: no outputs"),
        (b"garbage", r"cannot parse the graph \| got: the file: .*Failed to parse the ONNX model"),
        (small_model(RELU)[:-9], r"cannot parse the graph \| got: the file: .*Failed to parse the ONNX model"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build_plan(data, profiles=PROFILES, precision="fp32", options=SM86)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"the ONNX file cannot be read \| got: .*: No such file"):
        build_plan(tmp_path / "none.onnx", profiles={}, precision="fp32", options=SM86)


def test_types_samrt_does_not_use_are_refused() -> None:
    with pytest.raises(BuildError, match=r"input 'x' is of a type samrt does not use \| got: BF16"):
        build_plan(small_model(RELU, dtype=TensorProto.BFLOAT16), profiles=PROFILES, precision="bf16", options=SM86)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({}, r"not those of the graph's symbolic dimensions \| got: none \| expected: n"),
        ({"m": (1, 1, 1)}, r"not those of the graph's symbolic dimensions \| got: m \| expected: n"),
        ({"n": (2, 1, 4)}, r"'n' makes no sense \| got: min 2, opt 1, max 4"),
        ({"n": (-1, 1, 4)}, "'n' makes no sense"),
        ({"n": (0, 0, 0)}, "'n' makes no sense"),
    ],
)
def test_profiles_that_do_not_fit(profiles: dict[str, tuple[int, int, int]], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build_plan(small_model(RELU), profiles=profiles, precision="fp32", options=SM86)


def test_fixed_shapes_need_no_profile() -> None:
    model = small_model(RELU, shape=(2, 4))
    assert build_plan(model, profiles={}, precision="fp32", options=SM86).data


def test_an_fp16_graph_stays_fp16() -> None:
    model = small_model(RELU, dtype=TensorProto.FLOAT16)
    plan = build_plan(model, profiles=PROFILES, precision="fp16", options=SM86)
    assert plan.key.precision == "fp16"
    assert plan.key.onnx_sha256 == hashlib.sha256(model).hexdigest()


def test_a_digest_that_covers_external_data_can_be_given() -> None:
    plan = build_plan(small_model(RELU), profiles=PROFILES, precision="fp32", options=SM86, onnx_sha256="ab" * 32)
    assert plan.key.onnx_sha256 == "ab" * 32


def external_model(folder: Path) -> bytes:
    """y = x + bias, with the bias in a file."""
    (folder / "bias.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    model = onnx.load_model_from_string(
        small_model(helper.make_node("Add", ["x", "bias"], ["y"]), bias=np.zeros(4, np.float32))
    )
    (bias,) = model.graph.initializer
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "bias.bin", "offset": "0", "length": "16"}.items():
        bias.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def test_external_data_lies_beside_the_file_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = external_model(tmp_path)
    (tmp_path / "model.onnx").write_bytes(data)
    assert build_plan(tmp_path / "model.onnx", profiles=PROFILES, precision="fp32", options=SM86).data
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BuildError, match=r"cannot parse the graph \| got: .*initializer: bias"):
        build_plan(data, profiles=PROFILES, precision="fp32", options=SM86)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (replace(SM86, sm="90"), BackendError, r"cannot build for compute capability 90 .* expected: 75, 80, 86, 89"),
        (replace(SM86, hardware_compatible=True), BackendError, r"has no such plans \| got: hardware_compatible"),
        (replace(SM86, version_compatible=True), BackendError, r"has no such plans \| got: version_compatible"),
        (replace(SM86, flavour="rtxx"), BackendError, r"unknown TensorRT flavour \| got: 'rtxx'"),
        (replace(SM86, sm=None), DeviceError, "no NVIDIA GPU answers"),
        (replace(SM86, workspace_bytes=1), BuildError, r"workspace limit.* \| fix: a larger BuildOptions\(workspace"),
    ],
)
def test_options_that_cannot_be_had(
    options: BuildOptions, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samrt_engines.tensorrt import cuda as cuda_module

    monkeypatch.setattr(cuda_module, "cuda_device_count", lambda: 0)
    weights = np.ones((64, 64), np.float32)
    model = small_model(helper.make_node("MatMul", ["x", "w"], ["y"]), shape=("n", 64), w=weights)
    with pytest.raises(kind, match=message):
        build_plan(model, profiles=PROFILES, precision="fp32", options=options)


# --- TensorRT for data centres, as far as it goes without one: what its builder would be told


class Recorder:
    """A builder's config that takes anything down."""

    def __init__(self, *, accepts_cache: bool = True) -> None:
        object.__setattr__(self, "calls", [])
        object.__setattr__(self, "_accepts_cache", accepts_cache)

    def __setattr__(self, name: str, value: object) -> None:
        self.calls.append((name, value))

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> Any:
            self.calls.append((name, *arguments))
            if name == "set_timing_cache":
                return self._accepts_cache or arguments[0] == b""
            return arguments[0] if name == "create_timing_cache" else None

        return call


class Names:
    """An enum whose members are their names."""

    def __getattr__(self, name: str) -> str:
        return name


TENSORRT = TensorRT(
    SimpleNamespace(
        BuilderFlag=Names(), MemoryPoolType=Names(), HardwareCompatibilityLevel=Names(), ProfilingVerbosity=Names()
    ),
    build_module.Flavour.TENSORRT,
    "11.4.0.106",
)


def test_options_reach_tensorrt() -> None:
    config = Recorder()
    build_module._configure(
        TENSORRT,
        config,
        BuildOptions(
            workspace_bytes=5,
            hardware_compatible=True,
            version_compatible=True,
            strip_weights=True,
            optimization_level=2,
        ),
    )
    assert config.calls == [
        ("set_memory_pool_limit", "WORKSPACE", 5),
        ("hardware_compatibility_level", "AMPERE_PLUS"),
        ("set_flag", "VERSION_COMPATIBLE"),
        ("set_flag", "STRIP_PLAN"),
        ("set_flag", "REFIT_IDENTICAL"),
        ("builder_optimization_level", 2),
        ("profiling_verbosity", "DETAILED"),
    ]


def test_defaults_tell_tensorrt_nothing_about_hardware_or_precision() -> None:
    config = Recorder()
    build_module._configure(TENSORRT, config, BuildOptions())
    assert config.calls == [("profiling_verbosity", "DETAILED")]


@pytest.mark.parametrize(
    ("given", "accepts", "used"),
    [(None, True, b""), (b"measured", True, b"measured"), (b"of another GPU", False, b"")],
)
def test_timing_caches(given: bytes | None, accepts: bool, used: bytes) -> None:
    config = Recorder(accepts_cache=accepts)
    assert build_module._use_timing_cache(TENSORRT, config, given) == used
    assert config.calls[-1] == ("set_timing_cache", used, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(BuildOptions(), ("NVIDIA L4", "8.9")), (BuildOptions(hardware_compatible=True), ("any", "8.0+"))],
)
def test_keys_name_the_gpu_that_is_there(
    options: BuildOptions, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_device", lambda _: Device(0, "NVIDIA L4", "8.9", "13.0", 24 << 30))
    assert build_module._target(TENSORRT, options) == expected
    with pytest.raises(BackendError, match=r"cannot build for compute capability 86 from here .* flavour='rtx'"):
        build_module._target(TENSORRT, replace(options, sm="86"))


def test_rtx_plans_are_for_a_capability_not_a_gpu(rtx: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_device", lambda _: Device(0, "NVIDIA L4", "8.9", "13.0", 24 << 30))
    assert build_module._target(rtx, BuildOptions()) == ("any", "8.9")
