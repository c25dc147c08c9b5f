"""J and F, the measures of DAVIS 2017 (arXiv 1704.00675; boundary measure: Perazzi et al., CVPR 2016). numpy only.

Masks are boolean and may have leading axes (frames, objects); every measure is taken over the last two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Values = NDArray[np.floating[Any]]

TOLERANCE = 0.008
"""Distance at which boundaries still match, as a share of the picture's diagonal."""


def region_similarity(predicted: Masks, target: Masks) -> Values:
    """J, intersection over union: (..., H, W) -> (...). Two empty masks are equal: 1."""
    both = np.count_nonzero(predicted & target, axis=(-2, -1))
    either = np.count_nonzero(predicted | target, axis=(-2, -1))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def boundary_accuracy(predicted: Masks, target: Masks) -> Values:
    """F, harmonic mean of the boundary's precision and recall: (..., H, W) -> (...). Without any boundary: 1."""
    radius = math.ceil(TOLERANCE * math.hypot(*target.shape[-2:]))
    edges = boundary(predicted), boundary(target)
    near = [dilate(edge, radius) for edge in edges]
    precision = _share(edges[0] & near[1], edges[0], edges[1])
    recall = _share(edges[1] & near[0], edges[1], edges[0])
    total = precision + recall
    return np.asarray(np.where(total == 0, 0.0, 2 * precision * recall / np.where(total == 0, 1.0, total)))


def boundary(masks: Masks) -> Masks:
    """Pixels that differ from their right, lower or lower right neighbour; at the far borders the picture repeats itself."""
    padded = np.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(0, 1), (0, 1)], mode="edge")
    right, below, diagonal = padded[..., :-1, 1:], padded[..., 1:, :-1], padded[..., 1:, 1:]
    return np.asarray((masks ^ right) | (masks ^ below) | (masks ^ diagonal))


def dilate(masks: Masks, radius: int) -> Masks:
    """Everything within ``radius`` pixels (Euclidean)."""
    height, width = masks.shape[-2:]
    padded = np.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(radius, radius)] * 2)
    grown = np.zeros_like(masks)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius * radius - dy * dy)
        rows = padded[..., radius + dy : radius + dy + height, :]
        for dx in range(-reach, reach + 1):
            grown |= rows[..., radius + dx : radius + dx + width]
    return grown


def _share(matched: Masks, edge: Masks, other: Masks) -> Values:
    """Share of an edge that was matched. Of no edge: 1 if there is no other one either, else 0 (DAVIS: see F)."""
    count = np.count_nonzero(edge, axis=(-2, -1))
    empty = np.count_nonzero(other, axis=(-2, -1)) == 0
    share = np.count_nonzero(matched, axis=(-2, -1)) / np.maximum(count, 1)
    return np.asarray(np.where(count == 0, empty.astype(np.float64), share))
