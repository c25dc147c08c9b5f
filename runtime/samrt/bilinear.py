"""Bilinear resizing of planes, and the threshold of a resized plane without computing most of it.

The grid is torch's ``F.interpolate(mode="bilinear", align_corners=False)``: half-pixel centres, edges repeated, no
antialiasing. Every output pixel lies in one *cell* of the source grid, the square between four neighbouring samples,
and is

    top = a + (b - a) * wx,   bottom = c + (d - c) * wx,   pixel = top + (bottom - top) * wy

in float32, in this order, wherever it is computed. That fixed order is what makes `threshold_planes` equal
`resize_planes(...) > threshold` bit for bit, although it looks at a few percent of the pixels only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from samrt.components import find_runs

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]

_DENSE_FRACTION = 0.06  # above this share of mixed cells, computing every pixel is quicker than picking some
_MANY_RUNS = 2000  # above this number of runs in a plane, painting them one by one is slower than copying rows
_BAND_ROWS = 16  # source rows widened at once, and
_BLOCK_ROWS = 16  # output rows computed at once: at 1920 pixels 120 KB a table, so all stay in the second-level cache
_CELLS_AT_ONCE = 4096
_ROUNDING = 16 * float(
    np.finfo(np.float32).eps
)  # three lerps are off by at most 6 eps of the largest sample, six by 12

UNCLEAR, ABOVE, BELOW = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How one axis of `source` samples becomes `len(cell)` pixels. Built once per size pair by `plan_axis`."""

    cell: IndexArray  # (pixels,) the cell each pixel lies in, rising; its corners are samples `cell` and `cell + 1`
    weight: Float32Array  # (pixels,) share of the second corner, 0..1
    first: IndexArray  # (source + 1,) first pixel of each cell; cell i holds pixels first[i] to first[i + 1] - 1
    count: IndexArray  # (source,) pixels in each cell
    cell_pixels: IndexArray  # (most, source) the pixels of each cell, the last one repeated to fill the column
    cell_weights: Float32Array  # (most, source) and their weights

    @property
    def pixels(self) -> int:
        return len(self.cell)


