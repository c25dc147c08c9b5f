"""Seeded pictures of overlapping, textured, moving shapes, with the visible region of every shape.

A scene is drawn from its seed alone; ``render(time)`` gives one frame of it, so the same code serves pictures and video.
numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

SIZE = 256
"""Default side of a picture in pixels."""

MIN_AREA = 0.008
"""Shapes with a smaller visible share of the picture are not asked about."""

HELD_OUT_SEED = 1_000_000_000
"""Scenes from this seed on are never trained on."""

# Muted backgrounds, saturated shapes: hue comes from the seed, these set saturation and value.
BACKGROUND_SV = ((0.08, 0.35), (0.25, 0.95))
SHAPE_SV = ((0.35, 0.95), (0.45, 1.0))


@dataclass(frozen=True)
class Frame:
    """image: uint8 (H, W, 3) RGB; labels: uint8 (H, W), 0 background, k the visible part of shape k."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @cached_property
    def visible(self) -> tuple[int, ...]:
        """Labels large enough to ask about."""
        areas = np.bincount(self.labels.ravel())
        return tuple(k for k in range(1, len(areas)) if areas[k] >= MIN_AREA * self.labels.size)

    def mask(self, label: int) -> NDArray[np.bool_]:
        """bool (H, W), the visible part of one shape."""
        return np.asarray(self.labels == label)


@dataclass(frozen=True)
class Texture:
    """Two colours and the pattern that mixes them, in the shape's own coordinates: it moves and turns with the shape."""

    kind: str
    colours: Array  # (2, 3), 0..1
    frequency: float
    phase: float
    contrast: float

    def paint(self, u: Array, v: Array) -> Array:
        """u, v: (...) shape coordinates, about -1..1 -> colour (..., 3) in 0..1."""
        mix = PATTERNS[self.kind](u * self.frequency + self.phase, v * self.frequency) * self.contrast
        return np.asarray(self.colours[0] * (1 - mix[..., None]) + self.colours[1] * mix[..., None])


def _soft(x: Array) -> Array:
    """A wave with steep but smooth edges, 0..1: crisp patterns without aliasing."""
    return np.asarray(0.5 + 0.5 * np.tanh(3.0 * np.sin(x)))


def _noise(u: Array, v: Array) -> Array:
    """A cheap cloud: a few incommensurate waves."""
    field = np.sin(1.7 * u + 1.3 * np.sin(2.1 * v)) + np.sin(2.3 * v + 1.7 * np.sin(1.1 * u)) + np.sin(1.9 * (u + v))
    return np.asarray(np.clip(0.5 + field / 6, 0, 1))


PATTERNS = {
    "plain": lambda u, v: 0.5 + 0.5 * np.tanh(0.4 * u),
    "stripes": lambda u, v: _soft(u),
    "checks": lambda u, v: _soft(u) + _soft(v) - 2 * _soft(u) * _soft(v),
    "dots": lambda u, v: 0.5 + 0.5 * np.tanh(4 * (np.sin(u) * np.sin(v) - 0.35)),
    "rings": lambda u, v: _soft(2 * np.hypot(u, v)),
    "waves": lambda u, v: _soft(u + 1.2 * np.sin(v)),
    "clouds": _noise,
}


@dataclass(frozen=True)
class Shape:
    """A star-shaped region, given by its radius over the angle, that drifts, turns and breathes.

    Lengths are shares of the picture's side.
    """

    centre: Array  # (2,) xy at time 0
    velocity: Array  # (2,) per unit of time
    sway: Array  # (2,) amplitude of a slow oscillation
    sway_phase: float
    angle: float
    spin: float
    radius: float
    breath: float
    aspect: float
    harmonics: tuple[tuple[int, float, float], ...]  # (order, amplitude, phase)
    corners: int  # 0: smooth; otherwise a polygon's or star's
    corner_depth: float  # 0: polygon with straight sides; above: star
    texture: Texture

    def pose(self, time: float) -> Pose:
        """Where the shape is at a time. It is reflected near the border, so it stays in view however long the clip."""
        swayed = self.centre + self.velocity * time + self.sway * np.sin(time + self.sway_phase)
        x, y = 0.08 + 0.84 * _triangle((swayed - 0.08) / 0.84)
        radius = self.radius * (1 + self.breath * math.sin(1.3 * time + self.sway_phase))
        return Pose(self, float(x), float(y), self.angle + self.spin * time, radius)

    def boundary(self, theta: Array) -> Array:
        """Radius over the angle, about 1."""
        r = np.ones_like(theta)
        for order, amplitude, phase in self.harmonics:
            r += amplitude * np.cos(order * theta + phase)
        if self.corners:
            sector = math.pi / self.corners
            offset = np.abs(np.mod(theta, 2 * sector) - sector)  # 0 at a corner, sector mid-side
            straight = math.cos(sector) / np.cos(sector - offset) if self.corner_depth == 0 else 1.0
            r = 1.12 * r * (straight - self.corner_depth * offset / sector)
        return r


