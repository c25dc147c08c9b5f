"""Coordinates of voxels, and the table that finds a voxel's row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import InputError

Int32Array = NDArray[np.int32]
IndexArray = NDArray[np.int64]

MAX_GRID = 256
"""A table of all voxels of such a grid takes 68 MB; the models' grids have 64 along an axis."""


def check_coords(coords: NDArray[Any], grid: int) -> Int32Array:
    """Return the coordinates of voxels as a contiguous, read-only copy.

    coords: integers (N, 3), x, y, z, each 0..grid - 1, no voxel twice; N may be 0
    returns: int32 (N, 3)
    Raises InputError for another dtype or shape, a voxel outside the grid, or one that is there twice.
    """
    if not 1 <= grid <= MAX_GRID:
        raise InputError(
            "the grid's size is out of range", got=str(grid), expected=f"1..{MAX_GRID} voxels along an axis"
        )
    coords = np.asarray(coords)
    if coords.ndim != 2 or coords.shape[1] != 3 or coords.dtype.kind not in "iu":
        raise InputError(
            "these are no voxel coordinates", got=f"{coords.dtype} {coords.shape}", expected="integers of shape (N, 3)"
        )
    outside = ((coords < 0) | (coords >= grid)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            "a voxel lies outside the grid",
            got=f"{coords[row].tolist()} in row {row}",
            expected=f"0..{grid - 1} on each axis",
        )
    checked = np.array(coords, np.int32, order="C")
    seen = np.bincount(flat_index(checked, grid), minlength=1)
    if seen.max() > 1:
        voxel = [int(index) for index in np.unravel_index(int(seen.argmax()), (grid,) * 3)]
        raise InputError(
            "a voxel is there twice", got=f"{voxel} in {seen.max()} rows", expected="one row for each voxel",
            fix="np.unique(coords, axis=0)",
        )  # fmt: skip
    checked.flags.writeable = False
    return checked


def flat_index(coords: NDArray[np.integer[Any]], size: int) -> IndexArray:
    """Return the index of each voxel in a flattened grid of `size` voxels along an axis: (N, 3) -> int64 (N,)."""
    x, y, z = coords.astype(np.int64).T
    index: IndexArray = (x * size + y) * size + z
    return index


def row_table(coords: Int32Array, grid: int, margin: int = 0) -> Int32Array:
    """Return which row each voxel of the grid has: one-based, 0 where there is none.

    coords: (N, 3), checked
    margin: empty voxels around the grid, so that a step out of it finds nothing
    returns: int32, flat, (grid + 2 margin) ** 3; voxel (x, y, z) is at flat_index of (x, y, z) + margin
    """
    size = grid + 2 * margin
    table = np.zeros(size**3, np.int32)
    table[flat_index(coords + margin, size)] = np.arange(1, len(coords) + 1, dtype=np.int32)
    return table
