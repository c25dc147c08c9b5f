"""Position encodings that depend on nothing but sizes: sine tables of grids and distances, rotation tables of axial RoPE."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


def sine_grid(hw: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of the row, then of the column, of an h x w grid: (h * w, dim).

    Coordinates count from 1 and are scaled to 2 pi at the far edge (DETR, arXiv 2005.12872, normalised).
    """
    h, w = hw
    y = torch.arange(1, h + 1) / (h + 1e-6) * (2 * math.pi)
    x = torch.arange(1, w + 1) / (w + 1e-6) * (2 * math.pi)
    rows, columns = _interleaved(y, dim // 2), _interleaved(x, dim // 2)
    grid = torch.cat((rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)), dim=-1)
    return grid.reshape(h * w, dim)


def sine_distances(distance: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of distances in time: (...,) -> (..., dim)."""
    angles = distance.unsqueeze(-1) / _wavelengths(dim // 2).to(distance)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Rotation(NamedTuple):
    """How pairs of channels are rotated at each position: cosine and sine of the angle, each (N, dim / 2)."""

    cos: Tensor
    sin: Tensor


def axial_rotation(hw: tuple[int, int], dim: int) -> Rotation:
    """Axial RoPE of an h x w grid: the first half of the channel pairs turns with the column, the second with the row.

    Source: sam2/modeling/position_encoding.py, ``compute_axial_cis``, in real numbers.
    """
    h, w = hw
    rates = TEMPERATURE ** -(torch.arange(0, dim, 4) / dim)  # (dim / 4,)
    index = torch.arange(h * w)
    column, row = (index % w).unsqueeze(1), torch.div(index, w, rounding_mode="floor").unsqueeze(1)
    angles = torch.cat((column * rates, row * rates), dim=1)  # (h * w, dim / 2)
    return Rotation(angles.cos(), angles.sin())


def no_rotation(count: int, dim: int) -> Rotation:
    """What leaves ``count`` tokens as they are."""
    return Rotation(torch.ones(count, dim // 2), torch.zeros(count, dim // 2))


def join_rotations(*parts: Rotation) -> Rotation:
    """One table after the other."""
    return Rotation(torch.cat([part.cos for part in parts]), torch.cat([part.sin for part in parts]))


def rotate_pairs(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate neighbouring channels (0 and 1, 2 and 3, ...), as upstream's complex product does. x: (..., N, dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * rotation.cos - odd * rotation.sin, odd * rotation.cos + even * rotation.sin)
    return torch.stack(turned, dim=-1).flatten(-2)


def rotate_halves(x: Tensor, rotation: Rotation) -> Tensor:
    """The same for channels that were put in the order of `halves_from_pairs`: whole blocks, no shuffling."""
    even, odd = x.chunk(2, dim=-1)
    return torch.cat((even * rotation.cos - odd * rotation.sin, odd * rotation.cos + even * rotation.sin), dim=-1)


def halves_from_pairs(weight: Tensor) -> Tensor:
    """Reorder the outputs of a projection, weight (dim, k) or bias (dim,): even channels first, then odd ones.

    A score does not change when queries and keys are reordered alike.
    """
    return torch.cat((weight[0::2], weight[1::2]))


def _wavelengths(count: int) -> Tensor:
    return TEMPERATURE ** (2 * torch.div(torch.arange(count), 2, rounding_mode="floor") / count)


def _interleaved(angle: Tensor, dim: int) -> Tensor:
    """angle: (N,) -> (N, dim): sine, cosine, sine, ..."""
    angles = angle[:, None] / _wavelengths(dim)
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)
