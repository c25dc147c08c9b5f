"""Which nodes stay fp32, why, and that no more of them do than have to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from precision_cases import OVERFLOWING, Case, constant, hand_made, nano_specs, replace_constant, trained_case
from torch import Tensor, nn

from samrt import ParityError
from samrt_engines.tensors import TensorSpec
from samrt_export.parity import reference_runs
from samrt_export.precision import islands
from samrt_export.precision.elements import node_key
from samrt_export.precision.hazards import LONG_STREAM, find_hazards
from samrt_export.precision.islands import choose_islands
from samrt_export.precision.narrow import choose, narrow_form, planned_forms
from samrt_export.precision.ranges import measure_ranges
from samrt_export.precision.tolerance import NARROW_TOLERANCE, SHARE
from samrt_export.registry import Feeds, Form, GraphSpec


class OnnxModule(nn.Module):
    """A hand-made graph as its own PyTorch module, in fp32 by onnx's reference operators."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.session = ReferenceEvaluator(model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = self.session.input_names
        values = self.session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in values)


def hand_case(nodes: list[onnx.NodeProto], constants: dict[str, Any], width: int, out: int, size: float = 1) -> Case:
    """A graph from x (n, width) to y (n, out), on normal values of a given size."""
    model = hand_made(nodes, constants, {"x": ["n", width]}, {"y": ["n", out]})

    def sample(sizes: Any, seed: int) -> Feeds:
        return {"x": (size * np.random.default_rng(seed).normal(size=(sizes["n"], width))).astype(np.float32)}

    module = OnnxModule(model)
    spec = GraphSpec(
        name="hand_made",
        module=module,
        inputs=(TensorSpec("x", "float32", ("n", width)),),
        outputs=(TensorSpec("y", "float32", ("n", out)),),
        profiles={"n": (1, 4, 64)},
        checks=({"n": 4}, {"n": 9}),
        sample=sample,
        forms=(Form(module),),
    )
    return Case(spec, model, reference_runs(spec))


def test_an_overflow_makes_an_island_of_its_maker_and_its_takers() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Mul", ["a", "large"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Mul", ["c", "small"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["y"]),
    ]
    weights = {name: (rng.normal(size=(32, 32)) / 32**0.5).astype(np.float32) for name in ("w1", "w2")}
    case = hand_case(nodes, weights | {"large": np.float32(6e4), "small": np.float32(1e-4)}, 32, 32)
    choice = choose_islands(case.model, case.spec, "fp16", case.runs)
    reason = "values within a factor of 4 of the largest or above: fp16 ends at 6.55e+04"
    assert choice.kept == dict.fromkeys(("node_b", "node_c", "node_d"), reason)
    assert choice.trials == 1
    assert choice.error < SHARE * NARROW_TOLERANCE["fp16"]
    assert choice.to_json()[0] == {"op": "Mul", "reason": reason, "count": 2, "nodes": ["node_b", "node_d"]}
    assert choose_islands(case.model, case.spec, "bf16", case.runs).kept == {}


def test_a_hazard_that_proves_harmless_is_dropped() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["a"], axis=-1),
        helper.make_node("Exp", ["a"], ["y"]),
    ]
    case = hand_case(nodes, {"gain": np.ones(32, np.float32)}, 32, 32)
    hazards = find_hazards(case.model, measure_ranges(case.model, case.runs[0].feeds, "fp16"), "fp16")
    assert {(hazard.op, hazard.reason, hazard.binding) for hazard in hazards} == {
        ("LayerNormalization", "normalisation", False),
        ("Exp", "steep function", False),
    }
    assert choose_islands(case.model, case.spec, "fp16", case.runs).kept == {}


def test_a_hazard_that_does_harm_is_kept_alone() -> None:
    # exp of values around 20: storing the exponent in fp16 costs up to 20 / 4096 of the result.
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["a"], axis=-1),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Add", ["b", "twenty"], ["c"]),
        helper.make_node("Exp", ["c"], ["y"]),
    ]
    constants = {
        "gain": np.ones(32, np.float32),
        "w": (np.random.default_rng(0).normal(size=(32, 32)) / 32).astype(np.float32),
        "twenty": np.float32(20),
    }
    case = hand_case(nodes, constants, 32, 32)
    choice = choose_islands(case.model, case.spec, "fp16", case.runs)
    assert "node_c" in choice.kept  # the sum has to stay wide, or Exp gets a rounded exponent
    assert "node_y" in choice.kept
    assert not {"node_a", "node_b"} & choice.kept.keys()
    assert choice.kept["node_y"].startswith("values within")
    assert choice.kept["node_c"] == "adds more error than its share"
    assert choice.trials > 2
    assert choice.error <= SHARE * NARROW_TOLERANCE["fp16"]


