"""From a mesh decoder's rows to a mesh, in two steps: first the distances, which say where the surface runs, then the rest.

A mesh decoder gives every voxel 64 small cubes and every cube a row: a signed distance, a displacement and a colour for each
corner, and weights of the cube. Vertices that cubes share get the mean of what these say. Only the cubes near the surface
count, so their rows alone need all columns:

    field = CubeField(coords, cube_sdf, resolution=256, sdf_bias=-1 / 256)
    mesh = field.extract(*attributes_of(features[field.rows]))

The method is FlexiCubes (Shen et al., "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization", 2023), without
its dense volumes: of the whole grid there are only tables of distances, indices and flags, one after another, at most 16
bytes a vertex; everything else is as large as the surface.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.assets import Mesh
from samrt.sparse.coords import Int32Array, check_coords, flat_index, row_table
from samrt.surface.crossings import Float32Array, IndexArray, corner_steps, find_crossings
from samrt.surface.duals import first_duals, place_duals
from samrt.surface.quads import join_duals
from samrt_engines.errors import InputError

SUBDIVISION = 4
"""Cubes along the side of a voxel."""

ROWS_PER_VOXEL = SUBDIVISION**3
"""Row 8 (8 p + c1) + c2 is child c2 of child c1 of voxel p; child c is 4 cx + 2 cy + cz."""

WEIGHT_GAIN = 0.99
"""FlexiCubes keeps its weights this far from degenerate."""


class CubeField:
    """Signed distances in the cubes of some voxels; outside of them there is nothing. Immutable."""

    def __init__(
        self, coords: NDArray[Any], cube_sdf: NDArray[np.floating[Any]], *, resolution: int, sdf_bias: float = 0.0
    ) -> None:
        """Average the distances at the vertices and find the surface.

        coords: integers (N, 3), voxels in a grid of resolution / 4, none twice
        cube_sdf: (64 N, 8), at the corners of each cube, negative inside; corner i is at (i & 1, i >> 1 & 1, i >> 2)
        resolution: cubes along one axis
        sdf_bias: added to every distance
        Raises InputError for arrays of other shapes, values that are not finite, and what `check_coords` refuses.
        """
        if resolution < SUBDIVISION or resolution % SUBDIVISION:
            raise InputError(
                "cubes do not fill voxels", got=f"a resolution of {resolution}", expected=f"a multiple of {SUBDIVISION}"
            )
        self._coords = check_coords(coords, resolution // SUBDIVISION)
        self._resolution = resolution
        _check("cube_sdf", cube_sdf, (len(self._coords) * ROWS_PER_VOXEL, 8))
        vertices = self._lowest_vertices()
        self._crossings = find_crossings(self._average(vertices, cube_sdf, np.float32(sdf_bias)))
        self._rows = self._rows_near(vertices)

    @property
    def rows(self) -> IndexArray:
        """The rows whose attributes `extract` needs, int64 (M,), rising: of all cubes around an end of a crossed edge."""
        return self._rows

    @property
    def surface_cubes(self) -> int:
        """How many cubes the surface cuts, of the grid."""
        return len(self._crossings.cubes)

    def extract(
        self,
        deform: NDArray[np.floating[Any]],
        weights: NDArray[np.floating[Any]],
        colors: NDArray[np.floating[Any]],
    ) -> Mesh:
        """Return the surface. What comes in are the decoder's raw numbers for `rows`, in that order.

        deform: (M, 8, 3), displacement of each corner, tanh of which is in half cubes
        weights: (M, 21), beta of 12 edges, alpha of 8 corners, gamma
        colors: (M, 8, 6) logits; the first three are red, green and blue
        returns: vertices z-up in [-0.5, 0.5]^3, triangles counter-clockwise seen from outside, colours 0..1. It is closed
            wherever the surface does not reach the grid's border. No surface gives a mesh without vertices.
        Raises InputError for arrays of other shapes, and values that are not finite.
        """
        count = len(self._rows)
        _check("deform", deform, (count, 8, 3))
        _check("weights", weights, (count, 21))
        _check("colors", colors, (count, 8, 6))
        crossings = self._crossings
        vertex_rows = np.zeros((self._resolution + 1) ** 3, np.int32)
        vertex_rows[crossings.vertices] = np.arange(1, len(crossings.vertices) + 1, dtype=np.int32)
        attributes = self._vertex_attributes(vertex_rows, deform, colors)
        edge_and_corner, gammas = self._cube_weights(weights)
        duals = place_duals(crossings, attributes, vertex_rows, edge_and_corner)
        del vertex_rows, attributes, edge_and_corner
        faces = join_duals(crossings, first_duals(crossings), gammas)
        return Mesh(np.ascontiguousarray(duals[:, :3]), faces, np.ascontiguousarray(duals[:, 3:]))

    def _lowest_vertices(self) -> IndexArray:
        """Return the lowest vertex of every row's cube, (64 N,)."""
        side = self._resolution + 1
        corner = np.indices((2, 2, 2)).reshape(3, 8).T
        within = (2 * corner[:, None] + corner).reshape(ROWS_PER_VOXEL, 3)
        return (flat_index(self._coords * SUBDIVISION, side)[:, None] + flat_index(within, side)).reshape(-1)

    def _average(self, vertices: IndexArray, cube_sdf: NDArray[np.floating[Any]], bias: np.float32) -> Float32Array:
        """Return the distance at each vertex, (R + 1, R + 1, R + 1): the mean over the rows around it, 1 without any."""
        side = self._resolution + 1
        sums, counts = np.zeros(side**3, np.float32), np.zeros(side**3, np.uint8)
        for corner, step in enumerate(corner_steps(self._resolution)):
            at = vertices + step  # of one corner no two are the same, so that plain indexing adds them all
            sums[at] += cube_sdf[:, corner].astype(np.float32) + bias
            counts[at] += 1
        empty = counts == 0
        sums[empty], counts[empty] = 1, 1
        sums /= counts
        return sums.reshape(side, side, side)

    def _rows_near(self, vertices: IndexArray) -> IndexArray:
        is_end = np.zeros((self._resolution + 1) ** 3, np.bool_)
        is_end[self._crossings.vertices] = True
        near = np.zeros(len(vertices), np.bool_)
        for step in corner_steps(self._resolution):
            near |= is_end[vertices + step]
        rows = np.flatnonzero(near)
        rows.flags.writeable = False
        return rows

    def _vertex_attributes(
        self, vertex_rows: Int32Array, deform: NDArray[np.floating[Any]], colors: NDArray[np.floating[Any]]
    ) -> Float32Array:
        """Return position and colour of the ends of crossed edges, (V, 6)."""
        ends = self._crossings.vertices
        vertices = self._lowest_vertices()[self._rows]
        # Line 0 collects what goes to other vertices.
        sums, counts = np.zeros((len(ends) + 1, 6), np.float32), np.zeros((len(ends) + 1, 1), np.float32)
        for corner, step in enumerate(corner_steps(self._resolution)):
            at = vertex_rows[vertices + step]
            sums[at] += np.concatenate([deform[:, corner], colors[:, corner, :3]], axis=1, dtype=np.float32)
            counts[at] += 1
        attributes = sums[1:]
        attributes /= np.maximum(counts[1:], 1)
        x, y, z = np.unravel_index(ends, (self._resolution + 1,) * 3)
        at_rest = np.stack([x, y, z], axis=1).astype(np.float32) / np.float32(self._resolution) - np.float32(0.5)
        attributes[:, :3] = at_rest + np.tanh(attributes[:, :3]) / np.float32(2 * self._resolution)
        attributes[:, 3:] = _sigmoid(attributes[:, 3:])
        return attributes

    def _cube_weights(self, weights: NDArray[np.floating[Any]]) -> tuple[Float32Array, Float32Array]:
        """Return beta and alpha (S, 20), and gamma (S,), of the cut cubes; one without a row has zeros for raw weights."""
        raw = np.zeros((self.surface_cubes, 21), np.float32)
        row = self._rows_of(self._crossings.cubes)
        raw[row >= 0] = weights[np.searchsorted(self._rows, row[row >= 0])]
        edge_and_corner = np.tanh(raw[:, :20]) * np.float32(WEIGHT_GAIN) + np.float32(1)
        gammas = _sigmoid(raw[:, 20]) * np.float32(WEIGHT_GAIN) + np.float32((1 - WEIGHT_GAIN) / 2)
        return edge_and_corner, gammas

    def _rows_of(self, cubes: IndexArray) -> IndexArray:
        """Return the row of each cube, -1 where its voxel has none."""
        grid = self._resolution // SUBDIVISION
        at = np.stack(np.unravel_index(cubes, (self._resolution,) * 3), axis=1)
        voxel = row_table(self._coords, grid)[flat_index(at // SUBDIVISION, grid)].astype(np.int64) - 1
        row: IndexArray = 8 * (8 * voxel + flat_index(at // 2 % 2, 2)) + flat_index(at % 2, 2)
        return np.where(voxel < 0, -1, row)


def _sigmoid(values: Float32Array) -> Float32Array:
    half = np.float32(0.5)
    result: Float32Array = half + half * np.tanh(half * values)
    return result


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind != "f":
        raise InputError(
            f"{name} does not fit the voxels", got=f"{array.dtype} {array.shape}", expected=f"floating point {shape}"
        )
    if not np.isfinite(array).all():
        wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise InputError(
            f"{name} is not finite",
            got=f"{wrong} of {array.size} values are NaN or infinite",
            expected="numbers; fp16 graphs that overflow give such values",
        )
