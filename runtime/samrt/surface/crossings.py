"""Where a surface runs through a grid: the edges it crosses and the cubes it cuts.

A grid of R cubes along an axis has R + 1 vertices along it. Cubes and vertices are named by their index in the flattened
(x, y, z) array, R**3 and (R + 1)**3 long; a cube has the coordinates of its lowest corner.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt.surface.tables import BEHIND_FACE, CORNERS, INVERTED, IS_AMBIGUOUS

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
IndexArray = NDArray[np.int64]
Uint8Array = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class CrossedEdges:
    """The edges along one axis that the surface crosses, in the order of their lower ends."""

    lower: IndexArray  # (E,) vertex at the lower end
    lower_inside: BoolArray  # (E,) whether that end is inside; the other end is not, or the other way round


@dataclass(frozen=True, slots=True, eq=False)
class Crossings:
    """How the surface of a field of values runs through the grid. Inside is where a value is negative."""

    resolution: int
    edges: tuple[CrossedEdges, CrossedEdges, CrossedEdges]  # along x, y, z
    vertices: IndexArray  # (V,) both ends of all crossed edges, rising
    values: Float32Array  # (V,) of the field
    cubes: IndexArray  # (S,) the cubes with corners on both sides, rising
    cases: Uint8Array  # (S,) of each, with ambiguous ones settled


def find_crossings(values: Float32Array) -> Crossings:
    """Look a field through. values: (R + 1, R + 1, R + 1), at the vertices, without NaN."""
    vertices_along = values.shape[0]
    inside = values < 0
    edges = (
        _crossed(inside, (inside[1:] != inside[:-1]), 0),
        _crossed(inside, (inside[:, 1:] != inside[:, :-1]), 1),
        _crossed(inside, (inside[:, :, 1:] != inside[:, :, :-1]), 2),
    )
    is_end = np.zeros(values.size, np.bool_)
    for axis, crossed in enumerate(edges):
        is_end[crossed.lower] = True
        is_end[crossed.lower + vertices_along ** (2 - axis)] = True
    vertices = np.flatnonzero(is_end)
    return Crossings(vertices_along - 1, edges, vertices, values.reshape(-1)[vertices], *_cut_cubes(inside))


def corner_steps(resolution: int) -> IndexArray:
    """Return what to add to a cube's lowest vertex to reach each corner, (8,)."""
    vertices_along = resolution + 1
    steps: IndexArray = CORNERS.astype(np.int64) @ np.array([vertices_along**2, vertices_along, 1])
    return steps


def lowest_vertex(cubes: IndexArray, resolution: int) -> IndexArray:
    """Return the vertex at the lowest corner of each cube."""
    x, y, z = np.unravel_index(cubes, (resolution,) * 3)
    vertices: IndexArray = (x * (resolution + 1) + y) * (resolution + 1) + z
    return vertices


def _crossed(inside: BoolArray, changes: BoolArray, axis: int) -> CrossedEdges:
    """List the True of `changes`, which is one shorter than `inside` along `axis`."""
    vertices_along = len(inside)
    x, y, z = np.unravel_index(np.flatnonzero(changes), changes.shape)
    lower = (x * vertices_along + y) * vertices_along + z
    return CrossedEdges(lower, inside.reshape(-1)[lower])


def _cut_cubes(inside: BoolArray) -> tuple[IndexArray, Uint8Array]:
    """Return the cubes with corners on both sides, and their cases."""
    resolution = len(inside) - 1
    case = np.zeros((resolution,) * 3, np.uint8)
    for bit, (x, y, z) in enumerate(CORNERS.tolist()):
        corner = inside[x : x + resolution, y : y + resolution, z : z + resolution]
        case |= corner.view(np.uint8) << np.uint8(bit)
    case_of_cube = case.reshape(-1)
    cubes = np.flatnonzero((case_of_cube != 0) & (case_of_cube != 255))
    cases = case_of_cube[cubes]
    (ambiguous,) = np.nonzero(IS_AMBIGUOUS[cases])
    at = np.stack(np.unravel_index(cubes[ambiguous], case.shape), axis=1)
    behind = at + BEHIND_FACE[cases[ambiguous]]
    within = ((behind >= 0) & (behind < resolution)).all(axis=1)
    ambiguous, behind = ambiguous[within], behind[within]
    # Both cubes of a pair are looked up as they were, so that both are inverted.
    paired = ambiguous[IS_AMBIGUOUS[case[tuple(behind.T)]]]
    cases[paired] = INVERTED[cases[paired]]
    return cubes, cases
