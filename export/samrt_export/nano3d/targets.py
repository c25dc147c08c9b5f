"""What each network of nano 3D should answer for a solid: occupancy, latents, the field at the cubes' corners, Gaussians.

Nothing here is learned: latents are made of the solid's own distance, normal and colour. Lengths are in voxels of the grid
where a name ends in ``_voxels``, else in the solid's frame [-0.5, 0.5]^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt_export.nano3d.config import CONFIG, LATENT_MEAN, LATENT_STD
from samrt_export.nano3d.shapes import Array, Solid

Integers = NDArray[np.int32]

MARGIN_VOXELS = 0.1
"""Voxels that the surface misses by less than this count as occupied."""
REACH, REACH_MEAN, REACH_STD = 0.12, 0.8, 0.35
"""The structure latent is tanh(distance / REACH), shifted and scaled to unit spread."""
SDF_BIAS = -1 / CONFIG.resolution
"""What mesh extraction adds to the decoder's distances."""
SH_DC = 0.28209479177387814
CORNERS = np.array([(j & 1, j >> 1 & 1, j >> 2) for j in range(8)], np.int32)
"""Of a cube, in the decoder's order: x runs fastest."""
CHILDREN = np.array([(c >> 2, c >> 1 & 1, c & 1) for c in range(8)], np.int32)
"""Of a voxel, in the order of subdivision: z runs fastest."""


def lattice(side: int) -> Array:
    """(side^3, 3) centres of the cells of a grid of ``side``, x slowest."""
    ticks = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    return np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)


def voxel_centres(coords: Integers, grid: int = CONFIG.grid) -> Array:
    """coords: (N, 3) -> (N, 3) in the solid's frame."""
    return np.asarray((coords + 0.5) / grid - 0.5, np.float32)


def occupied(solid: Solid, grid: int = CONFIG.grid) -> Integers:
    """(N, 3) voxels that the surface passes through, in lexicographic order."""
    centres = lattice(grid)
    near = np.flatnonzero(np.abs(solid.distance(centres)) * grid < np.sqrt(3) / 2 + MARGIN_VOXELS)
    points = centres[near]
    reach = np.abs(solid.normal(points)).sum(axis=1) / 2 + MARGIN_VOXELS
    rows = near[np.abs(solid.distance(points)) * grid <= reach]
    return np.stack(np.unravel_index(rows, (grid,) * 3), axis=1).astype(np.int32)


def occupancy(coords: Integers, grid: int = CONFIG.grid) -> Array:
    """(1, grid, grid, grid) float32, 1 where occupied."""
    volume = np.zeros((1, grid, grid, grid), np.float32)
    volume[0][tuple(coords.T)] = 1
    return volume


def structure_latent(solid: Solid) -> Array:
    """(latent_grid^3, 8): the distance at the centres of the eight octants of each cell, squashed and normalised."""
    side = CONFIG.latent_grid
    value = (np.tanh(solid.distance(lattice(2 * side)) / REACH) - REACH_MEAN) / REACH_STD
    octants = value.reshape(side, 2, side, 2, side, 2).transpose(0, 2, 4, 1, 3, 5)
    return np.asarray(octants.reshape(side**3, 8), np.float32)


def voxel_latent(solid: Solid, coords: Integers) -> Array:
    """(N, 8) normalised: distance (voxels), normal, colour, and how far the surface bends away from its tangent."""
    centres, grid = voxel_centres(coords), CONFIG.grid
    distance = solid.distance(centres)
    bend = -distance
    for step in np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32) / grid:
        bend += solid.distance(centres + step) / 6
    columns = (
        np.clip(distance * grid, -1, 1)[:, None],
        solid.normal(centres),
        solid.colour(centres),
        bend[:, None] * grid,
    )
    raw = np.concatenate(columns, axis=1)
    return np.asarray((raw - LATENT_MEAN) / LATENT_STD, np.float32)


@dataclass(frozen=True)
class CubeTargets:
    """Of the 64 N cubes in the decoder's order, at their 8 corners.

    sdf: (64N, 8) raw distances in voxels, clipped. colours: (64N, 8, 6) colour and normal, 0..1. crossed: bool (64N,), cubes
    that the surface passes through.
    """

    sdf: Array
    colours: Array
    crossed: NDArray[np.bool_]


def cube_positions(coords: Integers) -> Integers:
    """coords: (N, 3) voxels -> (64N, 3) their cubes, row 8 * (8 * voxel + child) + grandchild."""
    children = (2 * coords[:, None] + CHILDREN).reshape(-1, 3)
    return np.asarray(2 * children[:, None] + CHILDREN, np.int32).reshape(-1, 3)


def cube_targets(solid: Solid, coords: Integers) -> CubeTargets:
    """Distances everywhere; colours are only right in cubes that the surface passes through, elsewhere they are 0."""
    side = CONFIG.resolution + 1
    corners = cube_positions(coords)[:, None] + CORNERS  # (64N, 8, 3)
    keys, inverse = np.unique(corners.reshape(-1, 3) @ np.array([side * side, side, 1]), return_inverse=True)
    points = np.stack(np.unravel_index(keys, (side,) * 3), axis=1).astype(np.float32) / CONFIG.resolution - 0.5
    distance = solid.distance(points) * CONFIG.grid
    rows = inverse.reshape(-1, 8)
    inside = distance[rows] < 0
    crossed = np.asarray(inside.any(axis=1) & ~inside.all(axis=1))
    needed = np.unique(rows[crossed])
    colours = np.zeros((len(points), 6), np.float32)
    colours[needed, :3] = solid.colour(points[needed])
    colours[needed, 3:] = 0.5 + 0.5 * solid.normal(points[needed])
    return CubeTargets((np.clip(distance, -1, 1) - SDF_BIAS)[rows].astype(np.float32), colours[rows], crossed)


@dataclass(frozen=True)
class GaussianTargets:
    """Of the G Gaussians of N voxels, activated. offsets: (N, G, 3) from the voxel's centre, frame units.

    colours: (N, G, 3) SH DC. scales: (N, G, 3) standard deviations. opacities: (N, G).
    """

    offsets: Array
    colours: Array
    scales: Array
    opacities: Array


def gaussian_targets(solid: Solid, coords: Integers, pattern: Array) -> GaussianTargets:
    """pattern: (G, 3) where the Gaussians of a voxel start from, frame units; from there they go to the surface.

    Those that cannot reach it from their voxel are to vanish.
    """
    grid = CONFIG.grid
    centres, reach = voxel_centres(coords)[:, None], np.float32(0.7 / grid)
    landed = solid.project((centres + pattern).reshape(-1, 3).astype(np.float32)).reshape(len(coords), len(pattern), 3)
    offsets = np.clip(landed - centres, -reach, reach)
    points = (centres + offsets).reshape(-1, 3)
    missed = np.abs(solid.distance(points)) * grid
    flatness = solid.normal(points) ** 2
    wide, thin = 0.9 / grid / np.sqrt(len(pattern)), 0.12 / grid
    scales = np.sqrt(wide**2 * (1 - flatness) + thin**2 * flatness)
    shape = (len(coords), len(pattern))
    return GaussianTargets(
        offsets,
        ((solid.colour(points) - 0.5) / SH_DC).reshape(*shape, 3),
        scales.reshape(*shape, 3),
        np.where(missed < 0.15, 0.95, 0.02).reshape(shape),
    )
