"""A triangle mesh, or a point cloud: a mesh without faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.assets.frames import as_matrix, moved
from samrt_engines.errors import InputError

_ROUNDING = 1e-3  # how far a colour may lie outside 0..1 and is clipped rather than refused


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices with faces and colours, checked when made: finite, of matching lengths, no face past the vertices.

    vertices: float32 (V, 3), z-up
    faces: int32 (F, 3), counter-clockwise from outside; (0, 3) for a point cloud
    colors: float32 (V, 3) display (sRGB) RGB, 0..1, or None
    Raises InputError.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colors: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        vertices = as_rows(self.vertices, "vertices", (3,))
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", _as_faces(self.faces, len(vertices)))
        if self.colors is not None:
            colors = as_rows(self.colors, "colors", (3,), len(vertices))
            if colors.size and (colors.min() < -_ROUNDING or colors.max() > 1 + _ROUNDING):
                raise InputError("colors out of range", got=f"{colors.min():.4g}..{colors.max():.4g}", expected="0..1")
            object.__setattr__(self, "colors", np.clip(colors, 0, 1))

    def __len__(self) -> int:
        """The number of vertices."""
        return len(self.vertices)

    @classmethod
    def points(cls, positions: ArrayLike, colors: ArrayLike | None = None) -> Mesh:
        """A point cloud. positions: (N, 3); colors: (N, 3), 0..1."""
        return cls(np.asarray(positions), np.empty((0, 3), np.int32), None if colors is None else np.asarray(colors))

    def moved(self, matrix: ArrayLike) -> Mesh:
        """The mesh through a 4x4 matrix (column vectors). Raises InputError for one that mirrors."""
        return Mesh(moved(self.vertices, as_matrix(matrix)), self.faces, self.colors)


def face_normals(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """Normals of faces, as long as twice their areas: float32 (F, 3)."""
    corners = vertices[faces]  # F 3 3
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(np.float32)


def vertex_normals(mesh: Mesh) -> NDArray[np.float32]:
    """Unit normals of vertices, means of their faces' weighted by area: float32 (V, 3); (0, 0, 1) where there are none."""
    across = face_normals(mesh.vertices, mesh.faces)
    at, count = mesh.faces.ravel(), len(mesh)
    sums = np.stack([np.bincount(at, np.repeat(across[:, axis], 3), count) for axis in range(3)], axis=1)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    sums[lengths[:, 0] == 0] = (0, 0, 1)
    return (sums / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def as_rows(values: ArrayLike, name: str, shape: tuple[int, ...], count: int | None = None) -> NDArray[np.float32]:
    """An array of one row for each point, as contiguous float32. Raises InputError for another shape, NaN, infinity."""
    rows: NDArray[Any] = np.asarray(values)
    expected = ("N" if count is None else count, *shape)
    if rows.ndim != 1 + len(shape) or rows.shape[1:] != shape or count not in (None, len(rows)):
        raise InputError(f"{name} have the wrong shape", got=str(rows.shape), expected=_text(expected))
    if rows.dtype.kind not in "fiu":
        raise InputError(f"{name} are not numbers", got=f"dtype {rows.dtype}", expected="float32")
    with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused like it
        rows = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(rows).all():
        bad = np.count_nonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        raise InputError(f"{name} are not finite", got=f"NaN or infinity in {bad} of {len(rows)} rows")
    return rows


def _text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _as_faces(values: ArrayLike, vertices: int) -> NDArray[np.int32]:
    faces: NDArray[Any] = np.asarray(values)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise InputError("faces are not triangles", got=f"{faces.dtype} {faces.shape}", expected="int32 (F, 3)")
    if faces.size and (faces.min() < 0 or faces.max() >= vertices):
        raise InputError(
            "faces name vertices that are not there", got=f"{faces.min()}..{faces.max()}", expected=f"0..{vertices - 1}"
        )
    return np.ascontiguousarray(faces, np.int32)
