"""How large and how small the values inside a graph get, and what narrow storage does to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from samrt_export.precision.attention import expanded_attention
from samrt_export.precision.elements import FLOAT, LARGEST, node_key, stored
from samrt_export.precision.observe import observe
from samrt_export.registry import Feeds

_SAMPLED = 1 << 18
"""How many values of a tensor its rounding is measured on; its largest value is looked for among all."""


@dataclass(frozen=True)
class Range:
    """One float tensor over all samples.

    node: the node that makes it, "" for an input of the graph. shape: the last seen. largest, smallest: absolute values, of
    the finite ones and of the nonzero ones. rounding: relative error (L2) of storing the exact tensor narrow, infinite when
    a finite value becomes infinite.
    """

    node: str
    shape: tuple[int, ...]
    largest: float
    smallest: float
    rounding: float


def measure_ranges(model: onnx.ModelProto, samples: Iterable[Feeds], precision: str) -> dict[str, Range]:
    """Tensor -> range, of all an fp32 graph's float tensors: its inputs too, and those inside ``Attention``, as that node's."""
    owners: dict[str, str] = {}
    expanded = onnx.ModelProto()
    expanded.CopyFrom(model)
    del expanded.graph.node[:]
    for node in model.graph.node:
        parts = expanded_attention(node) if node.op_type == "Attention" else [node]
        expanded.graph.node.extend(parts)
        owners.update((output, node_key(node)) for part in parts for output in part.output)
    surface = [value.name for value in model.graph.input if value.type.tensor_type.elem_type == FLOAT]
    ranges: dict[str, Range] = {}
    for feeds in samples:
        for name in surface:
            _add(ranges, name, _range("", feeds[name], precision))
        for _, name, value in observe(expanded, feeds):
            _add(ranges, name, _range(owners[name], value, precision))
    return ranges


def _add(ranges: dict[str, Range], name: str, seen: Range) -> None:
    """Widen a tensor's range by what one sample showed."""
    old = ranges.get(name, seen)
    ranges[name] = Range(
        seen.node,
        seen.shape,
        max(old.largest, seen.largest),
        min(old.smallest, seen.smallest),
        max(old.rounding, seen.rounding),
    )


def _range(node: str, values: NDArray[Any], precision: str) -> Range:
    flat = values.ravel()
    if flat.size and not np.isfinite(flat.min() + flat.max()):  # masks hold -inf on purpose
        flat = flat[np.isfinite(flat)]
    largest = float(max(abs(flat.min()), abs(flat.max()))) if flat.size else 0.0
    some = flat[:: max(1, flat.size // _SAMPLED)]
    magnitude = np.abs(some)
    lost = float(np.linalg.norm(stored(some, precision) - some)) / max(float(np.linalg.norm(some)), 1e-30)
    rounding = lost if largest <= LARGEST[precision] else float("inf")
    return Range(node, values.shape, largest, float(magnitude[magnitude > 0].min(initial=np.inf)), rounding)
