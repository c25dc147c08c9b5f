"""Typed graphs: which tensor is how wide, and where Casts stand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from precision_cases import constant, hand_made, run, trained_case

from samrt import ExportError
from samrt_export.precision.elements import element_types, node_key
from samrt_export.precision.typed import forced_fp32, redundant_casts, typed_graph

ELEMENT = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def small_model(weight: float = 0.5) -> onnx.ModelProto:
    """x -> product -> norm -> (moved) -> product -> y, and the norm's moved result as an output of its own."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "gain", "shift"], ["b"], axis=-1),
        helper.make_node("Transpose", ["b"], ["c"], perm=[1, 0]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0]),
        helper.make_node("MatMul", ["d", "w2"], ["y"]),
    ]
    constants = {
        "w1": (weight * rng.normal(size=(8, 8))).astype(np.float32),
        "w2": rng.normal(size=(8, 8)).astype(np.float32),
        "gain": np.ones(8, np.float32),
        "shift": np.zeros(8, np.float32),
    }
    return hand_made(nodes, constants, {"x": ["n", 8]}, {"y": ["n", 8], "c": [8, "n"]})


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "Cast"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_without_islands_casts_stand_at_the_surface_only(precision: str) -> None:
    typed = typed_graph(small_model(), precision, {})
    onnx.checker.check_model(typed, full_check=True)
    assert casts(typed) == [("x", f"x/{precision}"), (f"c/{precision}", "c"), (f"y/{precision}", "y")]
    types = element_types(typed)
    assert {types[name] for name in ("x", "y", "c")} == {TensorProto.FLOAT}
    assert {types[name] for name in ("a", "b", f"c/{precision}", "d")} == {ELEMENT[precision]}
    assert {tensor.data_type for tensor in typed.graph.initializer} == {ELEMENT[precision]}


def test_an_island_keeps_its_constants_and_the_moves_between_islands() -> None:
    typed = typed_graph(small_model(), "fp16", {"node_b": "test", "node_y": "test"})
    onnx.checker.check_model(typed, full_check=True)
    # From the norm through both moves to the product nothing is narrowed, and neither output is cast.
    assert casts(typed) == [("x", "x/fp16"), ("a", "a/fp32")]
    types = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    assert types == {
        "w1/fp16": TensorProto.FLOAT16,
        "gain": TensorProto.FLOAT,
        "shift": TensorProto.FLOAT,
        "w2": TensorProto.FLOAT,
    }


def test_everything_kept_is_the_fp32_graph() -> None:
    model = small_model()
    typed = typed_graph(model, "fp16", {node_key(node): "test" for node in model.graph.node})
    assert [node.SerializeToString() for node in typed.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run(typed, feeds)["y"], run(model, feeds)["y"])


def test_a_tensor_is_cast_once_for_all_who_take_it() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Sqrt", ["a"], ["b"]),
        helper.make_node("Exp", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    model = hand_made(nodes, {}, {"x": ["n"]}, {"y": ["n"]})
    typed = typed_graph(model, "fp16", {"node_b": "test", "node_c": "test"})
    assert casts(typed) == [("x", "x/fp16"), ("a", "a/fp32"), ("b", "b/fp16"), ("c", "c/fp16"), ("y/fp16", "y")]
    assert redundant_casts(typed) == []


def test_a_constant_shared_by_both_widths_is_converted_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    model = hand_made(nodes, {"w": np.eye(4, dtype=np.float32)}, {"x": ["n", 4]}, {"y": ["n", 4]})
    typed = typed_graph(model, "fp16", {"node_b": "test"})
    assert [tensor.name for tensor in typed.graph.initializer] == ["w/fp16", "w"]


def test_float_tables_of_an_operator_stay_what_its_definition_says() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    model = hand_made(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")],
        {"scales": scales},
        {"x": [1, 2, 4, 4]},
        {"y": [1, 2, 8, 8]},
    )
    typed = typed_graph(model, "fp16", {})
    onnx.checker.check_model(typed, full_check=True)
    np.testing.assert_array_equal(numpy_helper.to_array(constant(typed, "scales")), scales)


def test_a_cast_to_float_is_retargeted() -> None:
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["flag"]),
        helper.make_node("Cast", ["flag"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "x"], ["y"]),
    ]
    model = hand_made(nodes, {"half": np.float32(0.5)}, {"x": ["n"]}, {"y": ["n"]})
    typed = typed_graph(model, "fp16", {})
    onnx.checker.check_model(typed, full_check=True)
    assert casts(typed) == [("flag", "number"), ("x", "x/fp16"), ("y/fp16", "y")]
    assert element_types(typed)["number"] == TensorProto.FLOAT16
    # The comparison looks at the fp32 input itself.
    (greater,) = (node for node in typed.graph.node if node.op_type == "Greater")
    assert list(greater.input) == ["x", "half"]


