"""Coordinate frames of assets, and 4x4 matrices between them (column vectors: p' = M p).

- **z-up**: what the decoders give and every asset in memory holds; right-handed, the object in [-0.5, 0.5]^3
- **y-up**: what GLB and OBJ files hold; (x, y, z) of z-up is (x, z, -y) here
- **camera**: PyTorch3D's axes, x left, y up, z into the picture; the poses of objects lead here
- **world**: a scene's z-up frame; x right, y into the picture, z up, the camera at the origin. Written as a GLB it is
  glTF's own camera frame, so that viewers show the scene as the picture does
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt_engines.errors import InputError

Floats = NDArray[np.floating[Any]]

Y_UP_FROM_Z_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)
Z_UP_FROM_Y_UP = Y_UP_FROM_Z_UP.T.copy()
WORLD_FROM_CAMERA = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float64)


def as_matrix(matrix: ArrayLike, name: str = "matrix") -> NDArray[np.float64]:
    """A 4x4 affine matrix that keeps its handedness, as float64. Raises InputError."""
    values = np.asarray(matrix, np.float64)
    if values.shape != (4, 4):
        raise InputError(f"{name} is not a 4x4 matrix", got=f"shape {values.shape}", expected="shape (4, 4)")
    if not np.isfinite(values).all() or not np.allclose(values[3], (0, 0, 0, 1)):
        raise InputError(f"{name} is not affine", got=str(values.tolist()), expected="finite, the last row 0 0 0 1")
    if np.linalg.det(values[:3, :3]) <= 0:
        raise InputError(
            f"{name} mirrors or flattens what it moves",
            got=f"determinant {np.linalg.det(values[:3, :3]):.3g}",
            expected="a positive determinant",
        )
    return values


def moved(points: Floats, matrix: Floats) -> NDArray[np.float32]:
    """Points (N, 3) through a 4x4 matrix."""
    return (points @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)
