"""How large and how small the values inside a graph get, and what narrow storage does to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from samrt_export.precision.attention import expanded_attention
from samrt_export.precision.elements import FLOAT, LARGEST, element_types, node_key, stored
from samrt_export.precision.observe import observe
from samrt_export.registry import Feeds

SAMPLED = 1 << 16
"""About how many values of a tensor its rounding is measured on; its largest value is looked for among all."""


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
    probed, probes = _with_probes(model)
    surface = [value.name for value in model.graph.input if value.type.tensor_type.elem_type == FLOAT]
    ranges: dict[str, Range] = {}
    for feeds in samples:
        for name in surface:
            values = feeds[name].ravel()
            extremes = np.array([values.min(initial=0), values.max(initial=0)])
            _add(
                ranges,
                name,
                _range("", feeds[name].shape, extremes, values[:: max(1, values.size // SAMPLED)], precision),
            )
        seen: dict[str, NDArray[Any]] = {}
        for _, name, value in observe(probed, feeds, only=[part for probe in probes for part in probe.parts]):
            seen[name] = value
        for probe in probes:
            low, high, shape, some = (seen[part] for part in probe.parts)
            sizes = tuple(int(size) for size in shape)
            _add(ranges, probe.tensor, _range(probe.node, sizes, np.array([low, high]), some, precision))
    return ranges


@dataclass(frozen=True)
class _Probe:
    """What is asked about one tensor inside the graph, where it need not be copied out: SAM's are gigabytes together."""

    tensor: str
    node: str

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Names of: its smallest value, its largest, its shape, some of its values."""
        return tuple(f"{self.tensor}?{part}" for part in ("min", "max", "shape", "some"))  # type: ignore[return-value]

    def nodes(self) -> list[onnx.NodeProto]:
        low, high, shape, some = self.parts
        name = self.tensor
        return [
            helper.make_node("ReduceMin", [name], [low], keepdims=0),
            helper.make_node("ReduceMax", [name], [high], keepdims=0),
            helper.make_node("Shape", [name], [shape]),
            helper.make_node("Size", [name], [f"{name}?size"]),
            helper.make_node("Div", [f"{name}?size", "?sampled"], [f"{name}?ratio"]),
            helper.make_node("Max", [f"{name}?ratio", "?one"], [f"{name}?step"]),
            helper.make_node("Reshape", [name, "?flat"], [f"{name}?values"]),
            helper.make_node("Slice", [f"{name}?values", "?start", "?end", "?axis", f"{name}?step"], [some]),
        ]


def _with_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[_Probe]]:
    """The graph with ``Attention`` written out, and a probe after every float tensor."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.node[:]
    constants = {"?sampled": SAMPLED, "?one": 1, "?flat": -1, "?start": 0, "?end": np.iinfo(np.int64).max, "?axis": 0}
    probed.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name) for name, value in constants.items()
    )
    types = element_types(model)
    probes = []
    for node in model.graph.node:
        parts = expanded_attention(node) if node.op_type == "Attention" else [node]
        for part in parts:
            probed.graph.node.append(part)
            for name in part.output:
                # Inside an Attention all is float but the shape that its scale is computed from.
                is_float = types.get(name, FLOAT) == FLOAT and part.op_type not in ("Constant", "Shape")
                if name and is_float:
                    probes.append(_Probe(name, node_key(node)))
                    probed.graph.node.extend(probes[-1].nodes())
    return probed, probes


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


def _range(node: str, shape: tuple[int, ...], extremes: NDArray[Any], some: NDArray[Any], precision: str) -> Range:
    """extremes: the smallest and the largest value; some: a sample of the values."""
    some = some[np.isfinite(some)]
    if not np.isfinite(extremes).all():  # masks hold -inf on purpose
        extremes = some
    magnitude = np.abs(some)
    largest = float(np.abs(extremes).max(initial=0.0))
    lost = float(np.linalg.norm(stored(some, precision) - some)) / max(float(np.linalg.norm(some)), 1e-30)
    rounding = lost if largest <= LARGEST[precision] else float("inf")
    return Range(node, shape, largest, float(magnitude[magnitude > 0].min(initial=np.inf)), rounding)
