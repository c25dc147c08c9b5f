"""int8 weights for the CPU: what is quantised, how well it answers, and what is given back to fp32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from precision_cases import Case, constant, nano_specs, replace_constant, trained_case

from samrt import ExportError, ParityError
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision import int8
from samrt_export.precision.int8 import quantise, quantised_graph
from samrt_export.precision.narrow import checked_narrow, planned_forms
from samrt_export.precision.tolerance import NARROW_TOLERANCE


@pytest.fixture(scope="module")
def encoder() -> Case:
    """nano's encoder in the form that CPUs take, with ONNX Runtime's fused operators."""
    spec = nano_specs()["image_encoder"]
    (form, precision), *_ = planned_forms(spec, "int8")
    assert (precision, form.targets) == ("int8", ("onnxruntime-cpu",))
    return Case(spec, onnx_from_spec(spec, form.module), reference_runs(spec))


def test_the_encoder_holds_its_tolerance_with_every_product_quantised(encoder: Case) -> None:
    quantised = quantise(encoder.model, encoder.spec, encoder.runs)
    counts = Counter(node.op_type for node in quantised.model.graph.node)
    assert counts["MatMulInteger"] == quantised.products > 40
    assert quantised.kept == {}
    assert quantised.to_json() == []
    assert quantised.error < 0.5 * NARROW_TOLERANCE["int8"]
    assert quantised.model.ByteSize() < 0.5 * encoder.model.ByteSize()
    content = quantised.model.SerializeToString()
    rows = checked_narrow(encoder.spec, content, "int8", encoder.runs, targets=("onnxruntime-cpu",))
    assert {row.form for row in rows} == {"int8 for onnxruntime-cpu"}


def test_weights_are_signed_with_a_scale_for_each_column(encoder: Case) -> None:
    quantised = quantised_graph(encoder.model, ())
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    weights = [constants[node.input[1]] for node in quantised.graph.node if node.op_type == "MatMulInteger"]
    assert {weight.data_type for weight in weights} == {TensorProto.INT8}
    for weight in weights:
        scale = constants[weight.name.replace("_quantized", "_scale")]
        assert list(scale.dims) == [weight.dims[1]]
        assert np.abs(numpy_helper.to_array(weight).astype(int)).max() <= 128


def test_products_that_do_harm_are_given_back(encoder: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantise(encoder.model, encoder.spec, encoder.runs)
    monkeypatch.setitem(int8.NARROW_TOLERANCE, "int8", 0.9 * plain.error)
    kept = quantise(encoder.model, encoder.spec, encoder.runs)
    assert 0 < len(kept.kept) <= kept.products // 2
    assert kept.error <= 0.9 * plain.error
    (entry,) = kept.to_json()
    assert (entry["op"], entry["count"]) == ("MatMul", len(kept.kept))
    names = {node.name for node in kept.model.graph.node if node.op_type == "MatMul"}
    assert set(entry["nodes"]) <= names


def test_a_graph_that_int8_does_not_suit_is_refused(encoder: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(int8.NARROW_TOLERANCE, "int8", 1e-6)
    with pytest.raises(ParityError, match=r"image_encoder: int8 is out of tolerance with half of its products in fp32"):
        quantise(encoder.model, encoder.spec, encoder.runs)


def test_a_graph_without_products_is_refused(nano_bundle: Path) -> None:
    case = trained_case(nano_bundle, "prompt_encoder")
    model = case.copy()
    for node in model.graph.node:
        if node.op_type == "MatMul":
            node.input[1] = "not a constant"
    with pytest.raises(ExportError, match="prompt_encoder: nothing to quantise"):
        quantise(model, case.spec, case.runs)


def test_weights_in_the_wrong_layout_are_refused_in_int8_too(encoder: Case) -> None:
    """Beyond the first stage: its query and key weights matter less to the trained nano than int8's own error does. The
    fp32 graph that an int8 one is made from passes its own gate first, at 1e-5.
    """
    squares = [t.name for t in encoder.model.graph.initializer if len(t.dims) == 2 and t.dims[0] == t.dims[1] >= 64]
    assert len(squares) >= 6
    for name in squares:
        broken = encoder.copy()
        replace_constant(broken, name, numpy_helper.to_array(constant(broken, name)).T)
        content = quantised_graph(broken, ()).SerializeToString()
        with pytest.raises(ParityError, match=r"image_encoder in int8 for onnxruntime-cpu: .* differs from PyTorch"):
            checked_narrow(encoder.spec, content, "int8", encoder.runs[:1], targets=("onnxruntime-cpu",))


def test_no_trace_of_the_machine(encoder: Case) -> None:
    one, two = (quantised_graph(encoder.model, ()).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two
    for trace in (b"/tmp", b".onnx", b"site-packages"):
        assert trace not in one
    assert onnx.load_from_string(one).producer_name == "samrt"
