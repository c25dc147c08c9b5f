"""What may go wrong in narrow storage: read from the operators, the constants and the measured ranges of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from samrt_export.precision.elements import EXACT, LARGEST, MOVES, ROUNDOFF, element_types, node_key
from samrt_export.precision.ranges import Range
from samrt_export.precision.typed import forced_fp32

HEADROOM = 4
"""A value may grow by this much on pictures that the samples do not show."""
LONG_SUM = 2048
"""Terms from which a sum kept in fp16 loses more than its storage does: 1 is then half a unit in its last place."""
LONG_STREAM = 32
"""Additions in a row, each to the sum before, from which rounding that sum each time is a good part of a graph's error. In
SAM ViT-H 64 of them are: kept in fp32, they take the encoder's error from 3.2e-3 to 2.4e-3."""
MOST_SCORES = 16
"""Columns up to which a two-dimensional output is a table of scores."""
_NORMS = {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"} | {
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
}
_SOFTMAXES = {"LogSoftmax", "Softmax"}
_STEEP = _SOFTMAXES | {"Exp", "Log", "Pow", "Reciprocal", "Softplus", "Sqrt"}
_SQUARES = {"Mul", "Pow", "Sub"}
_DEVIATION = {"Add", "Sqrt", "Reciprocal"}
_STREAM = f"a residual stream of {LONG_STREAM} additions or more"
_SUMS = {"GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"}


@dataclass(frozen=True)
class Hazard:
    """Nodes of one operator with one reason.

    binding: no measurement on the samples may overrule it, since the samples or a CPU cannot show the danger.
    """

    op: str
    reason: str
    nodes: tuple[str, ...]
    binding: bool

    @property
    def whole(self) -> bool:
        """Whether the nodes are kept in fp32 together or not at all, since a part of them would be as slow."""
        return self.reason == _STREAM


def find_hazards(model: onnx.ModelProto, ranges: Mapping[str, Range], precision: str) -> list[Hazard]:
    """All hazards of an fp32 graph; a node is in the first that fits it, binding ones first."""
    nodes = {node_key(node): node for node in model.graph.node}
    found: dict[str, tuple[str, bool]] = {}

    def add(keys: Mapping[str, str] | list[str], binding: bool, reason: str = "") -> None:
        for key in keys:
            found.setdefault(key, (keys[key] if isinstance(keys, Mapping) else reason, binding))

    add(forced_fp32(model, precision), True)
    limit = LARGEST[precision]
    end = f"{precision} ends at {limit:.4g}"
    large = _around(model, ranges, lambda seen: seen.largest > limit / HEADROOM)
    add(large, True, f"values within a factor of {HEADROOM} of the largest or above: {end}")
    add(_long_sums(model, ranges), True)
    add(_sums_of_rows(model), True, "statistics over all rows, however many there are, and the squares that they sum")
    add(_score_heads(model), True, "scores that rank candidates: narrow, close ones become ties")
    if precision == "fp16":
        add(_long_attention(model, ranges), True)
    add(_angles(model), True, "angle of a position in space or time: rounded, it moves")
    add([key for key, node in nodes.items() if node.op_type in _NORMS], False, "normalisation")
    add([key for key, node in nodes.items() if node.op_type in _STEEP], False, "steep function")
    add(_long_streams(model), False, _STREAM)
    lost = _around(model, ranges, lambda seen: seen.rounding > 2 * ROUNDOFF[precision])
    add(lost, False, f"small values: {precision} keeps fewer digits of them")
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for key in nodes:  # in the graph's order
        if key in found:
            groups.setdefault((nodes[key].op_type, *found[key]), []).append(key)
    return [Hazard(op, reason, tuple(keys), binding) for (op, reason, binding), keys in groups.items()]


def _around(model: onnx.ModelProto, ranges: Mapping[str, Range], bad: Callable[[Range], bool]) -> list[str]:
    """The nodes that make or take a tensor with a bad range, also through operators that only pass its values on."""
    tensors = {name for name, seen in ranges.items() if bad(seen)}
    inside = {ranges[name].node for name in tensors}  # an Attention whose scores are meant
    return [
        key
        for node in model.graph.node
        if (key := node_key(node)) in inside or any(name in tensors for name in (*node.input, *node.output))
    ]


