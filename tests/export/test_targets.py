"""A bundle for some targets only: which forms it holds, and that a runtime takes what is there."""

import dataclasses

import pytest
import torch
from torch import nn

import samrt
from samrt.graphs import find_form
from samrt_engines.errors import BackendError, ExportError
from samrt_engines.tensors import TensorSpec
from samrt_export.export import export_model
from samrt_export.precision.narrow import TARGETS, forms_for, planned_forms
from samrt_export.registry import Form, GraphSpec


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x * 2,)


LEAN, OTHER, GENERAL = (
    Form(Twice(), ("onnxruntime-cpu",)),
    Form(Twice(), ("openvino",)),
    Form(Twice()),
)
TENSOR = (TensorSpec("x", "float32", (2,)),)
SPEC = GraphSpec("twice", Twice(), TENSOR, TENSOR, {}, ({}, {}), lambda sizes, seed: {}, (LEAN, OTHER, GENERAL))


@pytest.mark.parametrize(
    ("targets", "kept"),
    [
        (None, (LEAN, OTHER, GENERAL)),
        (("onnxruntime-cpu",), (LEAN,)),
        (("tensorrt",), (GENERAL,)),
        (("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu"), (LEAN, GENERAL)),
        (TARGETS, (LEAN, OTHER, GENERAL)),
    ],
)
def test_only_the_forms_that_targets_take_are_kept(targets, kept) -> None:
    assert tuple(form for form, _ in forms_for(planned_forms(SPEC, "fp32"), targets)) == kept


def test_precision_comes_with_the_form() -> None:
    assert forms_for(planned_forms(SPEC, "fp16"), ("tensorrt",)) == ((GENERAL, "fp16"),)
    assert [precision for _, precision in forms_for(planned_forms(SPEC, "fp16"), ("openvino",))] == ["fp32"]


@pytest.mark.parametrize("targets", [(), ("tensor-rt",)])
def test_unknown_targets_are_refused(targets, tmp_path) -> None:
    with pytest.raises(ExportError, match="unknown target") as error:
        export_model("nano", tmp_path / "bundle", targets=targets)
    assert "tensorrt" in str(error.value)
    assert not (tmp_path / "bundle").exists()


def test_a_runtime_takes_what_is_there(nano_bundle) -> None:
    """As in a bundle for ONNX Runtime's CPU provider alone: "auto" asks no other backend."""
    graph = samrt.load(nano_bundle).manifest.graphs["image_encoder"]
    lean = dataclasses.replace(graph, forms=tuple(form for form in graph.forms if "onnxruntime-cpu" in form.targets))
    assert lean.forms
    assert find_form(lean, "onnxruntime", "cpu") is lean.forms[0]
    assert find_form(lean, "openvino", "cpu") is None
    assert find_form(graph, "openvino", "cpu") is not None
    with pytest.raises(BackendError, match="no form of this graph for tensorrt"):
        samrt.graphs.choose_form(lean, "image_encoder", "tensorrt", "cuda")
