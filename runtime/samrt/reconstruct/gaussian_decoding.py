"""The Gaussian decoder's channels to Gaussians."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from samrt.assets import Gaussians
from samrt.numbers import GaussianNumbers

Float32Array = NDArray[np.float32]


def decode_gaussians(
    outputs: Mapping[str, Float32Array], coords: NDArray[np.int32], grid: int, numbers: GaussianNumbers
) -> Gaussians:
    """Activate the raw channels of G Gaussians a voxel.

    outputs: offsets (N, G, 3), from the middle of the voxel; colors (N, G, 3), coefficients of degree 0; scales (N, G, 3),
        rotations (N, G, 4), opacities (N, G, 1), raw
    coords: int32 (N, 3)
    returns: N * G Gaussians, z-up, in [-0.5, 0.5]^3
    """
    middles = (coords.astype(np.float32) + np.float32(0.5)) / np.float32(grid) - np.float32(0.5)
    bias = inverse_softplus(numbers.scale_bias)
    scales = softplus(outputs["scales"] + np.float32(bias))
    rotations = outputs["rotations"] * np.float32(numbers.rotation_gain)
    rotations[..., 0] += 1
    opacity_logit = np.log(numbers.opacity_bias / (1 - numbers.opacity_bias))
    return Gaussians(
        positions=(outputs["offsets"] + middles[:, None]).reshape(-1, 3),
        colors_dc=outputs["colors"].reshape(-1, 3),
        opacities=sigmoid(outputs["opacities"] + np.float32(opacity_logit)).reshape(-1),
        scales=np.sqrt(scales**2 + np.float32(numbers.min_kernel) ** 2).reshape(-1, 3),
        rotations=rotations.reshape(-1, 4),
    )


def softplus(values: Float32Array) -> Float32Array:
    """log(1 + e^x), for large x too."""
    return np.logaddexp(values, np.float32(0)).astype(np.float32)


def inverse_softplus(value: float) -> float:
    """The x of log(1 + e^x) = value."""
    return float(value + np.log(-np.expm1(-value)))


def sigmoid(values: Float32Array) -> Float32Array:
    """1 / (1 + e^-x), without overflow."""
    return np.exp(-np.logaddexp(np.float32(0), -values)).astype(np.float32)