def test_the_set_is_the_smallest_of_its_neighbours() -> None:
    """Dropping any kept node that is not binding breaks the bar."""
    nodes = [
        helper.make_node("Sqrt", ["x2"], ["root"]),
        helper.make_node("Mul", ["root", "thousand"], ["large"]),
        helper.make_node("Sub", ["large", "near"], ["difference"]),
        helper.make_node("MatMul", ["difference", "w"], ["y"]),
    ]
    nodes.insert(0, helper.make_node("Add", ["x", "hundred"], ["x2"]))
    constants = {
        "hundred": np.float32(100),
        "thousand": np.float32(100),
        "near": np.float32(1000),
        "w": np.eye(32, dtype=np.float32),
    }
    case = hand_case(nodes, constants, 32, 32)
    choice = choose_islands(case.model, case.spec, "fp16", case.runs)
    assert choice.kept
    assert choice.trials < islands.MAX_TRIALS
    search = islands._Search(case.model, case.spec, "fp16", case.runs)
    kept = frozenset(choice.kept)
    assert search.holds(kept)
    for node in kept:
        assert not search.holds(kept - {node}), node


def stream_case(blocks: int) -> Case:
    """A residual stream: each block adds a hundredth of it to it, every tenth through a move. Then a short one."""
    rng, nodes, constants, stream = np.random.default_rng(0), [], {}, "x"
    for i in range(blocks):
        constants[f"w{i}"] = (rng.normal(size=32) / 100).astype(np.float32)
        nodes.append(helper.make_node("Mul", [stream, f"w{i}"], [f"branch{i}"]))
        nodes.append(helper.make_node("Add", [f"branch{i}", stream] if i % 2 else [stream, f"branch{i}"], [f"sum{i}"]))
        stream = f"sum{i}"
        if i % 10 == 9:
            nodes.append(helper.make_node("Identity", [stream], [f"moved{i}"]))
            stream = f"moved{i}"
    constants["bias"] = rng.normal(size=32).astype(np.float32)
    nodes.append(helper.make_node("Mul", [stream, "bias"], ["scaled"]))
    nodes.append(helper.make_node("Add", ["scaled", "bias"], ["shifted"]))
    nodes.append(helper.make_node("Add", ["scaled", "shifted"], ["y"]))
    return hand_case(nodes, constants, 32, 32)


@pytest.mark.parametrize("blocks", [LONG_STREAM - 1, LONG_STREAM, 40])
def test_a_long_residual_stream_is_a_hazard(blocks: int) -> None:
    case = stream_case(blocks)
    hazards = find_hazards(case.model, measure_ranges(case.model, case.runs[0].feeds, "fp16"), "fp16")
    streams = [hazard for hazard in hazards if "stream" in hazard.reason]
    if blocks < LONG_STREAM:
        assert not streams
        return
    (stream,) = streams
    assert stream.nodes == tuple(f"node_sum{i}" for i in range(blocks))
    assert (stream.op, stream.binding, stream.whole) == ("Add", False, True)


def test_the_sums_of_a_deep_stream_stay_fp32_where_rounding_them_adds_up() -> None:
    """400 roundings of a sum are an error of some 4e-3; no single one of them stands out."""
    case = stream_case(400)
    choice = choose_islands(case.model, case.spec, "fp16", case.runs)
    assert choice.kept == {f"node_sum{i}": "a residual stream of 32 additions or more" for i in range(400)}
    assert choice.error <= SHARE * NARROW_TOLERANCE["fp16"]
    short = stream_case(100)  # long enough to be suspected, and harmless
    assert choose_islands(short.model, short.spec, "fp16", short.runs).kept == {}


def test_when_nothing_helps_the_error_names_the_first_node() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    case = hand_case(nodes, {"w": np.eye(32, dtype=np.float32)}, 32, 32)
    broken = case.copy()
    replace_constant(broken, "w", 2 * np.eye(32, dtype=np.float32))
    with pytest.raises(
        ParityError, match=r"hand_made: no fp16 form found within tolerance \| got: relative error 1.0e\+00"
    ):
        choose_islands(broken, case.spec, "fp16", case.runs)


