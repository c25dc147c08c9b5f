"""SAM 2.1 tiny at full size: every graph builds through TensorRT for RTX, with no GPU and with the manifest's profiles."""

from __future__ import annotations

from functools import cache

import onnx
import pytest

from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.families.sam2 import FAMILY, graphs
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

ATTENTIONS = {
    "image_encoder": 12,
    "prompt_encoder": 0,
    "mask_decoder": 7,
    "memory_attention": 8,
    "memory_encoder": 0,
    "mask_downsampler": 0,
}


@cache
def tiny(graph: str) -> tuple[GraphSpec, onnx.ModelProto]:
    """A graph's description and its fp32 form for any target, with random weights."""
    module = load_weights(FAMILY, "sam2.1-hiera-tiny", random_seed=0).module
    spec = next(spec for spec in graphs(module, "sam2.1-hiera-tiny") if spec.name == graph)
    return spec, onnx_from_spec(spec, spec.forms[-1].module)


@pytest.mark.parametrize("sm", ["86", "89"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", list(ATTENTIONS))
def test_tiny_builds(graph: str, precision: str, sm: str) -> None:
    spec, fp32 = tiny(graph)
    content = typed_graph(fp32, precision, {}).SerializeToString()
    options = BuildOptions(flavour="rtx", sm=sm)
    plan = build_plan(content, profiles=dict(spec.profiles), precision=precision, options=options, name=graph)
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (ATTENTIONS[graph], 0)  # all of them fused
    assert len(plan.data) > 0.9 * len(content)
    assert plan.key.capability == f"{sm[0]}.{sm[1]}"
