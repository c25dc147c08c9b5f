"""How much work a graph is: floating-point operations of one run, from the shapes its operators meet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from samrt_engines.executor import open_executor

Shape = tuple[int, ...]

COUNTED = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "MultiHeadAttention")


def count_flops(model: bytes, feeds: Mapping[str, NDArray[Any]]) -> float:
    """Two for each multiply-accumulate of `COUNTED` operators; what they leave out is a few per cent in these models.

    The model is run once on feeds, with the shapes around these operators as its outputs: symbolic inference gives up at the
    first Reshape whose sizes are calculated (onnx 1.23).
    Raises BackendError when it does not run.
    """
    probe = onnx.load_model_from_string(model)
    nodes = [node for node in probe.graph.node if node.op_type in COUNTED]
    if not nodes:
        return 0.0
    tensors = list(dict.fromkeys(name for node in nodes for name in (*node.input[:3], node.output[0]) if name))
    names = {tensor: f"samrt.shape.{index}" for index, tensor in enumerate(tensors)}
    del probe.graph.output[:]
    for tensor, name in names.items():
        probe.graph.node.append(helper.make_node("Shape", [tensor], [name]))
        probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, [None]))
    with open_executor(probe.SerializeToString(), backend="onnxruntime", device="cpu", name="shapes") as executor:
        found = executor.run(feeds)
    shapes = {tensor: tuple(int(size) for size in found[name]) for tensor, name in names.items()}
    return sum(
        _flops(node, [shapes[name] for name in node.input[:3] if name], shapes[node.output[0]]) for node in nodes
    )


def _flops(node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> float:
    """The work of one node, whose first inputs and output have these shapes."""
    first, second = inputs[:2]
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "MatMul":
        return 2.0 * math.prod(output) * first[-1]
    if node.op_type == "Gemm":
        return 2.0 * math.prod(output) * first[0 if attributes.get("transA") else 1]
    if node.op_type == "Conv":
        return 2.0 * math.prod(output) * math.prod(second[1:])  # weight (out, in / groups, *kernel)
    if node.op_type == "ConvTranspose":
        return 2.0 * math.prod(first) * math.prod(second[1:])  # weight (in, out / groups, *kernel)
    return _attention_flops(first, second, inputs[2], attributes)


def _attention_flops(query: Shape, key: Shape, value: Shape, attributes: Mapping[str, int]) -> float:
    """Two matrix products for each query head. Tensors are (B, heads, L, D), or (B, L, heads * D) with counts of heads."""
    if len(query) == 4:
        batch, heads, length, dim = query
        keys, value_dim = key[2], value[3]
    else:
        heads = attributes.get("q_num_heads") or attributes["num_heads"]  # the latter is ONNX Runtime's own operator
        batch, length, dim = query[0], query[1], query[2] // heads
        keys, value_dim = key[1], value[2] // attributes.get("kv_num_heads", heads)
    return 2.0 * batch * heads * length * keys * (dim + value_dim)
