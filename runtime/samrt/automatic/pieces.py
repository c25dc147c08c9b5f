"""A mask in pieces: which pixels lie above a level when low-res logits are resized, without making the plane.

Most fields of the grid (see `samrt.automatic.grid`) are clearly above the level throughout, or clearly not. The first make
rectangles. Only the mixed ones, along the outlines, are looked into, cell by cell, one column of pixels at a time: down a
column the value rises all the way or falls all the way, rounding included, so the pixels above the level are its lower or
its upper end. What is asked of a mask (its area, its runs) is then asked of its pieces: the cost follows the length of the
outline in low-res cells, not the number of pixels. Together the pieces are exactly `samrt.masks.binary_masks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from samrt.automatic.grid import Cells, Grid, Rectangles
from samrt.bilinear import Float32Array, IndexArray, lerp, resized_blocks
from samrt.components import find_runs

_DENSE_FRACTION = 0.3  # above this share of mixed fields, a plane is computed whole: it is noise
_COLUMNS_AT_ONCE = 1 << 15  # columns of pixels: 128 KB a table, so that all fit the second-level cache
_PLANES_BYTES = 1 << 20  # of samples looked at together, for the same reason
_LARGE = 1e30  # far from what overflows in a difference or a quotient
_ROUNDING = 32 * float(np.finfo(np.float32).eps)


class Columns(NamedTuple):
    """Pixels above the level in columns side by side: of plane (N,), rows top to bottom - 1 (K, N), columns left + k (N,)."""

    plane: IndexArray
    top: IndexArray
    bottom: IndexArray
    left: IndexArray


def cut(planes: Float32Array, grid: Grid, level: float) -> Iterator[Rectangles | Columns]:
    """Cut the masks ``resized planes > level`` into pieces.

    planes: float32 (M, h, w) low-res logits
    yields: pieces in any order that do not overlap; plane counts 0 to M - 1
    It divides by zero where a column of pixels is level, and infinities and NaN go where their arithmetic takes them: callers
    tell numpy not to mind (a generator that did would tell it for its caller too).
    """
    step = max(1, _PLANES_BYTES // max(1, planes[:1].nbytes))
    for start in range(0, len(planes), step):
        for piece in _cut_group(planes[start : start + step], grid, np.array(level, np.float32)):
            yield piece._replace(plane=piece.plane + start)


def _cut_group(planes: Float32Array, grid: Grid, level: Float32Array) -> Iterator[Rectangles | Columns]:
    """The same for a few planes. Planes that are mostly outline, not finite or near overflow are computed whole."""
    above, mixed = grid.classify(planes, float(level))
    tame = np.maximum(planes.max(axis=(1, 2)), -planes.min(axis=(1, 2))) < _LARGE  # False for NaN
    noisy = (np.count_nonzero(mixed, axis=(1, 2)) > _DENSE_FRACTION * mixed[0].size) | ~tame
    if noisy.any():
        for index in np.flatnonzero(noisy):
            yield _whole_plane(grid.whole(planes[index]), int(index), grid, level)
        above[noisy] = mixed[noisy] = False
    if above.any():
        yield grid.above_fields(above)
    if mixed.any():
        for part in grid.open_fields(planes, mixed, float(level)):
            if isinstance(part, Rectangles):
                yield part
            else:
                yield from _cut_cells(part, grid, level)


def _whole_plane(plane: Float32Array, index: int, grid: Grid, level: Float32Array) -> Rectangles:
    """Every pixel of one plane of samples of the last grid."""
    inside = np.empty((grid.rows.pixels, grid.columns.pixels), np.bool_)
    for pixels, values in resized_blocks(plane, grid.rows, grid.columns):
        np.greater(values, level, out=inside[pixels])
    runs = find_runs(inside.T)
    return Rectangles(np.full_like(runs.row, index), runs.start, runs.stop, runs.row, runs.row + 1)


def _cut_cells(cells: Cells, grid: Grid, level: Float32Array) -> Iterator[Columns]:
    """The part above the level of each cell, some at a time, wide ones (at the left border) by themselves."""
    wide = grid.columns.count[cells.column]
    for kind in (np.flatnonzero(cells.column > 0), np.flatnonzero(cells.column == 0)):
        if len(kind):
            across = int(wide[kind].max())
            step = max(1, _COLUMNS_AT_ONCE // across)
            for start in range(0, len(kind), step):
                yield _cut_columns(cells.take(kind[start : start + step]), across, grid, level)


def _cut_columns(cells: Cells, across: int, grid: Grid, level: Float32Array) -> Columns:
    """The part above the level of each column of pixels in some cells, which are at most `across` pixels wide.

    Solving for the level gives the pixel next to the crossing, to a fraction of a pixel; the value there, computed as
    `samrt.bilinear` does, tells on which side of it the crossing is.
    """
    rows, columns = grid.rows, grid.columns
    weight = columns.cell_weights[:across, cells.column]
    top = lerp(cells.top_left, cells.top_right, weight)  # (across, N)
    bottom = lerp(cells.bottom_left, cells.bottom_right, weight)
    slope = bottom - top
    count, first = rows.count[cells.row], rows.first[cells.row]
    per_pixel = np.float32(len(rows.count) / rows.pixels)  # how much of a cell one pixel is
    # Rounding may move the crossing by more than a fraction of a pixel; in the first cell, weights do not rise at first.
    unsure = np.abs(slope) * per_pixel <= np.float32(_ROUNDING) * (np.abs(top) + np.abs(bottom) + np.abs(level))
    unsure |= cells.row == 0
    place = ((level - top) / slope - rows.cell_weights[0, cells.row]) / per_pixel
    place[unsure] = 0
    pixel = np.clip(np.rint(place), 0, count - 1).astype(np.intp)
    above = top + slope * rows.weight[first + pixel] > level
    rising = slope > 0
    start = np.where(rising, pixel + ~above, 0)
    stop = np.where(rising, count, pixel + above)
    if unsure.any():
        _, cell = np.nonzero(unsure)
        start[unsure], stop[unsure] = _search(top[unsure], slope[unsure], cells.row[cell], grid, level)
    stop = np.where(np.arange(across)[:, None] < columns.count[cells.column], stop, start)
    return Columns(cells.plane, first + start, first + stop, columns.first[cells.column])


def _search(
    top: Float32Array, slope: Float32Array, row: IndexArray, grid: Grid, level: Float32Array
) -> tuple[IndexArray, IndexArray]:
    """The part above the level of columns of pixels, from the values of all their pixels: (start, stop) in the cell."""
    inside = top + slope * grid.rows.cell_weights[:, row] > level  # (pixels down, N)
    inside &= np.arange(len(inside))[:, None] < grid.rows.count[row]
    start = inside.argmax(axis=0)
    return start, start + np.count_nonzero(inside, axis=0)
