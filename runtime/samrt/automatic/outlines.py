"""From low-res logits straight to areas, run lengths and boxes.

A mask is read column by column, as COCO does. Its *turns* are the positions where inside and outside change places: where
runs begin. They are found piece by piece: every stretch of pixels inside one column of one piece gives a turn where it
begins and a turn where it ends; where two stretches touch, both turns fall on one position and cancel. So no piece needs to
know its neighbours, and placing a crop's mask in its picture is a matter of counting positions there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samrt.automatic.grid import Grid, Rectangles
from samrt.automatic.pieces import Columns, cut
from samrt.bilinear import Float32Array
from samrt.rle import Counts

IntArray = NDArray[np.int64]


@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # see `samrt.automatic.pieces.cut`
def count_above(planes: Float32Array, grid: Grid, level: float) -> IntArray:
    """How many pixels of each mask are above a level.

    planes: float32 (M, h, w) low-res logits
    returns: int64 (M,), ``np.count_nonzero(resized > level)`` for each
    """
    total = np.zeros(len(planes), np.int64)
    for piece in cut(planes, grid, level):
        if isinstance(piece, Rectangles):
            pixels = (piece.bottom - piece.top) * (piece.right - piece.left)
        else:
            pixels = (piece.bottom - piece.top).sum(axis=0)
        total += np.bincount(piece.plane, weights=pixels, minlength=len(planes)).astype(np.int64)  # exact up to 2^53
    return total


def stability_scores(planes: Float32Array, grid: Grid, threshold: float, offset: float) -> Float32Array:
    """How little each mask changes when its threshold moves by `offset` up and down, counted in the picture's pixels.

    planes: float32 (M, h, w) low-res logits
    returns: float32 (M,), pixels above threshold + offset over pixels above threshold - offset; 0 where there are none,
        which is where upstream's 0 / 0 is NaN and passes no threshold either
    """
    inner, outer = (count_above(planes, grid, threshold + sign * offset) for sign in (1, -1))
    scores = np.zeros(len(planes), np.float32)
    return np.divide(inner.astype(np.float32), outer.astype(np.float32), out=scores, where=outer > 0)


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def find_turns(
    planes: Float32Array, grid: Grid, threshold: float, origin_xy: tuple[int, int], image_hw: tuple[int, int]
) -> list[IntArray]:
    """The turns of each mask ``resized > threshold``, as positions in a picture it is a part of.

    planes: float32 (M, h, w) low-res logits
    origin_xy: where the part's top left pixel lies in the picture
    returns: M arrays int64 (2 K,), rising: begin and end of K stretches of pixels inside
    """
    height, width = image_hw
    span = height * width + 1  # positions of one mask; the last one is the end of the last column
    x0, y0 = origin_xy
    kind = np.int32 if span * len(planes) < 2**31 else np.int64  # half as long to sort
    parts = []
    for piece in cut(planes, grid, threshold):
        mask, column, row = _rectangle_turns(piece) if isinstance(piece, Rectangles) else _column_turns(piece)
        parts.append((mask * span + (column + x0) * height + (row + y0)).astype(kind))
    if not parts:
        return [np.zeros(0, np.int64)] * len(planes)
    found = cancel_pairs(np.concatenate(parts))
    bounds = np.searchsorted(found, np.arange(1, len(planes)) * span)
    return [turns.astype(np.int64) - index * span for index, turns in enumerate(np.split(found, bounds))]


def _rectangle_turns(piece: Rectangles) -> tuple[IntArray, IntArray, IntArray]:
    """Every column of each rectangle begins at its top and ends at its bottom: (plane, column, row) of these."""
    filled = piece.bottom > piece.top  # where the picture is smaller than the grid, some cells hold no pixel
    plane, top, bottom, left, right = (part[filled] for part in piece)
    wide = right - left
    index = np.repeat(np.arange(len(plane)), wide)
    column = np.arange(len(index)) - np.repeat(np.cumsum(wide) - wide - left, wide)
    return np.tile(plane[index], 2), np.tile(column, 2), np.concatenate([top[index], bottom[index]])


def _column_turns(piece: Columns) -> tuple[IntArray, IntArray, IntArray]:
    """The same for columns side by side."""
    column, cell = np.divmod(np.flatnonzero(piece.bottom > piece.top), len(piece.plane))
    ends = np.concatenate([piece.top[column, cell], piece.bottom[column, cell]])
    return np.tile(piece.plane[cell], 2), np.tile(piece.left[cell] + column, 2), ends


def cancel_pairs(positions: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """Sort positions, each of which occurs once or twice, in place, and return those that occur once."""
    positions.sort()
    same = positions[1:] == positions[:-1]
    single = np.ones(len(positions), np.bool_)
    single[1:] &= ~same
    single[:-1] &= ~same
    return positions[single]


def counts_from_turns(turns: IntArray, pixels: int) -> Counts:
    """Run lengths of a mask of so many pixels, as `samrt.rle.count_runs` gives them."""
    edges = np.concatenate(([0], turns, [pixels]))
    counts = np.diff(edges)
    return counts if counts[-1] else counts[:-1]  # the last run may end with the mask


def turns_from_counts(counts: Counts) -> IntArray:
    """The turns of a mask with these run lengths."""
    turns = np.cumsum(counts[:-1])
    return turns if len(turns) % 2 == 0 else np.append(turns, turns[-1] + counts[-1])


def areas_from_turns(turns: Sequence[IntArray]) -> IntArray:
    """Pixels of each mask. returns: int64 (M,)"""
    return np.array([int((one[1::2] - one[::2]).sum()) for one in turns], np.int64)


def boxes_from_turns(turns: Sequence[IntArray], image_hw: tuple[int, int]) -> IntArray:
    """Boxes xyxy around masks, of the first and last pixels in them; 0, 0, 0, 0 around an empty mask.

    returns: int64 (M, 4)
    """
    height = image_hw[0]
    boxes = np.zeros((len(turns), 4), np.int64)
    for box, one in zip(boxes, turns, strict=True):
        if not len(one):
            continue
        first_column, first_row = np.divmod(one[::2], height)
        last_column, last_row = np.divmod(one[1::2] - 1, height)
        box[:] = first_column[0], first_row.min(), last_column[-1], last_row.max()
        if (last_column > first_column).any():  # a stretch that runs on into the next column touches both borders
            box[1], box[3] = 0, height - 1
    return boxes
