"""Small holes filled and small islands dropped, on the turns of masks (see `samrt.automatic.outlines`): no plane is made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samrt.automatic.outlines import cancel_pairs
from samrt.components import Runs, label_runs

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def clean_small_regions(turns: IntArray, image_hw: tuple[int, int], min_area: float) -> tuple[IntArray, bool]:
    """Fill holes, then drop islands, of fewer than `min_area` pixels; 8-connected (upstream's ``remove_small_regions``).

    A background that is small as a whole is a hole too. Where every island is small, the largest stays.

    turns: int64 (2 K,)
    returns: the turns of the cleaned mask, and whether there was anything small in it
    """
    height, width = image_hw
    outside = split_columns(_inverted(turns, height * width), height)
    label, areas = label_runs(outside, height)
    holes = areas < min_area
    if holes.any():
        turns = _inverted(_join_columns(outside, ~holes[label], height), height * width)
    inside = split_columns(turns, height)
    label, areas = label_runs(inside, height)
    islands = areas < min_area
    if not islands.any():
        return turns, bool(holes.any())
    if islands.all():
        islands[np.argmax(areas)] = False
    return _join_columns(inside, ~islands[label], height), True


def split_columns(turns: IntArray, height: int) -> Runs:
    """The stretches inside a mask as runs of single columns, in order; the `row` of a run is its column."""
    begin, end = turns[::2], turns[1::2]
    first, last = begin // height, (end - 1) // height
    columns = last - first + 1
    stretch = np.repeat(np.arange(len(begin)), columns)
    column = first[stretch] + np.arange(len(stretch)) - np.repeat(np.cumsum(columns) - columns, columns)
    start = np.maximum(begin[stretch] - column * height, 0)
    return Runs(column, start, np.minimum(end[stretch] - column * height, height))


def _join_columns(runs: Runs, keep: BoolArray, height: int) -> IntArray:
    """The turns of some runs of single columns: `split_columns` backwards."""
    base = runs.row[keep] * height
    return cancel_pairs(np.concatenate([base + runs.start[keep], base + runs.stop[keep]]))


def _inverted(turns: IntArray, pixels: int) -> IntArray:
    """The turns of what is outside."""
    return cancel_pairs(np.concatenate([turns, [0, pixels]]))
