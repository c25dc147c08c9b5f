"""The gate against faults that really happened to somebody: each is put into a graph, narrowed, and has to be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from precision_cases import OVERFLOWING, Case, constant, nano_specs, random_case, replace_constant, trained_case

from samrt import DeadOutputError, ParityError
from samrt_export.parity import reference_runs
from samrt_export.precision.elements import node_key
from samrt_export.precision.narrow import checked_narrow
from samrt_export.precision.tolerance import NARROW_TOLERANCE
from samrt_export.precision.typed import typed_graph

INVISIBLE = "k_proj.bias"
"""The bias of keys adds the same to all scores of a query, which the softmax does not see: without it, the same function."""


@pytest.fixture(scope="module")
def decoder() -> Case:
    """With random weights, under which every part of a graph matters."""
    return random_case("mask_decoder")


def gate(case: Case, model: onnx.ModelProto, precision: str) -> None:
    """Narrow a graph and compare it with the module of the case."""
    content = typed_graph(model, precision, {}).SerializeToString()
    rows = checked_narrow(case.spec, content, precision, case.runs, fp32=case.model)
    assert all(row.ok and row.tolerance == NARROW_TOLERANCE[precision] for row in rows)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_gate_lets_the_right_graph_pass(decoder: Case, precision: str) -> None:
    gate(decoder, decoder.model, precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_swapped_attention_scale_is_refused(decoder: Case, precision: str) -> None:
    """1 / d in the place of 1 / sqrt(d), in each of the attentions."""
    attentions = [index for index, node in enumerate(decoder.model.graph.node) if node.op_type == "Attention"]
    assert len(attentions) == 7
    for index in attentions:
        broken = decoder.copy()
        node = broken.graph.node[index]
        node.attribute.append(helper.make_attribute("scale", 1 / 16))
        with pytest.raises(ParityError, match=f"in {precision}: output .* differs from PyTorch") as caught:
            gate(decoder, broken, precision)
        if precision == "fp16":
            assert node_key(node) in str(caught.value)


def test_every_zeroed_bias_is_refused_but_those_without_effect(decoder: Case) -> None:
    biases = [tensor.name for tensor in decoder.model.graph.initializer if tensor.name.endswith("bias")]
    assert len(biases) > 50
    passed = []
    for name in biases:
        broken = decoder.copy()
        replace_constant(broken, name, np.zeros_like(numpy_helper.to_array(constant(broken, name))))
        try:
            gate(decoder, broken, "fp16")
        except ParityError:
            continue
        passed.append(name)
    assert all(name.endswith(INVISIBLE) for name in passed), passed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_square_weight_in_the_wrong_layout_is_refused(decoder: Case, precision: str) -> None:
    squares = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in decoder.model.graph.initializer
        if len(tensor.dims) == 2 and tensor.dims[0] == tensor.dims[1] > 8
    }
    assert len(squares) >= 10
    for name, values in squares.items():
        broken = decoder.copy()
        replace_constant(broken, name, values.T)
        with pytest.raises(ParityError, match="differs from PyTorch"):
            gate(decoder, broken, precision)


@pytest.mark.parametrize("graph", ["prompt_encoder", "image_encoder"])
def test_the_graph_of_another_model_is_refused(nano_bundle: Path, graph: str) -> None:
    """Of the same shape, from the same code, with other weights: trained, where random ones are expected."""
    model = trained_case(nano_bundle, graph).model
    spec = nano_specs(0)[graph]
    case = Case(spec, model, reference_runs(spec))
    for precision in ("fp16", "bf16"):
        with pytest.raises(ParityError, match=f"{graph} in {precision}: .* differs from PyTorch .*spread over many"):
            gate(case, model, precision)


def test_an_overflow_in_one_block_is_refused_and_named(nano_bundle: Path) -> None:
    """A layer scaled up before a norm: fp32 and bf16 compute the same as ever, fp16 passes 65504 and ends in NaN."""
    case = trained_case(nano_bundle, "prompt_encoder")
    scaled = case.copy()
    conv = next(node for node in scaled.graph.node if node.op_type == "Conv")
    for name in conv.input[1:]:
        replace_constant(scaled, name, OVERFLOWING * numpy_helper.to_array(constant(scaled, name)))
    overflowing = Case(case.spec, scaled, case.runs)
    gate(overflowing, scaled, "bf16")
    expected = rf"'dense_embeddings'.* got: relative error inf, first at Conv '{node_key(conv)}' \(relative error inf"
    with pytest.raises(ParityError, match=expected):
        gate(overflowing, scaled, "fp16")


def test_a_dead_output_is_refused(nano_bundle: Path) -> None:
    case = trained_case(nano_bundle, "prompt_encoder")
    (run, *_) = case.runs
    dead = type(run)(run.sizes, run.feeds, (run.outputs[0],) * len(run.outputs))
    content = typed_graph(case.model, "fp16", {}).SerializeToString()
    with pytest.raises(DeadOutputError, match=r"in fp16: output .* does not depend on the input"):
        checked_narrow(case.spec, content, "fp16", (dead,))
