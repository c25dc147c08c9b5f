"""The emulation of narrow storage on a CPU, the look inside a graph, and the search for the node that differs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from precision_cases import constant, hand_made, random_case, replace_constant, run, trained_case
from test_precision_typed import small_model

from samrt import ExportError
from samrt_export.precision.attention import expanded_attention
from samrt_export.precision.divergence import first_divergence
from samrt_export.precision.elements import node_key
from samrt_export.precision.emulate import emulated, is_typed, runnable
from samrt_export.precision.observe import observe
from samrt_export.precision.ranges import measure_ranges
from samrt_export.precision.tolerance import relative_error
from samrt_export.precision.typed import typed_graph

NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def polynomial() -> onnx.ModelProto:
    """y = x * x - x, of which every intermediate is rounded."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["a"]), helper.make_node("Sub", ["a", "x"], ["y"])]
    return hand_made(nodes, {}, {"x": ["n"]}, {"y": ["n"]})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_stored_tensor_is_rounded(precision: str) -> None:
    typed = typed_graph(polynomial(), precision, {})
    assert is_typed(typed)
    assert not is_typed(polynomial())
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    narrow = x.astype(NUMPY[precision])
    # numpy and ml_dtypes round after every operation, as storage between operators does.
    wanted = (narrow * narrow - narrow).astype(np.float32)
    np.testing.assert_array_equal(run(emulated(typed), {"x": x})["y"], wanted)


def test_onnxruntime_itself_does_not_round_between_operators() -> None:
    # The reason for the emulation. Should this begin to fail, ONNX Runtime may do the work by itself.
    typed = typed_graph(polynomial(), "fp16", {})
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    assert (run(typed, {"x": x})["y"] != run(emulated(typed), {"x": x})["y"]).mean() > 0.2


def test_overflow_and_underflow_happen_as_in_storage() -> None:
    typed = typed_graph(polynomial(), "fp16", {})
    x = np.array([300.0, 200.0, 1e-5, 70000.0], np.float32)
    y = run(emulated(typed), {"x": x})["y"]
    assert np.isinf(y[0])
    assert y[1] == 39808  # 39800 in fp16
    assert y[2] == -np.float32(np.float16(1e-5))  # its square is gone
    assert not np.isfinite(y[3])


