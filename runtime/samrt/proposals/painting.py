"""Masks from prototypes: each is a weighted sum of a few maps that all masks of a picture share, cut off at its box."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from samrt.bilinear import threshold_planes
from samrt.proposals.detections import Detections
from samrt.proposals.letterbox import Letterbox
from samrt.rle import count_runs
from samrt.segments import Segments

Float32Array = NDArray[np.float32]

_PART_BYTES = 64 << 20  # of masks at the picture's size that are in memory at once


def paint_segments(found: Detections, prototypes: Float32Array, letterbox: Letterbox) -> Segments:
    """The masks of detections at the picture's size; those without a pixel are left out.

    The weighted sums are made at the prototypes' size, cut to the picture's part, resized bilinearly and are mask where
    they are above 0 and inside the box. A few masks at a time are whole; what is kept of each are its runs.

    prototypes: float32 (32, h, w), over the whole input
    """
    image_hw = letterbox.image_hw
    rows, columns = letterbox.content_of((prototypes.shape[1], prototypes.shape[2]))
    content = np.ascontiguousarray(prototypes[:, rows, columns])
    boxes = letterbox.image_from_input(found.boxes)
    most = max(1, _PART_BYTES // (image_hw[0] * image_hw[1]))
    counts, kept = [], []
    for start in range(0, len(found), most):
        part = slice(start, start + most)
        planes = np.tensordot(found.coefficients[part], content, axes=1)  # (m, h, w)
        for plane, box in zip(planes, boxes[part], strict=True):
            _quiet_outside(plane, box, image_hw)
        masks = threshold_planes(planes, image_hw, 0.0)
        for index, (mask, box) in enumerate(zip(masks, boxes[part], strict=True), start=start):
            _cut_off(mask, box)
            runs = count_runs(mask)
            if len(runs) > 1:
                counts.append(runs)
                kept.append(index)
    return Segments.from_counts(counts, found.scores[np.array(kept, np.intp)], image_hw)


def pixels_in(box: Float32Array) -> tuple[int, int, int, int]:
    """First column and row, and those after the last, of the pixels whose top left corner is in a box; (4,) xyxy."""
    x0, y0, x1, y1 = (math.ceil(edge) for edge in box.tolist())
    return x0, y0, x1, y1


def _cut_off(mask: NDArray[np.bool_], box: Float32Array) -> None:
    """Clear a mask outside a box, in place."""
    x0, y0, x1, y1 = pixels_in(box)
    mask[:y0] = mask[y1:] = False
    mask[:, :x0] = mask[:, x1:] = False


def _quiet_outside(plane: Float32Array, box: Float32Array, image_hw: tuple[int, int]) -> None:
    """Make a plane plainly outside where none of the box's pixels looks: outlines there would be interpolated for nothing."""
    x0, y0, x1, y1 = box.tolist()
    down, across = plane.shape[0] / image_hw[0], plane.shape[1] / image_hw[1]
    top, bottom = max(0, math.floor(y0 * down - 1)), math.ceil((y1 + 1) * down + 1)
    left, right = max(0, math.floor(x0 * across - 1)), math.ceil((x1 + 1) * across + 1)
    outside = -np.abs(plane).max()
    plane[:top] = plane[bottom:] = outside
    plane[:, :left] = plane[:, right:] = outside
