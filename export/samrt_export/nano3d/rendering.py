"""Photographs of solids: a picture, the object's mask, the pointmap, and the pose that a model should find. numpy only.

The camera's axes are PyTorch3D's: x left, y up, z forward. A solid stands on a ground plane, turned about the vertical.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt_export.nano3d.shapes import Array, Solid, solid_from_seed, yaw_matrix

SIDE = 160
"""Side of a picture in pixels."""
FIELD_OF_VIEW = math.radians(40)
STEPS, NEAR, FAR = 40, 0.6, 6.0
"""Sphere tracing, in units of the solid's own frame."""
LIGHT = np.array([-0.45, 0.35, 0.82], np.float32)


@dataclass(frozen=True)
class Photo:
    """One picture and all that is known about it.

    image: uint8 (S, S, 3) RGB. mask: bool (S, S). pointmap: float32 (S, S, 3) camera coordinates, NaN where there is nothing.
    rotation: (3, 3) and translation: (3,), scale: p_camera = scale * rotation @ p_solid + translation.
    """

    solid: Solid
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    pointmap: NDArray[np.float32]
    rotation: Array
    translation: Array
    scale: float


@dataclass(frozen=True)
class Camera:
    """position: (3,) in the solid's frame. axes: (3, 3) rows left, up, forward in the solid's frame."""

    position: Array
    axes: Array
    scale: float


def place_camera(rng: np.random.Generator) -> Camera:
    """A camera somewhat above, anywhere around, that looks almost at the solid."""
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(15, 40))
    direction = np.array([math.cos(elevation), 0, math.sin(elevation)], np.float32) @ yaw_matrix(azimuth).T
    position = direction * rng.uniform(1.5, 1.9)
    forward = rng.uniform(-0.1, 0.1, 3) - position
    forward /= np.linalg.norm(forward)
    left = np.cross(np.array([0, 0, 1.0]), forward)
    left /= np.linalg.norm(left)
    axes = np.stack([left, np.cross(forward, left), forward]).astype(np.float32)
    return Camera(position.astype(np.float32), axes, float(rng.uniform(0.5, 2)))


def view_rays(axes: Array, side: int) -> Array:
    """(side * side, 3) unit directions through the pixels' centres, row by row."""
    reach = math.tan(FIELD_OF_VIEW / 2)
    across = ((np.arange(side) + 0.5) / side * 2 - 1) * reach
    up, left = np.meshgrid(-across, -across, indexing="ij")
    rays = np.stack([left, up, np.ones_like(up)], axis=-1).reshape(-1, 3) @ axes
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True), np.float32)


def trace(solid: Solid, start: Array, rays: Array) -> Array:
    """(R,) distance along each ray to the solid, inf where it is missed."""
    along = np.full(len(rays), NEAR, np.float32)
    result = np.full(len(rays), np.inf, np.float32)
    live = np.arange(len(rays))
    for _ in range(STEPS):
        distance = solid.distance(start + along[live, None] * rays[live])
        along[live] += distance
        hit = distance < 1e-3
        result[live[hit]] = along[live[hit]]
        live = live[~hit & (along[live] < 3.0)]
    return result


def photograph(seed: int, side: int = SIDE) -> Photo:
    """Object ``seed`` as a camera drawn from the same number sees it."""
    rng = np.random.default_rng((seed, 1))
    solid, camera = solid_from_seed(seed), place_camera(rng)
    rays = view_rays(camera.axes, side)
    to_solid = trace(solid, camera.position, rays)
    floor = -0.5 + _lowest(solid)
    with np.errstate(divide="ignore"):
        to_ground = (floor - camera.position[2]) / rays[:, 2]
    to_ground = np.where((to_ground > 0) & (to_ground < FAR), to_ground, np.inf)
    mask = to_solid < to_ground
    depth = np.minimum(to_solid, to_ground)
    image = _shade(solid, camera, rays, depth, mask, rng)
    seen = np.where(np.isfinite(depth), depth, np.nan)[:, None]
    pointmap = camera.scale * seen * (rays @ camera.axes.T)
    return Photo(
        solid,
        image.reshape(side, side, 3),
        mask.reshape(side, side),
        pointmap.reshape(side, side, 3).astype(np.float32),
        camera.axes,
        -camera.scale * camera.axes @ camera.position,
        camera.scale,
    )


def _lowest(solid: Solid) -> float:
    """How far the solid's lowest point lies above z = -0.5, to a hundredth."""
    heights = np.arange(-0.5, 0.5, 0.01, dtype=np.float32)
    ticks = np.arange(-0.4, 0.41, 0.04, dtype=np.float32)
    points = np.stack(np.meshgrid(ticks, ticks, heights, indexing="ij"), axis=-1)
    inside = (solid.distance(points.reshape(-1, 3)) <= 0.02).reshape(points.shape[:3]).any(axis=(0, 1))
    return float(heights[inside.argmax()] + 0.5)


def _shade(
    solid: Solid, camera: Camera, rays: Array, depth: Array, mask: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """uint8 (R, 3): the solid lit from one side, on a noisy ground under a plain sky."""
    sky, ground = rng.uniform(0.55, 0.95, 3), rng.uniform(0.3, 0.8) + rng.uniform(-0.08, 0.08, 3)
    picture = np.where(np.isfinite(depth)[:, None], ground, sky) + rng.normal(0, 0.015, (len(rays), 3))
    points = camera.position + depth[mask, None] * rays[mask]
    light = 0.45 + 0.55 * np.maximum(solid.normal(points) @ (LIGHT / np.linalg.norm(LIGHT)), 0)
    picture[mask] = solid.colour(points) * light[:, None] + rng.normal(0, 0.01, (len(points), 3))
    return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)