@lru_cache(maxsize=128)
def plan_axis(source: int, target: int, pixels: int | None = None) -> Axis:
    """Plan an axis of `source` samples resized to `target` pixels, of which only the first `pixels` are wanted.

    The arithmetic is float32 like torch's, so that the weights are the same numbers.
    """
    pixels = target if pixels is None else pixels
    scale = np.float32(source) / np.float32(target)
    position = scale * (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    cell = np.minimum(position.astype(np.intp), source - 1)
    weight = np.clip(position - cell.astype(np.float32), np.float32(0), np.float32(1))
    first = np.searchsorted(cell, np.arange(source + 1))
    count = np.diff(first)
    most = max(1, int(count.max()))
    cell_pixels = np.minimum(first[:-1] + np.arange(most)[:, None], np.maximum(first[1:] - 1, 0))
    axis = Axis(cell, weight, first, count, cell_pixels, weight[cell_pixels])
    for table in (axis.cell, axis.weight, axis.first, axis.count, axis.cell_pixels, axis.cell_weights):
        table.flags.writeable = False  # the cache shares them between callers
    return axis


def resize_planes(planes: Float32Array, hw: tuple[int, int], crop_hw: tuple[int, int] | None = None) -> Float32Array:
    """Resize every plane to `hw` pixels, bilinear; with `crop_hw`, only that top left part is computed.

    planes: float32 (M, h, w)
    returns: float32 (M, H, W), or (M, crop height, crop width)
    """
    rows, columns = _plan(planes, hw, crop_hw)
    out = np.empty((len(planes), rows.pixels, columns.pixels), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN pass through as themselves
        for plane, target in zip(planes, out, strict=True):
            for pixels, values in resized_blocks(plane, rows, columns):
                target[pixels] = values
    return out


def threshold_planes(planes: Float32Array, hw: tuple[int, int], threshold: float) -> BoolArray:
    """Return `resize_planes(planes, hw) > threshold`, exactly, and an order of magnitude sooner for masks of objects.

    A cell whose four corners are all clearly above the threshold, or all clearly not, has one answer; *clearly* leaves
    room for float32 rounding. Such cells are painted whole. Only mixed cells, along the outlines, are interpolated.
    A plane that is mostly outline (noise, as random weights give) is computed densely, block by block.

    planes: float32 (M, h, w)
    returns: bool (M, H, W)
    """
    rows, columns = _plan(planes, hw, None)
    out = np.zeros((len(planes), rows.pixels, columns.pixels), np.bool_)
    if not out.size:
        return out
    level = np.array(threshold, np.float32)  # comparing with a 0-d array is quicker than with a scalar
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN give the answer their arithmetic gives
        above, mixed = classify_cells(planes, float(level))
        occupied = planes[0].size
        if not (rows.count.all() and columns.count.all()):  # a reduction: many cells hold no pixel at all
            inhabited = (rows.count > 0)[:, None] & (columns.count > 0)
            mixed &= inhabited
            occupied = np.count_nonzero(inhabited)
        for index, plane in enumerate(planes):
            if np.count_nonzero(mixed[index]) > _DENSE_FRACTION * occupied:
                for pixels, values in resized_blocks(plane, rows, columns):
                    np.greater(values, level, out=out[index, pixels])
                mixed[index] = False
            else:
                _paint_cells(above[index], rows, columns, out[index])
        _threshold_cells(planes, level, mixed, rows, columns, out)
    return out


def _plan(planes: Float32Array, hw: tuple[int, int], crop_hw: tuple[int, int] | None) -> tuple[Axis, Axis]:
    height, width = planes.shape[1:]
    crop_h, crop_w = hw if crop_hw is None else crop_hw
    return plan_axis(height, hw[0], crop_h), plan_axis(width, hw[1], crop_w)


def classify_cells(planes: Float32Array, threshold: float) -> tuple[BoolArray, BoolArray]:
    """Return which cells are surely above the threshold throughout, and which may hold both answers; bool (M, h, w)."""
    sides = classify_samples(planes, threshold)
    # Each sample together with its right, lower and lower right neighbour; the last row and column have none.
    pairs = sides.copy()
    pairs[:, :-1] &= sides[:, 1:]
    cells = pairs.copy()
    cells[:, :, :-1] &= pairs[:, :, 1:]
    return cells == ABOVE, cells == UNCLEAR


def classify_samples(planes: Float32Array, threshold: float) -> NDArray[np.uint8]:
    """Return on which side of the threshold each sample surely lies: `ABOVE`, `BELOW` or `UNCLEAR`; uint8 (M, h, w).

    What is interpolated of samples on one side, by two resizes at most, lies on that side. The & of two sides is theirs
    if they are equal, else unclear.
    """
    peak = max(float(planes.max()), -float(planes.min()))
    margin = _ROUNDING * (peak + abs(threshold))  # NaN or infinity makes all samples unclear: computed densely
    sides = (planes > np.float32(threshold + margin)).view(np.uint8)
    sides |= (planes < np.float32(threshold - margin)).view(np.uint8) << 1
    return sides


def _paint_cells(above: BoolArray, rows: Axis, columns: Axis, out: BoolArray) -> None:
    """Set the pixels of every cell that is `above`, bool (h, w), in `out`, bool (H, W), which holds only False."""
    runs = find_runs(above)
    if len(runs.row) > _MANY_RUNS:
        np.take(np.repeat(above, columns.count, axis=1), rows.cell, axis=0, out=out, mode="clip")
        return
    top, bottom = rows.first[runs.row].tolist(), rows.first[runs.row + 1].tolist()
    left, right = columns.first[runs.start].tolist(), columns.first[runs.stop].tolist()
    for y0, y1, x0, x1 in zip(top, bottom, left, right, strict=True):
        out[y0:y1, x0:x1] = True


def _threshold_cells(
    planes: Float32Array, level: Float32Array, mixed: BoolArray, rows: Axis, columns: Axis, out: BoolArray
) -> None:
    """Write the pixels of every mixed cell of every plane into `out`, bool (M, H, W)."""
    _, height, width = planes.shape
    samples, pixels = planes.reshape(-1), out.reshape(-1)
    found = np.flatnonzero(mixed)
    for begin in range(0, len(found), _CELLS_AT_ONCE):
        corner = found[begin : begin + _CELLS_AT_ONCE]
        line, column = np.divmod(corner, width)
        plane, row = np.divmod(line, height)
        right = corner + (column < width - 1)
        below = np.where(row < height - 1, width, 0)
        weight_x = columns.cell_weights[:, column]
        top = lerp(samples[corner], samples[right], weight_x)  # (pixels across, cells)
        bottom = lerp(samples[corner + below], samples[right + below], weight_x)
        values = lerp(top, bottom, rows.cell_weights[:, None, row])  # (pixels down, pixels across, cells)
        line_start = (rows.cell_pixels[:, row] + plane * rows.pixels) * columns.pixels
        pixels[line_start[:, None] + columns.cell_pixels[:, column]] = values > level


def lerp(first: Float32Array, second: Float32Array, weight: Float32Array) -> Float32Array:
    """Return ``first + (second - first) * weight`` in the order that makes all paths equal."""
    values = (second - first) * weight
    values += first
    return values


def resized_blocks(plane: Float32Array, rows: Axis, columns: Axis) -> Iterator[tuple[slice, Float32Array]]:
    """Resize one plane; yields (which output rows, their values), a block that fits the cache at a time.

    The values lie in a buffer that the next step overwrites.
    """
    height = len(plane)
    tops, buffer = np.empty((2, _BLOCK_ROWS, columns.pixels), np.float32)
    for band in range(0, height, _BAND_ROWS):
        samples = plane[band : band + _BAND_ROWS + 1]
        if band + _BAND_ROWS >= height:
            samples = np.concatenate([samples, samples[-1:]])  # below the last row there is that row again
        step = np.zeros_like(samples)
        np.subtract(samples[:, 1:], samples[:, :-1], out=step[:, :-1])
        wide = np.repeat(step, columns.count, axis=1)
        wide *= columns.weight
        wide += np.repeat(samples, columns.count, axis=1)
        step = wide[1:] - wide[:-1]
        end = int(rows.first[band + len(step)])
        for start in range(int(rows.first[band]), end, _BLOCK_ROWS):
            pixels = slice(start, min(start + _BLOCK_ROWS, end))
            cell = rows.cell[pixels] - band
            top, values = tops[: len(cell)], buffer[: len(cell)]
            wide.take(cell, axis=0, out=top, mode="clip")
            step.take(cell, axis=0, out=values, mode="clip")
            values *= rows.weight[pixels, None]
            values += top
            yield pixels, values
