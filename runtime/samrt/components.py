"""Connected components of binary masks, 8-connected, many masks at once, in numpy.

A mask is cut into *runs* (stretches of True in one row). Runs that touch in neighbouring rows are joined; joining is
min-label hooking with pointer jumping (Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm", 1982),
whole arrays at a time, so the cost follows the number of runs, not the number of pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Stretches of True in the rows of a mask, in reading order. A run covers columns start to stop - 1."""

    row: IndexArray  # (runs,)
    start: IndexArray  # (runs,)
    stop: IndexArray  # (runs,)


def find_runs(mask: BoolArray) -> Runs:
    """Return the runs of a mask, bool (h, w)."""
    height, width = mask.shape
    # A False column on each side makes every run begin and end inside its row.
    padded = np.zeros((height, width + 2), np.bool_)
    padded[:, 1:-1] = mask
    flat = padded.reshape(-1)
    change = np.flatnonzero(flat[1:] != flat[:-1])  # pairs: pixel before a run, last pixel of the run
    row, start = np.divmod(change[0::2], width + 2)
    return Runs(row, start, change[1::2] - row * (width + 2))


def label_components(mask: BoolArray) -> tuple[NDArray[np.int32], IndexArray]:
    """Label the 8-connected components of each mask.

    mask: bool (h, w) or (M, h, w)
    returns: labels int32, the mask's shape: 0 outside, 1.. counted on through all masks in reading order of each
        component's first pixel; areas intp (components + 1,) in pixels, with the number of False pixels at 0
    """
    if mask.size == 0:
        return np.zeros(mask.shape, np.int32), np.zeros(1, np.intp)
    height, width = mask.shape[-2:]
    # Masks are laid below each other with an empty row between, so that none touches the next.
    stacked = np.zeros((mask.size // (height * width), height + 1, width), np.bool_)
    stacked[:, :height] = mask.reshape(-1, height, width)
    runs = find_runs(stacked.reshape(-1, width))
    component, inside = label_runs(runs, width)
    label = component.astype(np.int32) + 1
    areas = np.concatenate(([0], inside))
    areas[0] = mask.size - areas.sum()
    # Paint by repetition: the gap before each run, the run, and so on to the end.
    start, stop = runs.row * width + runs.start, runs.row * width + runs.stop
    edges = np.empty(2 * len(label) + 2, np.intp)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, start, stop, stacked.size
    values = np.zeros(2 * len(label) + 1, np.int32)
    values[1::2] = label
    labels = np.repeat(values, np.diff(edges)).reshape(stacked.shape)[:, :height]
    return labels.reshape(mask.shape), areas


def label_runs(runs: Runs, width: int) -> tuple[IndexArray, IndexArray]:
    """Label the 8-connected components of runs that lie in rows of `width` pixels.

    returns: components intp (runs,), 0.. in reading order of each component's first pixel; areas intp (components,) in pixels
    """
    root = _join(len(runs.row), *_touching(runs, width))
    component = np.cumsum(root == np.arange(len(root)))[root] - 1
    return component, np.bincount(component, weights=runs.stop - runs.start).astype(np.intp)


def small_components(mask: BoolArray, max_area: float) -> BoolArray:
    """Return the pixels of components of at most `max_area` pixels, bool, the shape of `mask` ((h, w) or (M, h, w))."""
    labels, areas = label_components(mask)
    small = areas <= max_area
    small[0] = False
    return small[labels]


def _touching(runs: Runs, width: int) -> tuple[IndexArray, IndexArray]:
    """Return the pairs of runs that touch, corners included, in neighbouring rows: (upper runs, lower runs)."""
    stride = width + 2  # more than a run can reach, so that positions in different rows never meet
    start, stop = runs.row * stride + runs.start, runs.row * stride + runs.stop
    # One row down, the touching runs end at or after this start and start at or before this stop.
    low = np.searchsorted(stop, start + stride, side="left")
    high = np.searchsorted(start, stop + stride, side="right")
    count = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(start)), count)
    offset = np.arange(len(upper)) - np.repeat(np.cumsum(count) - count, count)
    return upper, low[upper] + offset


def _join(size: int, first: IndexArray, second: IndexArray) -> IndexArray:
    """Return for each of `size` nodes the smallest node it is connected with through the pairs (first, second)."""
    root = np.arange(size)
    while len(first):
        a, b = root[first], root[second]
        apart = a != b
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = root[root]
            if np.array_equal(shorter, root):
                break
            root = shorter
    return root