def test_a_constant_out_of_range_never_becomes_infinite() -> None:
    model = small_model(weight=1e5)
    (reason,) = forced_fp32(model, "fp16").values()
    assert reason.startswith("a constant reaches 2")
    assert reason.endswith("fp16 ends at 6.55e+04")
    assert forced_fp32(model, "bf16") == {}
    typed = typed_graph(model, "fp16", {})
    assert constant(typed, "w1").data_type == TensorProto.FLOAT
    for tensor in typed.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float32)).all()


def test_an_operator_without_a_narrow_form_stays_fp32() -> None:
    nodes = [
        helper.make_node("MelWeightMatrix", ["bins", "length", "rate", "low", "high"], ["m"]),
        helper.make_node("MatMul", ["x", "m"], ["y"]),
    ]
    constants = {
        "bins": np.int64(4),
        "length": np.int64(14),
        "rate": np.int64(8000),
        "low": np.float32(0),
        "high": np.float32(4000),
    }
    model = hand_made(nodes, constants, {"x": ["n", 8]}, {"y": ["n", 4]})
    assert forced_fp32(model, "fp16") == {"node_m": "no fp16 form of MelWeightMatrix"}
    typed = typed_graph(model, "fp16", {})
    onnx.checker.check_model(typed, full_check=True)
    assert casts(typed) == [("x", "x/fp16"), ("m", "m/fp16"), ("y/fp16", "y")]


def test_an_operator_nobody_defined_is_refused() -> None:
    model = small_model()
    model.opset_import.append(helper.make_opsetid("of.nobody", 1))
    model.graph.node.append(helper.make_node("Strange", ["y"], ["z"], domain="of.nobody"))
    with pytest.raises(ExportError, match=r"types around 'z' \(Strange\) are not known.*flat graph of standard"):
        typed_graph(model, "fp16", {})


def test_a_node_that_is_not_there_cannot_be_kept() -> None:
    with pytest.raises(ExportError, match=r"hand_made: no such node to keep in fp32 \| got: nowhere"):
        typed_graph(small_model(), "fp16", {"nowhere": "test"})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", ["image_encoder", "prompt_encoder", "mask_decoder"])
def test_nano_is_half_as_large_and_casts_at_the_surface(nano_bundle: Path, graph: str, precision: str) -> None:
    model = trained_case(nano_bundle, graph).model
    typed = typed_graph(model, precision, {})
    onnx.checker.check_model(typed, full_check=True)
    assert redundant_casts(typed) == []
    before, after = (Counter(node.op_type for node in one.graph.node) for one in (model, typed))
    surface = len(model.graph.input) + len(model.graph.output)
    assert after - Counter({"Cast": after["Cast"]}) == before - Counter({"Cast": before["Cast"]})
    assert before["Cast"] < after["Cast"] <= before["Cast"] + surface
    weights, narrow = (
        sum(len(t.raw_data) for t in one.graph.initializer if t.data_type != 7) for one in (model, typed)
    )
    assert narrow <= 0.51 * weights
    assert [value.SerializeToString() for value in (*typed.graph.input, *typed.graph.output)] == [
        value.SerializeToString() for value in (*model.graph.input, *model.graph.output)
    ]


def test_attention_says_nothing_that_tensorrt_refuses(nano_bundle: Path) -> None:
    typed = typed_graph(trained_case(nano_bundle, "image_encoder").model, "fp16", {})
    attributes = {a.name for node in typed.graph.node if node.op_type == "Attention" for a in node.attribute}
    assert "softmax_precision" not in attributes


def test_the_same_graph_gives_the_same_bytes(nano_bundle: Path) -> None:
    model = trained_case(nano_bundle, "mask_decoder").model
    one, two = (typed_graph(model, "fp16", {}).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two
