"""Triangles drawn into a preview: a z-buffer of faces, then colour and light for each pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from samrt.assets.camera import View, empty_buffer, keep_nearest, owners_of
from samrt.assets.mesh import Mesh, vertex_normals

Floats = NDArray[np.float32]

CLAY = (0.72, 0.74, 0.78)
"""The colour of what has none."""

_LIGHT = np.array([-0.4, -0.6, -0.7]) / np.linalg.norm([-0.4, -0.6, -0.7])  # from the upper left, behind the camera
_AMBIENT = 0.4
_AT_ONCE = 2_000_000  # pixels tested together


def draw_triangles(mesh: Mesh, view: View) -> tuple[Floats, NDArray[np.bool_]]:
    """Both sides of every face.

    returns: float32 (S, S, 3) colours 0..1 and bool (S, S), where there is a face
    """
    corners = view.points[mesh.faces]  # F 3 3
    buffer = empty_buffer(view.size)
    for faces, pixels in _candidates(corners, view.size):
        weights = _barycentric(corners[faces], pixels, view.size)
        inside = (weights >= -1e-6).all(axis=1)
        faces, pixels, weights = faces[inside], pixels[inside], weights[inside]
        depths = np.einsum("ij,ij->i", weights, corners[faces, :, 2])
        keep_nearest(buffer, pixels, depths.astype(np.float32), faces)
    owners = owners_of(buffer)
    pixels = np.flatnonzero(owners >= 0)
    faces = owners[pixels]
    weights = _barycentric(corners[faces], pixels, view.size)
    rows = mesh.faces[faces]
    normals = np.einsum("ij,ijk->ik", weights, vertex_normals(mesh)[rows]) @ view.axes.T
    colors = np.broadcast_to(np.array(CLAY), (len(pixels), 3))
    if mesh.colors is not None:
        colors = np.einsum("ij,ijk->ik", weights, mesh.colors[rows])
    canvas = np.zeros((view.size * view.size, 3), np.float32)
    canvas[pixels] = colors * _lit(normals)[:, None]
    return canvas.reshape(view.size, view.size, 3), (owners >= 0).reshape(view.size, view.size)


def _lit(normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness 0..1 of surfaces with these normals, (right, down, away), the side that the camera sees."""
    lengths = np.linalg.norm(normals, axis=1)
    facing = normals / np.where(lengths == 0, 1, lengths)[:, None] * np.where(normals[:, 2:] > 0, -1, 1)
    return np.asarray(_AMBIENT + (1 - _AMBIENT) * np.clip(facing @ _LIGHT, 0, 1))


def _candidates(corners: Floats, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of faces and pixels that may lie in them: faces of about one size together, each with its square of pixels."""
    edge = np.float32(1e-3)  # a middle on the edge of a face belongs to it, however it is rounded
    low = np.ceil(corners[..., :2].min(axis=1) - 0.5 - edge).astype(np.int64)  # the first pixel whose middle is inside
    high = np.floor(corners[..., :2].max(axis=1) - 0.5 + edge).astype(np.int64)
    low, high = np.maximum(low, 0), np.minimum(high, size - 1)
    sides = (high - low).max(axis=1) + 1
    sides[(high < low).any(axis=1)] = 0  # out of the picture, or between the middles
    side = 1
    while side < 2 * size:
        faces = np.flatnonzero((sides > side // 2) & (sides <= side))
        square = np.stack(np.divmod(np.arange(side * side), side)[::-1], axis=1)
        block = max(_AT_ONCE // side**2, 1)
        for start in range(0, len(faces), block):
            part = faces[start : start + block]
            at = low[part][:, None] + square  # faces, pixels of the square, xy
            wanted = (at <= high[part][:, None]).all(axis=2)
            yield np.repeat(part, wanted.sum(axis=1)), (at[..., 1] * size + at[..., 0])[wanted]
        side *= 2


def _barycentric(corners: Floats, pixels: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Weights (P, 3) of the corners (P, 3, 3) at the middles of pixels; all -1 for a face that is seen edge-on."""
    x, y = pixels % size + 0.5, pixels // size + 0.5
    ax, ay, bx, by, cx, cy = corners[..., :2].reshape(-1, 6).T.astype(np.float64)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    second = (x - ax) * (cy - ay) - (y - ay) * (cx - ax)
    third = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    flat = area == 0
    weights = np.stack([area - second - third, second, third], axis=1) / np.where(flat, 1, area)[:, None]
    weights[flat] = -1
    return weights
