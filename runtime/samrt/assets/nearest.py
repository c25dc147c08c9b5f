"""The nearest of many points, exactly, with numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_PER_CELL = 2.0  # points in an occupied cell of the first grid, about
_MAX_CELLS = 2**19  # a side: three of them number a cell in 63 bits
_AT_ONCE = 2_000_000  # distances held together


def nearest_rows(points: Floats, queries: Floats) -> NDArray[np.int64]:
    """For each query the row of the point nearest to it; any of several that are equally near.

    points: (N, 3), N >= 1; queries: (Q, 3); returns int64 (Q,)

    Points are sorted into the cells of a grid. What lies in the 27 cells about a query is nearer than anything else if it is
    nearer than a cell is wide; queries without such a point try a grid of twice the width, until one cell holds all.
    """
    low = np.minimum(points.min(axis=0), queries.min(axis=0, initial=np.inf)).astype(np.float64)
    high = np.maximum(points.max(axis=0), queries.max(axis=0, initial=-np.inf)).astype(np.float64)
    extent = float((high - low).max())
    middle = np.ptp(
        np.quantile(points, (0.01, 0.99), axis=0), axis=0
    ).max()  # a stray point must not make one cell of all
    side = np.sqrt(max(len(points) / _PER_CELL, 1))  # points on a surface fill side**2 cells
    width = max(float(middle) / side, extent / _MAX_CELLS) or 1.0
    found = np.zeros(len(queries), np.int64)
    open_rows = np.arange(len(queries))
    while len(open_rows):
        rows, distances = _nearest_in_cells(points, queries[open_rows], low, width)
        found[open_rows] = rows
        settled = (distances <= width) | (width > extent)
        open_rows = open_rows[~settled]
        width *= 2
    return found


def _nearest_in_cells(
    points: Floats, queries: Floats, low: NDArray[np.float64], width: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest point in the 27 cells about each query, and how far it is (infinite where they are empty)."""
    cells = np.floor((points - low) / width).astype(np.int64) + 1
    size = cells.max(axis=0) + 3
    keys = _keys(cells, size)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    centres = np.minimum(np.floor((queries - low) / width).astype(np.int64) + 1, size - 1)
    best = np.zeros(len(queries), np.int64)
    least = np.full(len(queries), np.inf)
    for step in np.ndindex(3, 3):  # a run of three cells along z is contiguous in the sorted points
        column = centres + np.array([step[0] - 1, step[1] - 1, 0])
        first = _keys(column - (0, 0, 1), size)
        inside = ((column >= 0) & (column < size)).all(axis=1)
        begin = np.where(inside, np.searchsorted(keys, first, "left"), 0)
        end = np.where(inside, np.searchsorted(keys, first + 2, "right"), 0)
        _scan(points, order, queries, begin, end, best, least)
    return best, np.sqrt(least)


def _keys(cells: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray((cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2])


def _scan(
    points: Floats,
    order: NDArray[np.intp],
    queries: Floats,
    begin: NDArray[np.intp],
    end: NDArray[np.intp],
    best: NDArray[np.int64],
    least: NDArray[np.float64],
) -> None:
    """Compare each query with the points order[begin:end], and improve best and least in place."""
    counts = end - begin
    rows = np.flatnonzero(counts)
    while len(rows):
        total = np.cumsum(counts[rows])
        now = max(int(np.searchsorted(total, _AT_ONCE, "right")), 1)
        part, rows = rows[:now], rows[now:]
        lengths = counts[part]
        starts = np.cumsum(lengths) - lengths
        candidates = order[np.repeat(begin[part] - starts, lengths) + np.arange(lengths.sum())]
        away = points[candidates].astype(np.float64) - np.repeat(queries[part], lengths, axis=0)
        squares = np.einsum("ij,ij->i", away, away)
        nearest = np.minimum.reduceat(squares, starts)
        hits = np.flatnonzero(squares == np.repeat(nearest, lengths))
        owner = np.repeat(np.arange(len(part)), lengths)[hits]
        first = np.unique(owner, return_index=True)[1]
        chosen = candidates[hits[first]]
        better = nearest < least[part]
        best[part[better]] = chosen[better]
        least[part[better]] = nearest[better]
