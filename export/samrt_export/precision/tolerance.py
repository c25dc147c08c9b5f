"""What a narrow graph may differ from PyTorch in fp32, and how a difference is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # parity imports this module
    from samrt_export.parity import ReferenceRun
    from samrt_export.registry import Feeds, GraphSpec

from samrt_export.parity import TOLERANCE

NARROW_TOLERANCE = {precision: tolerance for precision, tolerance in TOLERANCE.items() if precision != "fp32"}
"""Largest relative error (L2) per output."""
SHARE = 0.6
"""How much of the tolerance an emulated fp16 or bf16 graph may use up. The rest is for what no CPU shows: sums that a GPU
keeps in fp16, and its own approximations. An int8 graph runs where it was measured and may use all.

Memory attention of SAM 2.1 tiny is at 0.55 in plain fp16, its error spread over all nodes: half of it would take a hundred
nodes in fp32, or the attention, whose fused kernels are what fp16 is for."""


def relative_error(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> float:
    """|ours - theirs| / |theirs|, all arrays as one vector; infinite for another shape or a value that is not finite.

    In float32: exact enough beside narrow tolerances, and fast on the maps of a large encoder.
    """
    if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    difference = sum(_square(a - b) for a, b in zip(ours, theirs, strict=True))
    norm = sum(_square(b) for b in theirs)
    return float(np.sqrt(difference / max(norm, 1e-60))) if np.isfinite(difference) else float("inf")


def worst_output(ours: Sequence[Feeds], spec: GraphSpec, runs: Sequence[ReferenceRun]) -> float:
    """The largest relative error of an output, given each run's first feeds. All runs make one vector, so that one score
    that happens to be near zero is not its own yardstick.
    """
    return max(
        relative_error([own[output.name] for own in ours], [run.outputs[0][output.name] for run in runs])
        for output in spec.outputs
    )


def _square(values: NDArray[Any]) -> float:
    """The sum of squares. Overflowing on purpose: what is that large is wrong anyway."""
    flat = values.astype(np.float32, copy=False).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(flat, flat))