def attention(mask: bool, **attributes: float) -> onnx.ModelProto:
    inputs: dict[str, list[int | str]] = {"q": ["b", 2, "n", 8], "k": ["b", 2, "m", 8], "v": ["b", 2, "m", 8]}
    if mask:
        inputs["mask"] = ["n", "m"]
    node = helper.make_node("Attention", list(inputs), ["y"], **attributes)
    return hand_made([node], {}, inputs, {"y": ["b", 2, "n", 8]})


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_attention(scale: float | None, masked: bool) -> None:
    model = attention(masked, **({} if scale is None else {"scale": scale}))
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(3, 2, size, 8)).astype(np.float32) for name, size in (("q", 5), ("k", 7), ("v", 7))}
    if masked:
        feeds["mask"] = np.where(rng.random((5, 7)) < 0.3, -np.inf, 0).astype(np.float32)
    q, k, v = (torch.from_numpy(feeds[name]) for name in "qkv")
    bias = torch.from_numpy(feeds["mask"]) if masked else None
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).numpy()
    nodes = expanded_attention(model.graph.node[0])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    np.testing.assert_allclose(run(model, feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


def test_scores_too_large_for_fp16_are_seen_inside_attention() -> None:
    typed = typed_graph(attention(False), "fp16", {})
    feeds = {name: np.full((1, 2, 3, 8), 400, np.float32) for name in "qkv"}  # scores 400 * 400 * sqrt(8) = 452,548
    assert not np.isfinite(run(emulated(typed), feeds)["y"]).all()
    ranges = measure_ranges(attention(False), [feeds], "fp16")
    assert ranges["y/scores"].node == "node_y"
    assert ranges["y/scores"].largest == pytest.approx(400 * 400 * 8**0.5)
    assert np.isinf(ranges["y/scores"].rounding)


def test_an_attention_nobody_emulates_is_refused() -> None:
    with pytest.raises(ExportError, match=r"'node_y' has a form that cannot be emulated \| got: is_causal=1"):
        expanded_attention(attention(False, is_causal=1).graph.node[0])


def test_what_runs_for_a_stored_file(tmp_path: Path) -> None:
    plain = polynomial().SerializeToString()
    assert runnable(plain) is plain
    file = tmp_path / "typed.onnx"
    onnx.save(typed_graph(polynomial(), "bf16", {}), file)
    content = runnable(file)
    assert isinstance(content, bytes)
    x = np.array([1.0, 2.0], np.float32)
    np.testing.assert_array_equal(run(onnx.load_from_string(content), {"x": x})["y"], [0, 2])


def test_observing_a_graph_shows_what_it_computes(nano_bundle: Path) -> None:
    case = trained_case(nano_bundle, "mask_decoder")
    feeds = case.runs[1].feeds[0]
    seen = {name: value for _, name, value in observe(case.model, feeds)}
    assert len(seen) > 150
    for name, wanted in case.runs[1].outputs[0].items():
        assert relative_error([seen[name]], [wanted]) < 1e-5


def test_ranges_are_the_largest_and_smallest_of_all_samples() -> None:
    samples = [{"x": np.array([0, 1e-8, -3], np.float32)}, {"x": np.array([2, 300, 1], np.float32)}]
    ranges = measure_ranges(polynomial(), samples, "fp16")
    assert (ranges["x"].node, ranges["x"].largest, ranges["a"].largest) == ("", 300, 90000)
    assert ranges["x"].smallest == np.float32(1e-8)
    assert np.isinf(ranges["a"].rounding)
    assert np.isfinite(ranges["x"].rounding)


def test_relative_error_of_what_is_not_a_number_is_infinite() -> None:
    good = np.ones(3, np.float32)
    assert relative_error([good], [good]) == 0
    assert relative_error([good * 1.5, good], [good, good]) == pytest.approx((0.75 / 6) ** 0.5)
    assert relative_error([np.array([1, np.nan, 1], np.float32)], [good]) == float("inf")
    assert relative_error([good[:2]], [good]) == float("inf")


def test_the_first_node_that_differs_is_named() -> None:
    model, other = small_model(), small_model()
    values = onnx.numpy_helper.to_array(constant(other, "gain")).copy()
    values[3] = 1.5
    replace_constant(other, "gain", values)
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)}
    assert first_divergence(model, model, feeds, 1e-6) is None
    found = first_divergence(model, other, feeds, 1e-3)
    assert found is not None
    assert (found.node, found.op, found.tensor) == ("node_b", "LayerNormalization", "b")
    assert str(found).startswith("LayerNormalization 'node_b' (relative error")


def test_the_first_node_is_found_in_a_typed_graph_too() -> None:
    case = random_case("prompt_encoder")
    broken = case.copy()
    conv = [node for node in broken.graph.node if node.op_type == "Conv"][1]
    bias = onnx.numpy_helper.to_array(constant(broken, conv.input[2]))
    replace_constant(broken, conv.input[2], np.zeros_like(bias))
    found = first_divergence(case.model, typed_graph(broken, "fp16", {}), case.runs[0].feeds[0], 2e-2)
    assert found is not None
    assert found.node == node_key(conv)
    assert found.op == "Conv"


def test_typed_tensors_that_stay_float_are_not_rounded() -> None:
    model = polynomial()
    typed = typed_graph(model, "bf16", {"node_a": "test", "node_y": "test"})
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    np.testing.assert_array_equal(run(emulated(typed), {"x": x})["y"], run(model, {"x": x})["y"])
    assert TensorProto.BFLOAT16 not in {t.data_type for t in typed.graph.initializer}
