"""Colours: display (sRGB) and linear light, and the spherical-harmonics constant of Gaussians."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SH_C0 = 0.28209479177387814
"""The spherical harmonic of degree 0, 1 / (2 sqrt(pi)): rgb = 0.5 + SH_C0 * dc."""


def rgb_from_dc(dc: Floats) -> NDArray[np.float32]:
    """Display colours 0..1 from coefficients of degree 0, clipped."""
    return np.asarray(np.clip(0.5 + SH_C0 * dc, 0, 1), np.float32)


def dc_from_rgb(rgb: Floats) -> NDArray[np.float32]:
    """Coefficients of degree 0 from display colours 0..1."""
    return ((rgb - 0.5) / SH_C0).astype(np.float32)


def linear_from_srgb(srgb: Floats) -> NDArray[np.float32]:
    """Linear light from display colours, 0..1 (IEC 61966-2-1)."""
    low = srgb / 12.92
    high = ((np.maximum(srgb, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(srgb <= 0.04045, low, high).astype(np.float32)


def srgb_from_linear(linear: Floats) -> NDArray[np.float32]:
    """Display colours from linear light, 0..1 (IEC 61966-2-1)."""
    low = linear * 12.92
    high = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, low, high).astype(np.float32)


def to_uint8(colors: Floats) -> NDArray[np.uint8]:
    """0..255 from 0..1, rounded."""
    return np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8)
