"""Where the camera of a preview stands, and the z-buffer it draws into."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

EMPTY = np.uint64(2**64 - 1)
_FILL = 0.94  # of the view's half width is the radius of what is drawn
_STRAY = 0.001  # of the points at each end may be strays
_DEPTH_STEPS = 2.0**30


@dataclass(frozen=True)
class View:
    """A square view without perspective.

    points: float32 (N, 3): x right and y down in pixels, z away from the camera in radii of the object (about -1..1)
    axes: float64 (3, 3), rows right, down and away, in the frame of the asset
    pixels_per_unit: the scale; size: width and height in pixels
    """

    points: Floats
    axes: NDArray[np.float64]
    pixels_per_unit: float
    size: int


def looking(positions: Floats, azimuth: float, elevation: float, size: int) -> View:
    """Positions (N, 3), z-up, as a camera sees them that turns about their middle. Angles in degrees; size in pixels."""
    turn, lift = np.radians([azimuth, elevation])
    right = np.array([np.cos(turn), np.sin(turn), 0])
    away = np.array([-np.sin(turn) * np.cos(lift), np.cos(turn) * np.cos(lift), -np.sin(lift)])
    axes = np.stack([right, np.cross(away, right), away])
    low, high = _box(positions)
    centre = (low + high) / 2
    inside = ((positions >= low) & (positions <= high)).all(axis=1)
    radius = float(np.linalg.norm(positions[inside] - centre, axis=1).max(initial=0)) or 1.0
    scale = _FILL * size / 2 / radius
    seen = (positions - centre) @ axes.T
    return View((seen * (scale, scale, 1 / radius) + (size / 2, size / 2, 0)).astype(np.float32), axes, scale, size)


def _box(positions: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The corners of what the picture must hold: of everything, unless that is mostly the way to a few stray points."""
    rank = int(_STRAY * len(positions))
    ordered = np.partition(positions, sorted({0, rank, len(positions) - 1 - rank, len(positions) - 1}), axis=0)
    whole, most = ordered[[0, -1]].astype(np.float64), ordered[[rank, -1 - rank]].astype(np.float64)
    low, high = whole if np.ptp(whole, axis=0).max() <= 2 * np.ptp(most, axis=0).max() else most
    return low, high


def empty_buffer(size: int) -> NDArray[np.uint64]:
    """A z-buffer: for each pixel the nearest depth in the upper 32 bits and its owner in the lower."""
    return np.full(size * size, EMPTY)


def keep_nearest(
    buffer: NDArray[np.uint64], pixels: NDArray[np.int64], depths: Floats, owners: NDArray[np.int64]
) -> None:
    """Put owners at pixels where they are nearer than what is there. Ties go to the lower owner."""
    steps = np.clip((depths.astype(np.float64) + 2) / 4, 0, 1) * _DEPTH_STEPS
    keys = (steps.astype(np.uint64) << np.uint64(32)) | owners.astype(np.uint64)
    np.minimum.at(buffer, pixels, keys)


def owners_of(buffer: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The owner at each pixel, or -1."""
    return np.where(buffer == EMPTY, -1, (buffer & np.uint64(0xFFFFFFFF)).astype(np.int64))


def depths_of(buffer: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The depth at each pixel, in radii; infinite where there is nothing."""
    depths = (buffer >> np.uint64(32)) / _DEPTH_STEPS * 4 - 2
    return np.where(buffer == EMPTY, np.inf, depths)
