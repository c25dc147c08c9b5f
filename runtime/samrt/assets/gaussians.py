"""Gaussian splats with a colour of degree 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.assets.colors import rgb_from_dc
from samrt.assets.frames import as_matrix, moved
from samrt.assets.mesh import as_rows
from samrt_engines.errors import InputError

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians, checked when made: finite, of matching lengths, opacities 0..1, scales not negative.

    positions: float32 (N, 3), z-up
    colors_dc: float32 (N, 3), coefficients of degree 0: rgb = 0.5 + 0.28209479 * dc
    opacities: float32 (N,), 0..1
    scales: float32 (N, 3), standard deviations along the axes of each
    rotations: float32 (N, 4), quaternions wxyz of any length but 0
    Raises InputError.
    """

    positions: Floats
    colors_dc: Floats
    opacities: Floats
    scales: Floats
    rotations: Floats

    def __post_init__(self) -> None:
        count = len(as_rows(self.positions, "positions", (3,)))
        shapes = {"positions": (3,), "colors_dc": (3,), "opacities": (), "scales": (3,), "rotations": (4,)}
        for name, shape in shapes.items():
            object.__setattr__(self, name, as_rows(getattr(self, name), name, shape, count))
        if count == 0:
            return
        low, high = self.opacities.min(), self.opacities.max()
        if low < 0 or high > 1:
            raise InputError("opacities out of range", got=f"{low:.4g}..{high:.4g}", expected="0..1, not logits")
        if self.scales.min() < 0:
            raise InputError(
                "negative scales", got=f"{self.scales.min():.4g}", expected="standard deviations, not logs"
            )
        if not self.rotations.any(axis=1).all():
            raise InputError("rotations of length 0", got="0 0 0 0", expected="quaternions wxyz")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def rgb(self) -> Floats:
        """float32 (N, 3) display colours, 0..1."""
        return rgb_from_dc(self.colors_dc)

    def take(self, rows: NDArray[np.intp]) -> Gaussians:
        """Some of them, in the order of `rows`."""
        return Gaussians(
            self.positions[rows], self.colors_dc[rows], self.opacities[rows], self.scales[rows], self.rotations[rows]
        )

    def moved(self, matrix: ArrayLike) -> Gaussians:
        """All of them through a 4x4 matrix (column vectors): a Gaussian with covariance C gets A C A^T.

        Raises InputError for a matrix that mirrors.
        """
        affine = as_matrix(matrix)
        linear = affine[:3, :3]
        size = np.cbrt(np.linalg.det(linear))
        if np.allclose(linear @ linear.T, size**2 * np.eye(3), rtol=0, atol=1e-5 * size**2):
            turn = quaternion_from_rotation(linear / size)
            rotations, scales = multiply(turn, self.rotations), self.scales * size
        else:
            rotations, scales = _stretched(linear, self.rotations, self.scales)
        return Gaussians(moved(self.positions, affine), self.colors_dc, self.opacities, scales, rotations)


def rotation_from_quaternion(quaternions: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Rotation matrices (N, 3, 3) for column vectors from quaternions (N, 4) wxyz of any length."""
    w, x, y, z = (quaternions.astype(np.float64) / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def quaternion_from_rotation(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit quaternions (..., 4) wxyz, w >= 0, from rotation matrices (..., 3, 3).

    Each is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix (Bar-Itzhack 2000): exact at every angle.
    """
    r = np.moveaxis(rotations, (-2, -1), (0, 1))
    k = np.empty((*rotations.shape[:-2], 4, 4))
    k[..., 0, 0] = r[0, 0] + r[1, 1] + r[2, 2]
    k[..., 1, 1] = r[0, 0] - r[1, 1] - r[2, 2]
    k[..., 2, 2] = r[1, 1] - r[0, 0] - r[2, 2]
    k[..., 3, 3] = r[2, 2] - r[0, 0] - r[1, 1]
    off = {(0, 1): r[2, 1] - r[1, 2], (0, 2): r[0, 2] - r[2, 0], (0, 3): r[1, 0] - r[0, 1]}
    off |= {(1, 2): r[0, 1] + r[1, 0], (1, 3): r[0, 2] + r[2, 0], (2, 3): r[1, 2] + r[2, 1]}
    for (row, column), values in off.items():
        k[..., row, column] = k[..., column, row] = values
    unit = np.linalg.eigh(k)[1][..., -1]
    return np.asarray(np.where(unit[..., :1] < 0, -unit, unit))


def multiply(left: NDArray[np.float64], right: Floats) -> Floats:
    """Quaternion products wxyz: (4,) by (N, 4), the rotation `right` and then `left`."""
    a, b, c, d = left
    w, x, y, z = right.T.astype(np.float64)
    product = (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )
    return np.stack(product, axis=1).astype(np.float32)


def _stretched(linear: NDArray[np.float64], rotations: Floats, scales: Floats) -> tuple[Floats, Floats]:
    """Rotations and scales of Gaussians after a linear map: (A R S) has the axes U and the deviations D of its SVD."""
    shapes = linear @ (rotation_from_quaternion(rotations) * scales[:, None, :])
    axes, deviations, _ = np.linalg.svd(shapes)
    axes[np.linalg.det(axes) < 0, :, 2] *= -1  # an axis has no sign, and a quaternion cannot mirror
    return quaternion_from_rotation(axes).astype(np.float32), deviations.astype(np.float32)
