from __future__ import annotations

import numpy as np
import pytest

from samrt.assets import Gaussians, Mesh


@pytest.fixture
def ball() -> Mesh:
    """A closed sphere of radius 0.4 about (0, 0, 0.05) with 10 rings of 16 vertices and two poles, coloured by place."""
    rings, around = 10, 16
    height, turn = np.meshgrid(
        np.linspace(0, np.pi, rings + 2)[1:-1], np.arange(around) * 2 * np.pi / around, indexing="ij"
    )
    belt = np.stack([np.sin(height) * np.cos(turn), np.sin(height) * np.sin(turn), np.cos(height)], axis=-1)
    points = np.concatenate([belt.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]])
    rows = np.arange(rings * around).reshape(rings, around)
    upper, lower = rows[:-1], rows[1:]
    upper_next, lower_next = np.roll(upper, -1, axis=1), np.roll(lower, -1, axis=1)
    north, south = np.full(around, rings * around), np.full(around, rings * around + 1)
    faces = [
        np.stack([upper, lower, lower_next], axis=-1).reshape(-1, 3),
        np.stack([upper, lower_next, upper_next], axis=-1).reshape(-1, 3),
        np.stack([north, rows[0], np.roll(rows[0], -1)], axis=-1),
        np.stack([south, np.roll(rows[-1], -1), rows[-1]], axis=-1),
    ]
    return Mesh(points * 0.4 + (0, 0, 0.05), np.concatenate(faces), (points + 1) / 2)


@pytest.fixture
def gaussians() -> Gaussians:
    """300 random ones in the unit cube; two of them as transparent and as opaque as can be."""
    random = np.random.default_rng(3)
    opacities = random.uniform(0.01, 0.99, 300)
    opacities[:2] = 0, 1
    return Gaussians(
        positions=random.uniform(-0.5, 0.5, (300, 3)),
        colors_dc=random.normal(size=(300, 3)),
        opacities=opacities,
        scales=np.exp(random.normal(-5, 0.5, (300, 3))),
        rotations=random.normal(size=(300, 4)) * 0.1 + (1, 0, 0, 0),
    )
