"""Points and Gaussians drawn into a preview as round splats.

First a z-buffer finds the front surface; then every splat near it adds its colour, and hollows are darkened. That is no
renderer of Gaussians, which would blend all of them in depth order: it shows what they look like in a second or two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from samrt.assets.camera import View, depths_of, empty_buffer, keep_nearest
from samrt.assets.gaussians import Gaussians
from samrt.assets.mesh import Mesh
from samrt.assets.triangles import CLAY

Floats = NDArray[np.float32]

_MAX_RADIUS = 32  # pixels
_DEVIATIONS = 1.5  # a Gaussian is drawn so far out
_NEAR_SURFACE = 0.03  # in radii of the object: what lies so far behind the front adds its colour
_AT_ONCE = 2_000_000
_BUDGET = 9_000_000  # pixels of all splats together
_SEED = 20_251_119  # an odd one: points made with the same numbers would be picked by their place
_HOLLOW = 12.0  # how dark


def draw_points(mesh: Mesh, view: View) -> tuple[Floats, NDArray[np.bool_]]:
    """Vertices as discs that about touch. Returns colours (S, S, 3) 0..1 and bool (S, S), where there is something."""
    spacing = view.size / np.sqrt(len(mesh)) * 1.2  # a surface that fills the picture's square, and some overlap
    radii = np.full(len(mesh), np.clip(spacing, 1.5, _MAX_RADIUS), np.float32)
    colors = np.broadcast_to(np.array(CLAY, np.float32), (len(mesh), 3)) if mesh.colors is None else mesh.colors
    return _draw(view, radii, colors, np.ones(len(mesh), np.float32))


def draw_gaussians(gaussians: Gaussians, view: View) -> tuple[Floats, NDArray[np.bool_]]:
    """Gaussians as discs of their mean size, the faintest left out. Returns what `draw_points` does."""
    deviations = np.sort(gaussians.scales, axis=1)[:, 1:].mean(axis=1)  # of the two axes that show most
    radii = np.clip(deviations * view.pixels_per_unit * _DEVIATIONS, 0.7, _MAX_RADIUS)
    return _draw(view, radii, gaussians.rgb, gaussians.opacities)


def _draw(view: View, radii: Floats, colors: Floats, opacities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    radii, drawn = _within_budget(radii)
    solid = drawn & (opacities >= 0.5 * np.median(opacities[drawn]))
    buffer = empty_buffer(view.size)
    for rows, pixels, _ in _discs(view, radii, solid):
        keep_nearest(buffer, pixels, view.points[rows, 2], rows)
    square = (view.size, view.size)
    front = _closed(depths_of(buffer).reshape(square)).ravel()
    sums = np.zeros((view.size * view.size, 4))
    for rows, pixels, shares in _discs(view, radii, drawn):
        near = view.points[rows, 2] <= front[pixels] + _NEAR_SURFACE
        rows, pixels, weights = rows[near], pixels[near], (shares * opacities[rows])[near]
        for channel in range(3):
            sums[:, channel] += np.bincount(pixels, weights * colors[rows, channel], len(sums))
        sums[:, 3] += np.bincount(pixels, weights, len(sums))
    bare = np.isfinite(front) & (sums[:, 3] == 0)
    sums[bare] = _around(sums.reshape(*square, 4)).sum(axis=0).reshape(-1, 4)[bare]
    seen = np.isfinite(front) & (sums[:, 3] > 0)
    canvas = sums[:, :3] / np.where(seen, sums[:, 3], 1)[:, None]
    canvas = canvas.reshape(*square, 3) * _hollows(front.reshape(square))[..., None]
    return canvas.astype(np.float32), seen.reshape(square)


def _within_budget(radii: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Radii, smaller where there are so many splats that they cover each other anyway, and which of the splats to draw."""
    pixels = _pixels(radii)
    if pixels > _BUDGET:
        smaller = np.maximum(np.floor(radii * np.sqrt(_BUDGET / pixels)), 1)  # whole, because their squares are
        radii = np.minimum(radii, smaller).astype(np.float32)
        pixels = _pixels(radii)
    if pixels > _BUDGET:
        return radii, np.random.default_rng(_SEED).random(len(radii)) < _BUDGET / pixels
    return radii, np.ones(len(radii), np.bool_)


def _pixels(radii: Floats) -> float:
    return float(((2 * np.ceil(radii) + 1) ** 2).sum())


def _discs(
    view: View, radii: Floats, wanted: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
    """Rows and the pixels of their discs, with a share 0..1 that falls off from the middle, a blob of one reach at a time."""
    reach = np.ceil(radii).astype(np.int64)
    for size in np.unique(reach[wanted]):
        span = np.arange(-size, size + 1)
        offsets = np.stack(np.meshgrid(span, span), axis=-1).reshape(-1, 2)
        members = np.flatnonzero(wanted & (reach == size))
        block = max(_AT_ONCE // len(offsets), 1)
        for start in range(0, len(members), block):
            part = members[start : start + block]
            middles = view.points[part, :2]
            at = np.floor(middles).astype(np.int64)[:, None] + offsets  # members, pixels, xy
            squares = ((at + 0.5 - middles[:, None]) ** 2).sum(axis=2) / radii[part, None] ** 2
            inside = (squares <= 1) | (offsets == 0).all(axis=1)
            inside &= ((at >= 0) & (at < view.size)).all(axis=2)
            rows = np.repeat(part, inside.sum(axis=1))
            pixels = (at[..., 1] * view.size + at[..., 0])[inside]
            yield rows, pixels, np.exp(-0.5 * _DEVIATIONS**2 * squares[inside]).astype(np.float32)


def _closed(front: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depths (S, S) with pinholes closed: a pixel far behind 5 of the 8 about it takes their depth."""
    for _ in range(3):
        beside = np.partition(_around(front, np.inf), 4, axis=0)[4]
        front = np.where(front > beside + _NEAR_SURFACE, beside, front)
    return front


def _around(plane: NDArray[np.float64], outside: float = 0) -> NDArray[np.float64]:
    """The 8 neighbours of each pixel: (8, S, S, ...)."""
    height, width = plane.shape[:2]
    wide = np.pad(plane, [(1, 1), (1, 1)] + [(0, 0)] * (plane.ndim - 2), constant_values=outside)
    steps = [step for step in np.ndindex(3, 3) if step != (1, 1)]
    return np.stack([wide[down : down + height, right : right + width] for down, right in steps])


def _hollows(front: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness 0..1 of pixels: lower, the farther they lie behind those around them (eye-dome lighting, Boucheny 2009)."""
    around = np.pad(front, 3, constant_values=np.inf)
    height, width = front.shape
    behind = np.zeros_like(front)
    steps = [(-3, 0), (3, 0), (0, -3), (0, 3), (-2, -2), (2, 2), (-2, 2), (2, -2)]
    with np.errstate(invalid="ignore"):  # inf - inf where there is nothing, which nobody sees
        for down, right in steps:
            beside = around[3 + down : 3 + down + height, 3 + right : 3 + right + width]
            behind += np.clip(front - beside, 0, 0.2) / len(steps)
    return np.asarray(np.exp(-_HOLLOW * np.nan_to_num(behind)))
