"""From the structure decoder's logits to voxels: which are occupied, which of them matter, and no more than fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import InputError

Coords = NDArray[np.int32]
"""int32 (N, 3): x, y, z of voxels, in lexicographic order."""


def occupied_voxels(logits: NDArray[np.floating]) -> Coords:
    """Voxels with a positive logit.

    logits: (..., grid, grid, grid), one grid
    Raises InputError where there are none.
    """
    cube = logits.reshape(logits.shape[-3:])
    coords = np.argwhere(cube > 0).astype(np.int32)
    if not len(coords):
        raise InputError(
            "the model sees no object: no voxel is occupied",
            got=f"a largest logit of {float(cube.max()):.3g}",
            expected="above 0 somewhere",
            fix="try another seed, more steps, or a mask of the whole object",
        )
    return coords


def prune_interior(coords: Coords, grid: int) -> Coords:
    """Drop voxels whose 26 neighbours are all occupied: they are inside, and nothing of them is ever seen."""
    padded = np.zeros((grid + 2,) * 3, np.bool_)
    padded[tuple(coords.T + 1)] = True
    full = padded
    for axis in range(3):  # a cube's minimum is the minimum along each axis in turn
        size = full.shape[axis] - 2
        first, middle, last = (np.take(full, np.arange(start, start + size), axis) for start in range(3))
        full = first & middle & last
    kept: Coords = coords[~full[tuple(coords.T)]]
    return kept


def cap_voxels(coords: Coords, most: int, generator: np.random.Generator) -> tuple[Coords, int]:
    """No more than `most` voxels: halve the object around its middle, and if it is still too many take some at random.

    returns: voxels in lexicographic order, and the factor by which the object is smaller now: 1 or 2
    """
    if len(coords) <= most:
        return coords, 1
    middle = (coords.min(axis=0) + coords.max(axis=0)).astype(np.float32) / 2
    halved = np.unique(np.rint((coords - middle) / 2 + middle).astype(np.int32), axis=0)
    if len(halved) > most:
        halved = halved[np.sort(generator.permutation(len(halved))[:most])]
    return halved, 2
