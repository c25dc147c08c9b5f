"""Where an object stands in the picture's camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt.assets.frames import Z_UP_FROM_Y_UP
from samrt.assets.gaussians import quaternion_from_rotation
from samrt.numbers import PoseNumbers
from samrt_engines.errors import InputError

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pose:
    """From the object's frame to the camera's, PyTorch3D's axes: x left, y up, z into the picture.

    rotation: float32 (4,), unit quaternion wxyz of R in p_camera = (scale * p) @ R + translation, points as rows: for points
        as columns the rotation is R transposed
    translation: float32 (3,), in the pointmap's unit
    scale: float32 (3,), three times the same
    matrix_z_up, matrix_y_up: float64 (4, 4), p_camera = matrix @ (x, y, z, 1), points as columns: for what is in memory and
        in PLY files (z-up), and for what is in GLB and OBJ files (y-up)
    """

    rotation: Float32Array
    translation: Float32Array
    scale: Float32Array
    matrix_z_up: NDArray[np.float64]
    matrix_y_up: NDArray[np.float64]


def decode_pose(
    tokens: Mapping[str, Float32Array],
    numbers: PoseNumbers,
    *,
    scene_scale: float,
    scene_shift: Float32Array,
    shrunk: int,
) -> Pose:
    """Read the sampled pose.

    tokens: rotation_6d, translation, scale, of any shape with 6, 3, 3 values
    scene_scale, scene_shift: of the pointmap, see `samrt.reconstruct.pointmap`
    shrunk: by how much the object was made smaller to fit the grid
    Raises InputError for a rotation that is none.
    """
    raw = tokens["rotation_6d"].reshape(6).astype(np.float64)
    rotation = rotation_from_6d(raw * np.array(numbers.rotation_std) + np.array(numbers.rotation_mean))
    translation = tokens["translation"].reshape(3).astype(np.float64) * scene_scale + scene_shift
    size = float(np.exp(tokens["scale"].reshape(3).astype(np.float64)).mean()) * scene_scale * shrunk
    matrix = np.eye(4)
    matrix[:3, :3] = size * rotation.T
    matrix[:3, 3] = translation
    return Pose(
        rotation=quaternion_from_rotation(rotation).astype(np.float32),
        translation=translation.astype(np.float32),
        scale=np.full(3, size, np.float32),
        matrix_z_up=matrix,
        matrix_y_up=matrix @ Z_UP_FROM_Y_UP,
    )


def rotation_from_6d(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rotation matrix (3, 3) whose first two columns are two 3-vectors made orthonormal, in order (Gram-Schmidt).

    Raises InputError where they are parallel or zero.
    """
    first, second = values[:3], values[3:]
    length = np.linalg.norm(first)
    column = first / length if length > 0 else first
    rest = second - (column @ second) * column
    other = np.linalg.norm(rest)
    if not (length > 1e-8 and other > 1e-8):
        raise InputError(
            "the sampled rotation is none",
            got=f"{values.round(6).tolist()}",
            expected="two directions",
            fix="another seed",
        )
    return np.stack([column, rest / other, np.cross(column, rest / other)], axis=1)
