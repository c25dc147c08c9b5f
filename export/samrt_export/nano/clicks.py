"""Where a person would click: the innermost point of a region, and the corrective click after a wrong mask.

The rule of SAM's evaluation (largest distance from the border), with chessboard distance, found by repeated erosion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def innermost_point(region: Mask) -> tuple[int, int]:
    """region: bool (H, W) with at least one pixel -> (x, y) of the pixel farthest from its border (ties: the middle one)."""
    rows, cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, left = int(rows[0]), int(cols[0])
    core = np.pad(region[top : rows[-1] + 1, left : cols[-1] + 1], 1)
    while True:
        eroded = _erode(core)
        if not eroded.any():
            break
        core = eroded
    candidates = np.argwhere(core)
    y, x = candidates[len(candidates) // 2]
    return left + int(x) - 1, top + int(y) - 1


def depth(region: Mask) -> int:
    """Chessboard distance of the innermost point from the border: 0 for an empty region, 1 for one pixel."""
    core, count = np.pad(region, 1), 0
    while core.any():
        core, count = _erode(core), count + 1
    return count


def corrective_click(predicted: Mask, target: Mask) -> tuple[tuple[int, int], int] | None:
    """The next click: inside the deepest error, label 1 where the mask lacks, 0 where it spills; None when equal."""
    missing, spilled = target & ~predicted, predicted & ~target
    if not missing.any() and not spilled.any():
        return None
    label = int(depth(missing) >= depth(spilled))
    return innermost_point(missing if label else spilled), label


def box_around(region: Mask) -> tuple[int, int, int, int]:
    """region: bool (H, W) -> (x0, y0, x1, y1), the outermost pixels."""
    rows, cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])


def _erode(region: Mask) -> Mask:
    """3x3 erosion; what lies outside counts as background."""
    rows = np.zeros_like(region)
    rows[1:-1] = region[:-2] & region[1:-1] & region[2:]
    eroded = np.zeros_like(region)
    eroded[:, 1:-1] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return eroded
