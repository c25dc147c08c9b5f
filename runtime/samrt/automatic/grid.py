"""How low-res samples become the pixels of one picture, and which regions of it are clear at a glance.

The grid is looked at in *fields*: squares that are surely above a level, surely not, or mixed. Where the samples are resized
once, a field is a cell between four of them. Where they are resized to the model's input first, and the picture's part of
that is cut out and resized again (longest_side), a field is a tile of 4 x 4 cells of the input's grid; only in mixed tiles
are the input's samples ever computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from samrt.bilinear import (
    ABOVE,
    UNCLEAR,
    Axis,
    BoolArray,
    Float32Array,
    IndexArray,
    classify_cells,
    classify_samples,
    lerp,
    plan_axis,
    resize_planes,
)
from samrt.components import find_runs
from samrt.transforms import Frame

_TILE = 4  # cells along a side; as many as SAM's input has to one sample of its masks
_TILES_AT_ONCE = 1 << 12


class Rectangles(NamedTuple):
    """Pixels that are all above a level: plane, and rows top to bottom - 1 of columns left to right - 1; (N,) each."""

    plane: IndexArray
    top: IndexArray
    bottom: IndexArray
    left: IndexArray
    right: IndexArray


class Cells(NamedTuple):
    """N cells of the last grid, (N,) each: where they lie, and the samples at their corners."""

    plane: IndexArray
    row: IndexArray
    column: IndexArray
    top_left: Float32Array
    top_right: Float32Array
    bottom_left: Float32Array
    bottom_right: Float32Array

    def take(self, index: IndexArray) -> Cells:
        """Some of them."""
        return Cells._make(field[index] for field in self)


@dataclass(frozen=True, slots=True, eq=False)
class _TileAxis:
    """Tiles along one axis of a grid that is itself resized from low-res samples."""

    first: IndexArray  # (tiles, span): low-res samples that a tile depends on, the last one repeated
    sample: IndexArray  # (5, tiles): for each line of the grid from one edge of a tile to the other, the low-res sample
    following: IndexArray  # (5, tiles): before it, the one behind it,
    weight: Float32Array  # (5, tiles): and the share of the second
    holds: BoolArray  # (4, tiles): whether there are pixels between a line and the next

    @classmethod
    def plan(cls, low_res: Axis, pixels: Axis) -> _TileAxis:
        """low_res: low-res samples to lines of the grid; pixels: those to pixels."""
        lines, samples = low_res.pixels, len(low_res.count)
        start = np.arange(0, lines, _TILE)
        line = np.minimum(start + np.arange(_TILE + 1)[:, None], lines - 1)
        sample = low_res.cell[line]
        following = np.minimum(sample + 1, samples - 1)
        span = int((following[-1] - sample[0]).max()) + 1
        between = start + np.arange(_TILE)[:, None]
        holds = (between < lines) & (pixels.count[np.minimum(between, lines - 1)] > 0)
        first = np.minimum(sample[0][:, None] + np.arange(span), following[-1][:, None])
        return cls(first, sample, following, low_res.weight[line], holds)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The plan of one picture's masks, shared by all of them."""

    rows: Axis
    columns: Axis
    """From samples of the last grid to pixels."""
    field_top: IndexArray
    field_left: IndexArray
    """The first pixel row of each row of fields, (fields + 1,), and the first pixel column of each column of them."""
    frame: Frame
    tiles: tuple[_TileAxis, _TileAxis] | None

    @classmethod
    def plan(cls, frame: Frame, low_res_hw: tuple[int, int]) -> Grid:
        """For the masks of a picture that lies so in the model's input."""
        height, width = frame.image_hw
        if frame.content_hw == frame.input_hw:
            rows, columns = plan_axis(low_res_hw[0], height), plan_axis(low_res_hw[1], width)
            return cls(rows, columns, rows.first, columns.first, frame, None)
        (input_h, input_w), (content_h, content_w) = frame.input_hw, frame.content_hw
        rows, columns = plan_axis(content_h, height), plan_axis(content_w, width)
        tiles = (
            _TileAxis.plan(plan_axis(low_res_hw[0], input_h, content_h), rows),
            _TileAxis.plan(plan_axis(low_res_hw[1], input_w, content_w), columns),
        )
        top, left = (np.append(axis.first[:-1:_TILE], axis.pixels) for axis in (rows, columns))
        return cls(rows, columns, top, left, frame, tiles)

    def classify(self, planes: Float32Array, level: float) -> tuple[BoolArray, BoolArray]:
        """Which fields are surely above the level throughout, and which may hold both answers; bool (M, rows, columns)."""
        if self.tiles is None:
            above, mixed = classify_cells(planes, level)
        else:
            sides = classify_samples(planes, level)
            for axis, tiles in enumerate(self.tiles, start=1):
                sides = np.bitwise_and.reduce([sides.take(samples, axis) for samples in tiles.first.T])
            above, mixed = sides == ABOVE, sides == UNCLEAR
        filled_rows, filled_columns = (np.diff(edges) > 0 for edges in (self.field_top, self.field_left))
        if not (filled_rows.all() and filled_columns.all()):  # a reduction: many fields hold no pixel at all
            mixed &= filled_rows[:, None] & filled_columns
        return above, mixed

    def whole(self, plane: Float32Array) -> Float32Array:
        """All samples of the last grid, of one plane."""
        if self.tiles is None:
            return plane
        whole: Float32Array = resize_planes(plane[None], self.frame.input_hw, self.frame.content_hw)[0]
        return whole

    def above_fields(self, above: BoolArray) -> Rectangles:
        """The pixels of the fields that are `above`, bool (M, rows, columns), those below each other as one."""
        planes, height, width = above.shape
        runs = find_runs(above.transpose(0, 2, 1).reshape(planes * width, height))
        plane, column = np.divmod(runs.row, width)
        top, left = self.field_top, self.field_left
        return Rectangles(plane, top[runs.start], top[runs.stop], left[column], left[column + 1])

    def open_fields(self, planes: Float32Array, mixed: BoolArray, level: float) -> Iterator[Rectangles | Cells]:
        """The cells of fields that are `mixed`, bool (M, rows, columns), in so far as they may hold pixels above the level."""
        found = np.flatnonzero(mixed)
        line, column = np.divmod(found, mixed.shape[2])
        plane, row = np.divmod(line, mixed.shape[1])
        if self.tiles is None:
            yield self._corners(planes, plane, row, column)
            return
        for start in range(0, len(plane), _TILES_AT_ONCE):
            some = slice(start, start + _TILES_AT_ONCE)
            yield from self._open_tiles(planes, plane[some], row[some], column[some], self.tiles, level)

    def _corners(self, planes: Float32Array, plane: IndexArray, row: IndexArray, column: IndexArray) -> Cells:
        """Cells between low-res samples."""
        _, height, width = planes.shape
        corner = (plane * height + row) * width + column
        right = corner + (column < width - 1)
        below = np.where(row < height - 1, width, 0)
        flat = planes.reshape(-1)
        corners = (corner, right, corner + below, right + below)
        return Cells(plane, row, column, *(flat.take(index) for index in corners))

    def _open_tiles(
        self,
        planes: Float32Array,
        plane: IndexArray,
        row: IndexArray,
        column: IndexArray,
        tiles: tuple[_TileAxis, _TileAxis],
        level: float,
    ) -> Iterator[Rectangles | Cells]:
        """Interpolate the samples of some tiles, and sort their cells as `classify` sorts fields."""
        samples = _tile_samples(planes, plane, row, column, tiles)
        sides = classify_samples(samples, level)
        sides = sides[:-1] & sides[1:]
        sides = sides[:, :-1] & sides[:, 1:]  # (4, 4, tiles)
        holds = tiles[0].holds[:, None, row] & tiles[1].holds[:, column]
        rows, columns, count = self.rows.first, self.columns.first, len(plane)
        line, tile = np.divmod(np.flatnonzero((sides == ABOVE) & holds), count)
        top, left = row[tile] * _TILE + line // _TILE, column[tile] * _TILE + line % _TILE
        yield Rectangles(plane[tile], rows[top], rows[top + 1], columns[left], columns[left + 1])
        line, tile = np.divmod(np.flatnonzero((sides == UNCLEAR) & holds), count)
        down, across = np.divmod(line, _TILE)
        flat, corner = samples.reshape(-1), (down * (_TILE + 1) + across) * count + tile
        corners = (flat.take(corner + step * count) for step in (0, 1, _TILE + 1, _TILE + 2))
        yield Cells(plane[tile], row[tile] * _TILE + down, column[tile] * _TILE + across, *corners)


def _tile_samples(
    planes: Float32Array, plane: IndexArray, row: IndexArray, column: IndexArray, tiles: tuple[_TileAxis, _TileAxis]
) -> Float32Array:
    """The samples at the corners of the cells of some tiles, as `samrt.bilinear` interpolates them. returns: (5, 5, N)"""
    down, across = tiles
    _, height, width = planes.shape
    flat, base = planes.reshape(-1), plane * (height * width)
    left, right, weight = across.sample[:, column], across.following[:, column], across.weight[:, column]
    edges = []
    for lines in (down.sample, down.following):
        line = (base + lines[:, row] * width)[:, None]  # (5, 1, N)
        edges.append(lerp(flat.take(line + left), flat.take(line + right), weight))
    return lerp(edges[0], edges[1], down.weight[:, None, row])
