"""Names the node at which two forms of a graph part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from samrt_export.precision.elements import node_key
from samrt_export.precision.emulate import emulated, is_typed
from samrt_export.precision.observe import observe
from samrt_export.precision.tolerance import relative_error
from samrt_export.registry import Feeds


@dataclass(frozen=True)
class Divergence:
    """A tensor that differs, and the node that made it. largest: the largest finite value of the reference there."""

    node: str
    op: str
    tensor: str
    error: float
    largest: float

    def __str__(self) -> str:
        return f"{self.op} '{self.node}' (relative error {self.error:.1e}, values up to {self.largest:.3g})"


def first_divergence(
    model: onnx.ModelProto, other: onnx.ModelProto, feeds: Feeds, tolerance: float
) -> Divergence | None:
    """The first node, in the order of ``model``, whose result in ``other`` is out of tolerance; None when none is.

    Tensors are compared that both graphs have by name; a typed graph is emulated. Both run side by side and stop there.
    """
    for node, name, value, theirs in _side_by_side(model, other, feeds):
        error = relative_error([theirs], [value])
        if error > tolerance:
            largest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
            return Divergence(node_key(node), node.op_type, name, error, largest)
    return None


def error_by_node(model: onnx.ModelProto, other: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    """Node -> the relative error that it adds to what its inputs brought, in quadrature; infinite where it overflows."""
    errors: dict[str, float] = {}
    added: dict[str, float] = {}
    for node, name, value, theirs in _side_by_side(model, other, feeds):
        errors[name] = relative_error([theirs], [value])
        brought = max((errors.get(source, 0.0) for source in node.input), default=0.0)
        if errors[name] > brought:
            own = np.sqrt(errors[name] ** 2 - brought**2) if np.isfinite(errors[name]) else np.inf
            added[node_key(node)] = max(added.get(node_key(node), 0.0), float(own))
    return added


def _side_by_side(
    model: onnx.ModelProto, other: onnx.ModelProto, feeds: Feeds
) -> Iterator[tuple[onnx.NodeProto, str, NDArray[Any], NDArray[Any]]]:
    """(node, tensor, its value, its value in the other graph), for the tensors that both have."""
    other = emulated(other) if is_typed(other) else other
    pending = observe(other, feeds)
    ahead: dict[str, NDArray[Any]] = {}
    common = {name for node in model.graph.node for name in node.output} & {
        name for node in other.graph.node for name in node.output
    }
    for node, name, value in observe(model, feeds):
        if name not in common:
            continue
        while name not in ahead:
            _, theirs_name, theirs = next(pending)
            if theirs_name in common:
                ahead[theirs_name] = theirs
        yield node, name, value, ahead.pop(name)
