"""Which tensors of a graph are floats, of which width; and which inputs and outputs of an operator may be narrowed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from samrt_engines.errors import ExportError

ELEMENT = {"fp16": int(TensorProto.FLOAT16), "bf16": int(TensorProto.BFLOAT16)}
"""Precision -> ONNX element type."""
FLOAT = int(TensorProto.FLOAT)
NUMPY: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LARGEST = {"fp16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127}
"""The largest finite value."""
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of storing one value in the normal range."""
_ONNX_TYPE = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

_FUSED = "com.microsoft"
"""ONNX Runtime's own operators."""

MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"}
    | {"Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that copy values and compute none: they are right in any precision, and take that of their neighbours."""
EXACT = MOVES | {"Abs", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Where"}
"""Operators whose result on narrow values is one of those values or its negative: storing it rounds nothing."""


def node_key(node: onnx.NodeProto) -> str:
    """What a node is called here and in reports: its name, or that of its first output."""
    return node.name or next(output for output in node.output if output)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Every tensor's ONNX element type by name. Raises ExportError where it cannot be inferred."""
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    for node in model.graph.node:
        if node.domain != _FUSED:
            graph.node.append(inferable(node))
            continue
        made = [onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in node.output if name]
        graph.input.extend(made)  # ONNX cannot infer these; all of theirs that our forms have give float32
    graph.output.extend(model.graph.output)
    types: dict[str, int] = {}
    for tensor in model.graph.initializer:
        types[tensor.name] = tensor.data_type
        if _count(tensor) <= 64:  # sizes that shape inference reads
            graph.initializer.append(tensor)
        else:  # weights: their type and shape are enough
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in model.graph.node:
        unknown = [name for name in node.output if name and not types.get(name)]
        if unknown or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ExportError(
                f"{model.graph.name}: the tensor types around '{node_key(node)}' ({node.op_type}) are not known",
                got="a nested graph" if not unknown else f"no type for {', '.join(unknown)}",
                expected="a flat graph of standard operators",
            )
    return types


def inferable(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that inference understands, in place of one of which it finds neither type nor shape (onnx 1.23)."""
    if node.op_type == "GroupNormalization":
        return onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name)
    return node


def narrow_slots(
    node: onnx.NodeProto, types: dict[str, int], opsets: dict[str, int], precision: str
) -> tuple[frozenset[int], frozenset[int]] | None:
    """The inputs and outputs (by index) that are float32 and become narrow with the node; None when it has no such form.

    Read from the operator's own definition: `scales` of Resize is float32 in every form, `bias` of a convolution follows
    its input.
    """
    inputs = [index for index, name in enumerate(node.input) if name and types[name] == FLOAT]
    outputs = [index for index, name in enumerate(node.output) if name and types[name] == FLOAT]
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except onnx.defs.SchemaError:
        return None
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

    def variable(formals: Any, index: int) -> str:
        name: str = formals[min(index, len(formals) - 1)].type_str
        return name

    def may_narrow(formals: Any, index: int) -> bool:
        return _ONNX_TYPE[precision] in allowed.get(variable(formals, index), ())

    narrow_inputs = frozenset(index for index in inputs if may_narrow(schema.inputs, index))
    if node.op_type == "Cast":
        return narrow_inputs, frozenset(outputs)
    tied = {variable(schema.inputs, index) for index in narrow_inputs}
    narrow_outputs = frozenset(index for index in outputs if variable(schema.outputs, index) in tied)
    if outputs and not narrow_outputs:
        return None
    return narrow_inputs, narrow_outputs


def stored(values: NDArray[Any], precision: str) -> NDArray[Any]:
    """Float values after a stay in narrow storage, as float32. What is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(NUMPY[precision]).astype(np.float32)


def opset_versions(model: onnx.ModelProto) -> dict[str, int]:
    """Domain -> version; the standard domain as ""."""
    return {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in model.opset_import}


def _count(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))