@dataclass(frozen=True)
class Pose:
    """A shape at one time: its centre, angle and radius, as shares of the picture's side."""

    shape: Shape
    x: float
    y: float
    angle: float
    radius: float

    def bounds_yx(self, margin: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Rows and columns that the shape and its shadow can reach."""
        reach = self.radius * 1.45 * max(self.shape.aspect, 1 / self.shape.aspect) + margin
        return (self.y - reach, self.y + reach), (self.x - reach, self.x + reach)

    def coordinates(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Picture coordinates -> the shape's own, where its mean radius is 1."""
        c, s = math.cos(self.angle) / self.radius, math.sin(self.angle) / self.radius
        dx, dy = x - self.x, y - self.y
        return (c * dx + s * dy) / self.shape.aspect, (c * dy - s * dx) * self.shape.aspect

    def coverage(self, x: Array, y: Array, softness: float) -> Array:
        """Share of each pixel inside, 0..1, from an approximate distance; ``softness`` is the half-width of the edge."""
        u, v = self.coordinates(x, y)
        distance = (np.hypot(u, v) - self.shape.boundary(np.arctan2(v, u))) * self.radius
        return np.asarray(np.clip(0.5 - distance / (2 * softness), 0, 1))


def _triangle(x: Array) -> Array:
    """Fold the line into 0..1 by reflection."""
    return np.asarray(1 - np.abs(np.mod(x, 2) - 1))


@dataclass(frozen=True)
class Scene:
    """A background and its shapes, back to front."""

    background: Texture
    tilt: float
    shapes: tuple[Shape, ...]
    grain: float
    seed: int

    def render(self, time: float = 0.0, size: int = SIZE) -> Frame:
        """Draw one frame. Edges are antialiased; each shape throws a soft shadow on what lies behind it."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = np.meshgrid(2 * axis - 1, 2 * axis - 1)
        c, s = math.cos(self.tilt), math.sin(self.tilt)
        image = self.background.paint(c * x + s * y, c * y - s * x)
        labels = np.zeros((size, size), np.uint8)
        for label, shape in enumerate(self.shapes, start=1):
            pose = shape.pose(time)
            rows, cols = (slice(*np.searchsorted(axis, bounds)) for bounds in pose.bounds_yx(margin=0.06))
            x, y = np.meshgrid(axis[cols], axis[rows])
            crop = image[rows, cols]  # a view
            crop *= 1 - 0.35 * pose.coverage(x - 0.012, y - 0.018, softness=0.02)[..., None]
            alpha = pose.coverage(x, y, softness=0.5 / size)
            u, v = pose.coordinates(x, y)
            colour = shape.texture.paint(u, v) * (1.06 - 0.22 * np.clip(u * u + v * v, 0, 1))[..., None]
            crop += alpha[..., None] * (colour - crop)
            labels[rows, cols][alpha > 0.5] = label
        rng = np.random.default_rng((self.seed, int(time * 1000)))
        image += self.grain * rng.standard_normal(image.shape, dtype=np.float32)
        return Frame((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), labels)


def scene_from_seed(seed: int) -> Scene:
    """Three to seven shapes over a background; everything follows from the seed."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 8))
    background = _texture(rng, BACKGROUND_SV, max_frequency=9, hue=rng.uniform())
    hues = (rng.uniform() + np.arange(count) / count + rng.normal(0, 0.03, count)) % 1  # apart: neighbours differ
    shapes = tuple(_shape(rng, hue) for hue in rng.permutation(hues))
    return Scene(background, rng.uniform(0, 2 * np.pi), shapes, rng.uniform(0.005, 0.025), seed)


def _shape(rng: np.random.Generator, hue: float) -> Shape:
    polygon = rng.uniform() < 0.45
    harmonics = [(k, rng.uniform(0, 0.32) / k, rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]
    return Shape(
        centre=rng.uniform(0.12, 0.88, 2),
        velocity=rng.normal(0, 0.05, 2),
        sway=rng.normal(0, 0.03, 2),
        sway_phase=rng.uniform(0, 2 * np.pi),
        angle=rng.uniform(0, 2 * np.pi),
        spin=rng.normal(0, 0.25),
        radius=rng.uniform(0.11, 0.27),
        breath=rng.uniform(0, 0.08),
        aspect=math.exp(rng.normal(0, 0.14)),
        harmonics=() if polygon else tuple(harmonics),
        corners=int(rng.integers(3, 8)) if polygon else 0,
        corner_depth=rng.uniform(0.2, 0.45) if polygon and rng.uniform() < 0.35 else 0.0,
        texture=_texture(rng, SHAPE_SV, max_frequency=14, hue=hue),
    )


def _texture(
    rng: np.random.Generator, sv: tuple[tuple[float, float], tuple[float, float]], max_frequency: float, hue: float
) -> Texture:
    """Two related colours: the second differs in value and a little in hue."""
    saturation, value = rng.uniform(*sv[0]), rng.uniform(*sv[1])
    other = np.clip(value + rng.choice([-1, 1]) * rng.uniform(0.15, 0.4), 0.12, 1.0)
    colours = [
        _rgb_from_hsv(hue, saturation, value),
        _rgb_from_hsv(hue + rng.normal(0, 0.04), saturation * rng.uniform(0.5, 1), other),
    ]
    kind = rng.choice(list(PATTERNS))
    return Texture(
        str(kind), np.array(colours, np.float32), rng.uniform(4, max_frequency), rng.uniform(0, 6), rng.uniform(0.5, 1)
    )


def _rgb_from_hsv(hue: float, saturation: float, value: float) -> list[float]:
    """The usual formula with all three in 0..1 (Smith 1978)."""
    return [
        value * (1 - saturation * float(np.clip(2 - abs((hue * 6 + offset) % 6 - 3), 0, 1)))
        for offset in (3.0, 1.0, 5.0)
    ]