def test_long_sums_bind_whatever_is_measured() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], axis=-1),
        helper.make_node("ReduceSum", ["a", "axes"], ["y"], keepdims=1),
    ]
    for width, binding in ((2048, {"node_a", "node_y"}), (1024, set())):
        case = hand_case(nodes, {"axes": np.array([1], np.int64)}, width, 1)
        ranges = measure_ranges(case.model, case.runs[0].feeds, "fp16")
        sums = [h for h in find_hazards(case.model, ranges, "fp16") if h.reason == "sums 2048 terms or more"]
        assert {node for hazard in sums for node in hazard.nodes} == binding
        assert all(hazard.binding for hazard in sums)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_clicks_keep_their_position_and_scores_their_order(nano_bundle: Path, precision: str) -> None:
    prompt, decoder = (trained_case(nano_bundle, graph) for graph in ("prompt_encoder", "mask_decoder"))
    kept = choose_islands(prompt.model, prompt.spec, precision, prompt.runs).kept
    ops = {node_key(node): node.op_type for node in prompt.model.graph.node}
    assert sorted({ops[node] for node in kept}) == ["Add", "Cos", "Div", "MatMul", "Mul", "Sin", "Sub"]
    assert set(kept.values()) == {"angle of a position in space or time: rounded, it moves"}
    heads = choose_islands(decoder.model, decoder.spec, precision, decoder.runs).to_json()
    assert [(entry["op"], entry["count"]) for entry in heads] == [("Gemm", 2), ("Sigmoid", 1)]
    assert {entry["reason"] for entry in heads} == {"scores that rank candidates: narrow, close ones become ties"}


def test_small_values_are_a_hazard_in_fp16_only() -> None:
    nodes = [helper.make_node("Mul", ["x", "tiny"], ["a"]), helper.make_node("Mul", ["a", "huge"], ["y"])]
    case = hand_case(nodes, {"tiny": np.float32(1e-3), "huge": np.float32(1e3)}, 32, 32, size=1e-3)
    for precision, expected in (("fp16", {"node_a", "node_y"}), ("bf16", set())):
        ranges = measure_ranges(case.model, case.runs[0].feeds, precision)
        lost = [h for h in find_hazards(case.model, ranges, precision) if h.reason.startswith("small values")]
        assert {node for hazard in lost for node in hazard.nodes} == expected


def test_an_overflow_inside_one_block_is_found_and_mended(nano_bundle: Path) -> None:
    """A convolution scaled up before a norm, which takes it out again: the same function, but not in fp16."""
    case = trained_case(nano_bundle, "prompt_encoder")
    model = case.copy()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    for name in conv.input[1:]:
        replace_constant(model, name, OVERFLOWING * numpy_helper.to_array(constant(model, name)))
    choice = choose_islands(model, case.spec, "fp16", case.runs)
    assert choice.kept[node_key(conv)].startswith("values within a factor of 4 of the largest")
    assert {node.op_type for node in model.graph.node if node_key(node) in choice.kept} >= {
        "Conv",
        "LayerNormalization",
    }
    assert choice.error <= SHARE * NARROW_TOLERANCE["fp16"]


def test_what_a_bundle_of_each_precision_holds() -> None:
    specs = nano_specs()
    encoder, prompt = specs["image_encoder"], specs["prompt_encoder"]
    cpu, general = choose(encoder, "onnxruntime-cpu"), choose(encoder, "")
    assert planned_forms(encoder, "fp32") == tuple((form, "fp32") for form in encoder.forms)
    assert planned_forms(prompt, "int8") == tuple((form, "fp32") for form in prompt.forms)
    plan = planned_forms(encoder, "fp16")
    assert plan[-1] == (general, "fp16")
    assert all(form.targets and precision == "fp32" for form, precision in plan[:-1])
    assert {target for form, _ in plan for target in form.targets} == {"onnxruntime-cpu", "openvino"}
    assert [(form.module, form.targets) for form, _ in planned_forms(prompt, "bf16")] == [
        (prompt.forms[0].module, ("onnxruntime-cpu", "openvino")),
        (prompt.forms[0].module, ()),
    ]
    quantised, *rest = planned_forms(encoder, "int8")
    assert (quantised[0].module, quantised[0].targets, quantised[1]) == (cpu.module, ("onnxruntime-cpu",), "int8")
    assert all(precision == "fp32" and "onnxruntime-cpu" not in form.targets for form, precision in rest)
    assert rest[-1] == (Form(general.module), "fp32")


def test_the_manifest_lists_what_was_kept(nano_bundle: Path) -> None:
    case = trained_case(nano_bundle, "mask_decoder")
    form = narrow_form(case.model, case.spec, "fp16", case.runs)
    assert [set(entry) for entry in form.kept_fp32] == [{"op", "reason", "count", "nodes"}] * 2
    assert all(entry["count"] == len(entry["nodes"]) for entry in form.kept_fp32)
    onnx.checker.check_model(form.model, full_check=True)


def test_the_share_is_left_to_the_gpu(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that the plain form misses makes islands where there were none."""
    case = trained_case(nano_bundle, "mask_decoder")
    plain = choose_islands(case.model, case.spec, "fp16", case.runs)
    monkeypatch.setattr(islands, "SHARE", 0.8 * plain.error / NARROW_TOLERANCE["fp16"])
    strict = choose_islands(case.model, case.spec, "fp16", case.runs)
    assert strict.kept.keys() > plain.kept.keys()
    assert strict.error <= 0.8 * plain.error
    assert replace(strict, trials=0).kept == strict.kept
    assert strict.trials <= islands.MAX_TRIALS