def _long_sums(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Explicit softmaxes and reductions over many terms; which width a GPU sums in, no CPU shows."""
    long = {}
    for node in model.graph.node:
        if node.op_type not in _SUMS | _SOFTMAXES or node.input[0] not in ranges:
            continue
        shape = ranges[node.input[0]].shape
        if node.op_type in _SUMS:
            terms = int(np.prod(shape)) // max(1, int(np.prod(ranges[node.output[0]].shape)))
        else:
            axes = [helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"]
            terms = shape[axes[0] if axes else -1]
        if terms >= LONG_SUM:
            long[node_key(node)] = f"sums {LONG_SUM} terms or more"
    return long


def _sums_of_rows(model: onnx.ModelProto) -> list[str]:
    """Sums over the first axis, the squares that they sum, and what is made of them up to a deviation's reciprocal.

    What has rows of voxels has more of them than any sample shows, and a variance overflows fp16 from a deviation of 256 on.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    first_axis = {
        tensor.name
        for tensor in model.graph.initializer
        if list(tensor.dims) == [1] and not numpy_helper.to_array(tensor)
    }
    sums = [
        node
        for node in model.graph.node
        if node.op_type in _SUMS and len(node.input) > 1 and node.input[1] in first_axis
    ]
    found, pending = dict.fromkeys(map(node_key, sums)), list(sums)
    while pending:
        node = pending.pop()
        found[node_key(node)] = None
        pending += [made_by[name] for name in node.input if name in made_by and made_by[name].op_type in _SQUARES]
    reached = {name for node in sums for name in node.output}
    for node in model.graph.node:  # in the graph's order
        if node.op_type in _DEVIATION | _SUMS | MOVES and reached.intersection(node.input):
            reached.update(node.output)
            if node.op_type not in MOVES:
                found[node_key(node)] = None
    return list(found)


def _long_streams(model: onnx.ModelProto) -> list[str]:
    """The additions of residual streams: of what blocks make to what the blocks before left, moves between them or none."""
    constants = {tensor.name for tensor in model.graph.initializer}
    lengths: dict[str, int] = {}  # tensor -> how many additions in a row made it
    before: dict[str, str] = {}  # such a tensor -> the one of the same stream that it was made from
    adders: dict[str, str] = {}  # such a tensor -> the node that added
    for node in model.graph.node:
        if node.op_type == "Add" and constants.isdisjoint(node.input):
            made = node.output[0]
            before[made] = max(node.input, key=lambda name: lengths.get(name, 0))
            lengths[made] = lengths.get(before[made], 0) + 1
            adders[made] = node_key(node)
        elif node.op_type in MOVES and node.input[0] in lengths:
            for made in node.output:
                before[made], lengths[made] = node.input[0], lengths[node.input[0]]
    found: set[str] = set()
    pending = [name for name, length in lengths.items() if length >= LONG_STREAM]
    while pending:
        name = pending.pop()
        if name in lengths and name not in found:
            found.add(name)
            pending.append(before[name])
    return [adders[name] for name in found if name in adders]


def _long_attention(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Fused fp16 attention whose softmax sums in fp16 overflows when a query sees 65504 keys (autoware-ml PR 95)."""
    return {
        node_key(node): f"a query sees more keys than the largest fp16 number, {LARGEST['fp16']:.0f}"
        for node in model.graph.node
        if node.op_type == "Attention" and ranges[node.input[1]].shape[-2] >= LARGEST["fp16"]
    }


def _score_heads(model: onnx.ModelProto) -> list[str]:
    """What computes a few numbers per row that leave the graph: the last product and all that follows it.

    On nano, 53 of 228 prompts got another best mask in bf16, and 9 in fp16, by scores that were rounded to the same number.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    pending = []
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 2 and 0 < dims[1].dim_value <= MOST_SCORES:
            pending.append(value.name)
    found: dict[str, None] = {}
    while pending:
        node = made_by.get(pending.pop())
        if node is None or node_key(node) in found:
            continue
        found[node_key(node)] = None
        if node.op_type not in ("Gemm", "MatMul"):
            pending += node.input
    return list(found)


def _angles(model: onnx.ModelProto) -> list[str]:
    """Sin and Cos, and the arithmetic back to the inputs.

    Above 512, fp16 knows half pixels and bf16 every fourth one; an angle of many turns has few digits left of its phase. On
    nano in fp16 this alone took the smallest IoU of an answer from 0.992 down to 0.967. It is a few numbers per point.
    """
    types = element_types(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    pending = [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    found: dict[str, None] = {}
    while pending:
        node = pending.pop()
        if node_key(node) in found or (node.op_type in EXACT and not node.input):
            continue
        found[node_key(node)] = None
        pending += [made_by[name] for name in node.input if name in made_by and types[name] == types[node.output[0]]]
    return list(found)
