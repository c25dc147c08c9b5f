"""Point grids: where to ask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def point_grid(per_side: int) -> Float64Array:
    """A square grid of points in the middle of equal fields, x running fastest.

    returns: float64 (per_side ** 2, 2) xy, shares of width and height, 0..1
    """
    margin = 1 / (2 * per_side)
    steps = np.linspace(margin, 1 - margin, per_side)
    x, y = np.meshgrid(steps, steps)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_grids(per_side: int, crop_layers: int, downscale: int) -> tuple[Float64Array, ...]:
    """One grid for the whole picture and one for each layer of crops, each layer with `downscale` times fewer a side."""
    return tuple(point_grid(int(per_side / downscale**layer)) for layer in range(crop_layers + 1))
