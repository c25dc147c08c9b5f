"""The work of a graph: known counts, and PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from samrt.bundle import open_bundle
from samrt_export.flops import count_flops
from samrt_export.source import reference_graphs


def graph_of(operator: str, shapes: list[tuple[int, ...]], **attributes: Any) -> tuple[bytes, dict[str, np.ndarray]]:
    """A model of one operator, all its tensors inputs with a symbolic first axis, and feeds of these shapes."""
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n_{name}", *shape[1:]])
        for name, shape in zip(names, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(operator, names, ["y"], **attributes)], "one", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return model.SerializeToString(), {
        name: np.ones(shape, np.float32) for name, shape in zip(names, shapes, strict=True)
    }


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "expected"),
    [
        ("MatMul", [(3, 4, 5), (5, 6)], {}, 2 * 3 * 4 * 5 * 6),
        ("Gemm", [(4, 5), (6, 5)], {"transB": 1}, 2 * 4 * 5 * 6),
        ("Gemm", [(5, 4), (5, 6)], {"transA": 1}, 2 * 4 * 5 * 6),
        ("Conv", [(2, 4, 8, 8), (6, 2, 3, 3)], {"group": 2}, 2 * 2 * 6 * 6 * 6 * (2 * 3 * 3)),
        ("ConvTranspose", [(2, 4, 8, 8), (4, 6, 2, 2)], {"strides": [2, 2]}, 2 * 2 * 4 * 8 * 8 * (6 * 2 * 2)),
        ("Attention", [(2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 4)], {}, 2 * 2 * 3 * 7 * 9 * (4 + 4)),
        ("Attention", [(2, 7, 12), (2, 9, 12), (2, 9, 12)], {"q_num_heads": 3, "kv_num_heads": 3}, 2 * 2 * 3 * 7 * 9 * 8),
        ("Relu", [(2, 3)], {}, 0),
    ],
)  # fmt: skip
def test_counts(operator: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], expected: int) -> None:
    assert count_flops(*graph_of(operator, shapes, **attributes)) == expected


def test_the_encoder_counts_as_pytorch_counts(nano_bundle: Any) -> None:
    """PyTorch counts attention only where it is spelled out as matrix products."""
    bundle = open_bundle(nano_bundle)
    spec = next(one for one in reference_graphs(bundle.manifest) if one.name == "image_encoder")
    feeds = spec.sample({"images": 1}, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        spec.module(*(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs))
    for form in bundle.manifest.graphs["image_encoder"].forms:
        content = (nano_bundle / form.file.file).read_bytes()
        assert count_flops(content, feeds) == pytest.approx(counter.get_total_flops(), rel=0.05), form.targets
        assert form.flops == count_flops(content, feeds)
