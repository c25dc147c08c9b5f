"""Masks found so far, and how the ones that say the same thing are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samrt.automatic.outlines import IntArray, areas_from_turns, boxes_from_turns, counts_from_turns
from samrt.automatic.regions import clean_small_regions
from samrt.nms import nms
from samrt.segments import Segments

Float32Array = NDArray[np.float32]


class Found(NamedTuple):
    """M masks of one picture, in original pixels."""

    turns: tuple[IntArray, ...]
    boxes: IntArray  # (M, 4) xyxy, inclusive
    scores: Float32Array  # (M,)
    stability: Float32Array  # (M,)
    points: NDArray[np.float64]  # (M, 2) xy
    crops: IntArray  # (M, 4) xyxy

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Found:
        """Some of them: bool (M,), or the indices in the order wanted."""
        rows = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return Found._make([tuple(self.turns[row] for row in rows), *(column[rows] for column in self[1:])])

    def to_segments(self, image_hw: tuple[int, int]) -> Segments:
        pixels = image_hw[0] * image_hw[1]
        return Segments(
            image_hw=image_hw,
            counts=tuple(counts_from_turns(turns, pixels) for turns in self.turns),
            boxes=self.boxes.astype(np.float32),
            areas=areas_from_turns(self.turns),
            scores=self.scores,
            stability=self.stability,
            points=self.points.astype(np.float32),
            crop_boxes=self.crops.astype(np.float32),
        )


def join(parts: Sequence[Found]) -> Found:
    """All masks of one part or more."""
    turns = tuple(turns for part in parts for turns in part.turns)
    return Found._make(
        [turns, *(np.concatenate(columns) for columns in zip(*(part[1:] for part in parts), strict=True))]
    )


def drop_duplicates(found: Found, threshold: float) -> Found:
    """Of masks with nearly the same box, keep the one with the best score; best first."""
    return found.take(nms(found.boxes.astype(np.float32), found.scores, threshold))


def drop_duplicates_of_crops(found: Found, threshold: float) -> Found:
    """Of masks with nearly the same box, keep the one from the smallest crop; smallest first."""
    x0, y0, x1, y1 = found.crops.T
    scores = np.float32(1) / ((x1 - x0) * (y1 - y0)).astype(np.float32)
    return found.take(nms(found.boxes.astype(np.float32), scores, threshold))


def clean(found: Found, image_hw: tuple[int, int], min_area: float, threshold: float) -> Found:
    """Fill small holes and drop small islands; of masks that now have nearly the same box, keep an untouched one."""
    cleaned = [clean_small_regions(turns, image_hw, min_area) for turns in found.turns]
    turns = tuple(turns for turns, _ in cleaned)
    untouched = np.array([not changed for _, changed in cleaned], np.float32)
    found = found._replace(turns=turns, boxes=boxes_from_turns(turns, image_hw))
    return found.take(nms(found.boxes.astype(np.float32), untouched, threshold))
