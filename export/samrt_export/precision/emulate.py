"""A typed graph's arithmetic on a CPU: fp32 operators, and every tensor that the typed graph stores narrow is rounded.

ONNX Runtime itself will not do: on a CPU it widens fp16 operators to fp32 and drops the conversions between two of them,
so that nothing is rounded (1.31, at every optimisation level; measured), and it has hardly any bf16 operator. An explicit
pair of Casts is kept by it at every level.

What is emulated is storage: overflow, underflow and rounding of every tensor between operators, and of scores and weights
inside ``Attention``. What is not: sums that a GPU accumulates in fp16. Parity is measured again where a plan is built.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from samrt_export.precision.attention import expanded_attention
from samrt_export.precision.elements import ELEMENT, EXACT, FLOAT, element_types, node_key

_PRECISION = {element: precision for precision, element in ELEMENT.items()}


def is_typed(model: onnx.ModelProto) -> bool:
    """Whether a graph has narrow constants or Casts to narrow types: whether it needs `emulated` on a CPU."""
    casts = (helper.get_node_attr_value(node, "to") for node in model.graph.node if node.op_type == "Cast")
    return any(tensor.data_type in _PRECISION for tensor in model.graph.initializer) or any(
        element in _PRECISION for element in casts
    )


def runnable(content: bytes | Path) -> bytes | Path:
    """What to run on a CPU for an ONNX file: a typed graph's emulation, any other graph itself."""
    model = onnx.load_from_string(content) if isinstance(content, bytes) else onnx.load(content)
    return emulated(model).SerializeToString() if is_typed(model) else content


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The fp32 graph that computes what a typed graph computes. Tensors keep their names."""
    types = element_types(model)
    new = onnx.ModelProto()
    new.ir_version = model.ir_version
    new.opset_import.extend(model.opset_import)
    graph = new.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.initializer.extend(_widened(tensor) for tensor in model.graph.initializer)
    for node in model.graph.node:
        graph.node.extend(_emulated_node(node, types))
    return new


def _widened(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in _PRECISION:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)


def _emulated_node(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    narrow = [name for name in node.output if name and types[name] in _PRECISION]
    new = onnx.NodeProto()
    new.CopyFrom(node)
    if node.op_type == "Cast":
        return _emulated_cast(new, types)
    if not narrow or node.op_type in EXACT:
        return [new]
    element = types[narrow[0]]
    if node.op_type == "Attention":
        return expanded_attention(node, element)
    roundings = []
    for index, name in enumerate(node.output):
        if name in narrow:
            new.output[index] = f"{name}/exact"
            roundings += rounding(new.output[index], name, element)
    return [new, *roundings]


def _emulated_cast(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    source, target = types[node.input[0]], types[node.output[0]]
    if target in _PRECISION:
        return rounding(node.input[0], node.output[0], target)
    if source in _PRECISION and target == FLOAT:
        return [helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node_key(node))]
    return [node]


def rounding(source: str, target: str, element: int) -> list[onnx.NodeProto]:
    """float32 -> narrow -> float32."""
    stored = f"{target}/stored"
    return [
        helper.make_node("Cast", [source], [stored], name=f"{stored}/cast", to=element),
        helper.make_node("Cast", [stored], [target], name=f"{target}/cast", to=FLOAT),
    ]
