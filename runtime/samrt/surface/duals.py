"""The vertices of the mesh: in every cube that the surface cuts, one for each patch of surface in it.

Such a dual vertex is a weighted mean of the points where the patch crosses the cube's edges (FlexiCubes, section 4.2). A
crossing lies where a straight line between the values at the edge's ends, each scaled by its corner's *alpha*, is zero; a
crossing's weight in the mean is its edge's *beta*. Whatever else the ends carry (colours) is interpolated alike.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from samrt.surface.crossings import Crossings, Float32Array, IndexArray, corner_steps, lowest_vertex
from samrt.surface.tables import EDGE_COUNTS, EDGES, GROUP_COUNTS, GROUP_OF_EDGE, GROUPED_EDGES

_CUBES_AT_ONCE = 1 << 14
"""Their tables stay within some megabytes, whatever the size of the surface."""

_SLOTS = np.arange(12)


def first_duals(crossings: Crossings) -> IndexArray:
    """Return the first dual vertex of each cut cube, and after the last their number: (S + 1,)."""
    first = np.zeros(len(crossings.cases) + 1, np.int64)
    np.cumsum(GROUP_COUNTS[crossings.cases], out=first[1:])
    return first


def place_duals(
    crossings: Crossings, attributes: Float32Array, vertex_rows: NDArray[np.int32], weights: Float32Array
) -> Float32Array:
    """Return what each dual vertex carries, cube after cube: float32 (D, A).

    attributes: (rows, A) of the grid's vertices that are ends of crossed edges: position, colour
    vertex_rows: ((R + 1)**3,) which row of `attributes` and of `crossings.values`, one-based, a vertex has
    weights: (S, 20) of each cut cube: beta of its 12 edges, alpha of its 8 corners, all positive
    """
    found = [np.zeros((0, attributes.shape[1]), np.float32)]
    steps = corner_steps(crossings.resolution)
    for block in _blocks(len(crossings.cubes)):
        lowest = lowest_vertex(crossings.cubes[block], crossings.resolution)
        corners = vertex_rows[lowest[:, None] + steps] - 1  # (cubes, 8), -1 where no edge of the corner is crossed
        found.append(_place_block(crossings, attributes, corners, crossings.cases[block], weights[block]))
    return np.concatenate(found)


def _place_block(
    crossings: Crossings,
    attributes: Float32Array,
    corners: NDArray[np.int32],
    cases: NDArray[np.uint8],
    weights: Float32Array,
) -> Float32Array:
    # One line for each crossed edge of each cube, sorted by cube and group: a group's lines follow each other.
    counts = EDGE_COUNTS[cases]
    edge = GROUPED_EDGES[cases][counts[:, None] > _SLOTS]
    cube = np.repeat(np.arange(len(cases)), counts)
    group = GROUP_OF_EDGE[cases[cube], edge]
    starts = np.flatnonzero(np.r_[True, (cube[1:] != cube[:-1]) | (group[1:] != group[:-1])])

    end_a, end_b = EDGES[edge].T
    row_a, row_b = corners[cube, end_a], corners[cube, end_b]
    value_a = crossings.values[row_a] * weights[cube, 12 + end_a]
    value_b = crossings.values[row_b] * weights[cube, 12 + end_b]
    beta = weights[cube, edge]
    share_b = _zero_between(value_a, value_b)
    weighted = attributes[row_a] * (beta * (1 - share_b))[:, None]
    weighted += attributes[row_b] * (beta * share_b)[:, None]
    sums: Float32Array = np.add.reduceat(weighted, starts, axis=0)
    sums /= np.add.reduceat(beta, starts)[:, None]
    return sums


def _zero_between(first: Float32Array, second: Float32Array) -> Float32Array:
    """Return how far from the first to the second value zero lies, 0..1; they have different signs."""
    span = first - second
    middle = np.full_like(span, 0.5)  # for values that have both underflowed to zero
    np.divide(first, span, out=middle, where=span != 0)
    return middle


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CUBES_AT_ONCE):
        yield slice(start, start + _CUBES_AT_ONCE)
