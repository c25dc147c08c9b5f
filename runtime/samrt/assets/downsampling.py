"""Fewer points: one for each voxel, every k-th, or a random part. Meshes give their vertices; Gaussians stay Gaussians."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from samrt.assets.gaussians import Gaussians
from samrt.assets.mesh import Mesh
from samrt_engines.errors import InputError

Asset = TypeVar("Asset", bound=Mesh | Gaussians)


def downsample_voxel(asset: Asset, size: float) -> Asset:
    """One point for each voxel that holds some, in the order of the voxels (x, then y, then z).

    Points get the mean position and the mean colour of the voxel's. Of Gaussians the most opaque stays as it is (of equal
    ones the first), because a mean of rotations and scales is no Gaussian of the surface.

    size: edge of a voxel, in the asset's units; its corner is a multiple of it
    Raises InputError for a size that is not above 0, or so small that voxels cannot be numbered.
    """
    _check_some(asset)
    if not (math.isfinite(size) and size > 0):
        raise InputError("the voxel size is out of range", got=str(size), expected="above 0")
    positions = asset.vertices if isinstance(asset, Mesh) else asset.positions
    cells = np.floor(positions.astype(np.float64) / size)
    if np.abs(cells).max() >= 2**53:
        raise InputError("the voxel size is too small for these points", got=str(size), expected="a larger one")
    order, starts = _groups(cells)
    if isinstance(asset, Gaussians):
        return cast("Asset", asset.take(_most_opaque(asset.opacities, order, starts)))
    colors = None if asset.colors is None else _means(asset.colors, order, starts)
    return cast("Asset", Mesh.points(_means(asset.vertices, order, starts), colors))


def downsample_uniform(asset: Asset, every: int) -> Asset:
    """The first point and every `every`-th after it, in the order of the file. Raises InputError for less than 1."""
    _check_some(asset)
    if every < 1:
        raise InputError("the step is out of range", got=str(every), expected="a whole number of at least 1")
    return _taken(asset, np.arange(0, len(asset), every))


def downsample_random(asset: Asset, keep: float, *, seed: int = 0) -> Asset:
    """A random part of the points, in the order of the file.

    keep: the part, above 0, at most 1; seed: the same seed gives the same points, not below 0
    Raises InputError.
    """
    _check_some(asset)
    if not 0 < keep <= 1:
        raise InputError("the part to keep is out of range", got=str(keep), expected="above 0, at most 1")
    if seed < 0:
        raise InputError("the seed is out of range", got=str(seed), expected="0 or more")
    count = round(keep * len(asset))
    if not count:
        raise InputError("no point would be left", got=f"{keep} of {len(asset)}", expected="at least one")
    return _taken(asset, np.sort(np.random.default_rng(seed).choice(len(asset), count, replace=False)))


def _check_some(asset: Mesh | Gaussians) -> None:
    if not len(asset):
        raise InputError("nothing to downsample", got="an empty asset", expected="at least one point")


def _taken(asset: Asset, rows: NDArray[np.intp]) -> Asset:
    if isinstance(asset, Gaussians):
        return cast("Asset", asset.take(rows))
    return cast("Asset", Mesh.points(asset.vertices[rows], None if asset.colors is None else asset.colors[rows]))


def _groups(cells: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows sorted by cell, those of one cell in their order, and where each cell's begin."""
    order = np.lexsort((cells[:, 2], cells[:, 1], cells[:, 0]))
    ordered = cells[order]
    changes = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, np.concatenate([[0], np.flatnonzero(changes) + 1])


def _means(values: NDArray[np.float32], order: NDArray[np.intp], starts: NDArray[np.intp]) -> NDArray[np.float32]:
    sums = np.add.reduceat(values[order].astype(np.float64), starts, axis=0)
    return (sums / np.diff(starts, append=len(order))[:, None]).astype(np.float32)


def _most_opaque(opacities: NDArray[np.float32], order: NDArray[np.intp], starts: NDArray[np.intp]) -> NDArray[np.intp]:
    ordered = opacities[order]
    counts = np.diff(starts, append=len(order))
    highest = np.flatnonzero(ordered == np.repeat(np.maximum.reduceat(ordered, starts), counts))
    owner = np.repeat(np.arange(len(starts)), counts)[highest]
    return order[highest[np.unique(owner, return_index=True)[1]]]
