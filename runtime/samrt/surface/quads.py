"""The faces of the mesh: one quad around each crossed edge, between the dual vertices of the four cubes that share it."""

import numpy as np
from numpy.typing import NDArray

from samrt.surface.crossings import CrossedEdges, Crossings, Float32Array, IndexArray
from samrt.surface.tables import GROUP_OF_EDGE, SURROUNDING

Int32Array = NDArray[np.int32]

# The four cubes are listed line by line, so walking around the edge takes them as 0, 1, 3, 2.
_LOWER_OUTSIDE = np.array([0, 1, 3, 2])
_LOWER_INSIDE = np.array([2, 3, 1, 0])


def join_duals(crossings: Crossings, first: IndexArray, gammas: Float32Array) -> Int32Array:
    """Return the triangles, int32 (F, 3), counter-clockwise seen from outside. Edges on the grid's border get none.

    first: (S + 1,) of `first_duals`
    gammas: (S,) positive; a quad is split along the diagonal whose ends have the larger product
    """
    row_of_cube = np.zeros(crossings.resolution**3, np.int32)
    row_of_cube[crossings.cubes] = np.arange(len(crossings.cubes), dtype=np.int32)
    parts = [np.zeros((0, 3), np.int32)]
    for axis, crossed in enumerate(crossings.edges):
        cubes, lower_inside = _cubes_around(crossed, axis, crossings.resolution)
        rows = row_of_cube[cubes]  # (quads, 4)
        duals = first[rows] + GROUP_OF_EDGE[crossings.cases[rows], SURROUNDING[axis]]
        # Turned by a right angle, x and z follow each other the other way round than y and z, or x and y.
        inwards = ~lower_inside if axis == 1 else lower_inside
        around = np.where(inwards[:, None], _LOWER_INSIDE, _LOWER_OUTSIDE)
        parts.append(_split(np.take_along_axis(duals, around, 1), gammas[np.take_along_axis(rows, around, 1)]))
    return np.concatenate(parts)


def _cubes_around(crossed: CrossedEdges, axis: int, resolution: int) -> tuple[IndexArray, NDArray[np.bool_]]:
    """Return the cubes around each edge that is not on the border, (quads, 4), and `lower_inside` of these edges."""
    at = np.stack(np.unravel_index(crossed.lower, (resolution + 1,) * 3), axis=1)
    u, v = (other for other in range(3) if other != axis)
    within = ((at[:, [u, v]] > 0) & (at[:, [u, v]] < resolution)).all(axis=1)
    at = at[within]
    strides = np.array([resolution**2, resolution, 1])
    back = np.array([strides[u] + strides[v], strides[u], strides[v], 0])
    return (at @ strides)[:, None] - back, crossed.lower_inside[within]


def _split(quads: IndexArray, gammas: Float32Array) -> Int32Array:
    """Cut quads (Q, 4) into triangles (2 Q, 3)."""
    first_diagonal = gammas[:, 0] * gammas[:, 2] > gammas[:, 1] * gammas[:, 3]
    order = np.where(first_diagonal[:, None], [0, 1, 2, 0, 2, 3], [0, 1, 3, 3, 1, 2])
    return np.take_along_axis(quads, order, 1).astype(np.int32).reshape(-1, 3)
