"""Coloured solids whose surface is known exactly: signed distance, normal and colour at any point. numpy only.

Frame: z up, in [-0.5, 0.5]^3, centred. Distances are exact outside single primitives and lower bounds in unions and cuts, which
agree with the truth on the surface itself.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]

HELD_OUT_SEED = 1_000_000_000
"""Objects from this seed on are never trained on."""
SPAN = 0.5
"""No object reaches further from the centre along an axis."""
_STEP = 1e-3


@dataclass(frozen=True)
class Part:
    """One primitive. ``axis`` is the one it stands along; below its centre it has a second colour.

    size: ball (radius), box (three half sides), cylinder and capsule (radius, half height), cone (radius below, above, half
    height), ring (radius of the ring, of the tube); unused numbers are 0.
    """

    kind: str
    centre: Vector
    size: Vector
    colours: tuple[Vector, Vector]
    axis: int = 2

    def distance(self, points: Array) -> Array:
        """points: (N, 3) -> (N,) signed distance, negative inside."""
        local = points - np.asarray(self.centre, np.float32)
        return _DISTANCES[self.kind](np.roll(local, 2 - self.axis, axis=1), self.size)

    def colour(self, points: Array) -> Array:
        """points: (N, 3) -> (N, 3) RGB 0..1: the first colour above the centre, the second below."""
        above = points[:, 2:] >= self.centre[2]
        return np.where(above, *(np.asarray(colour, np.float32) for colour in self.colours))

    def scaled(self, factor: float) -> Part:
        """The same, smaller or larger about the origin."""
        (x, y, z), (a, b, c) = self.centre, self.size
        return replace(self, centre=(x * factor, y * factor, z * factor), size=(a * factor, b * factor, c * factor))


@dataclass(frozen=True)
class Solid:
    """The union of ``parts`` less the union of ``cuts``."""

    kind: str
    parts: tuple[Part, ...]
    cuts: tuple[Part, ...] = ()

    def distance(self, points: Array) -> Array:
        """points: (N, 3) -> (N,) signed distance, negative inside."""
        inside: Array = np.minimum.reduce([part.distance(points) for part in self.parts])
        for cut in self.cuts:
            inside = np.maximum(inside, -cut.distance(points))
        return inside

    def normal(self, points: Array) -> Array:
        """points: (N, 3) -> (N, 3) unit gradient of the distance, by central differences."""
        gradient = np.empty_like(points)
        for axis in range(3):
            step = np.zeros(3, np.float32)
            step[axis] = _STEP
            gradient[:, axis] = self.distance(points + step) - self.distance(points - step)
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        return np.asarray(gradient / np.maximum(length, 1e-6))

    def colour(self, points: Array) -> Array:
        """points: (N, 3) -> (N, 3) RGB 0..1 of the part that is nearest."""
        nearest = np.argmin([part.distance(points) for part in self.parts], axis=0)
        colours = np.stack([part.colour(points) for part in self.parts])
        return np.asarray(colours[nearest, np.arange(len(points))])

    def project(self, points: Array, rounds: int = 3) -> Array:
        """points: (N, 3) near the surface -> (N, 3) on it, by following the normal."""
        for _ in range(rounds):
            points = points - self.distance(points)[:, None] * self.normal(points)
        return points

    def scaled(self, factor: float) -> Solid:
        """The same, smaller or larger about the centre."""
        parts, cuts = ([part.scaled(factor) for part in group] for group in (self.parts, self.cuts))
        return Solid(self.kind, tuple(parts), tuple(cuts))

    def surface(self, count: int, seed: int = 0) -> Array:
        """(count, 3) points on the surface, evenly: a thin band around it is filled and then pressed flat."""
        rng = np.random.default_rng(seed)
        kept: list[Array] = []
        while sum(map(len, kept)) < count:
            points = rng.uniform(-SPAN, SPAN, (40 * count, 3)).astype(np.float32)
            kept.append(points[np.abs(self.distance(points)) < 0.01])
        return self.project(np.concatenate(kept)[:count])


def _ball(points: Array, size: Vector) -> Array:
    return np.asarray(np.linalg.norm(points, axis=1) - size[0])


def _box(points: Array, size: Vector) -> Array:
    outside = np.abs(points) - np.asarray(size, np.float32)
    return np.asarray(np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(axis=1), 0))


def _cylinder(points: Array, size: Vector) -> Array:
    across = np.hypot(points[:, 0], points[:, 1]) - size[0]
    along = np.abs(points[:, 2]) - size[1]
    outside = np.hypot(np.maximum(across, 0), np.maximum(along, 0))
    return np.asarray(outside + np.minimum(np.maximum(across, along), 0))


def _capsule(points: Array, size: Vector) -> Array:
    along = points[:, 2] - np.clip(points[:, 2], -size[1], size[1])
    return np.asarray(np.sqrt(points[:, 0] ** 2 + points[:, 1] ** 2 + along**2) - size[0])


def _cone(points: Array, size: Vector) -> Array:
    """A capped cone: nearest of its two caps and of its slanted side, in the half plane (across, along)."""
    below, above, half = size
    across, along = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    cap = np.where(along < 0, below, above)
    cap_across, cap_along = across - np.minimum(across, cap), np.abs(along) - half
    slant, rise = above - below, 2 * half
    share = np.clip(((across - below) * slant + (along + half) * rise) / (slant**2 + rise**2), 0, 1)
    side_across, side_along = across - below - share * slant, along + half - share * rise
    inside = (side_across < 0) & (cap_along < 0)
    squared = np.minimum(cap_across**2 + cap_along**2, side_across**2 + side_along**2)
    return np.asarray(np.where(inside, -1, 1) * np.sqrt(squared))


def _ring(points: Array, size: Vector) -> Array:
    return np.asarray(np.hypot(np.hypot(points[:, 0], points[:, 1]) - size[0], points[:, 2]) - size[1])


_DISTANCES: dict[str, Callable[[Array, Vector], Array]] = {
    "ball": _ball,
    "box": _box,
    "cylinder": _cylinder,
    "capsule": _capsule,
    "cone": _cone,
    "ring": _ring,
}


class _Dice:
    """The random choices behind one object."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._hue = self._rng.uniform()

    def between(self, low: float, high: float) -> float:
        return float(self._rng.uniform(low, high))

    def colour(self) -> Vector:
        """Hues far from one another, so that parts can be told apart."""
        self._hue = (self._hue + self.between(0.25, 0.45)) % 1
        return colorsys.hsv_to_rgb(self._hue, self.between(0.6, 1), self.between(0.6, 1))

    def pair(self) -> tuple[Vector, Vector]:
        return self.colour(), self.colour()

    def plain(self) -> tuple[Vector, Vector]:
        colour = self.colour()
        return colour, colour


def _make_ball(dice: _Dice) -> Solid:
    return Solid("ball", (Part("ball", (0, 0, 0), (dice.between(0.2, 0.33), 0, 0), dice.pair()),))


def _make_box(dice: _Dice) -> Solid:
    size = (dice.between(0.14, 0.3), dice.between(0.14, 0.3), dice.between(0.14, 0.3))
    return Solid("box", (Part("box", (0, 0, 0), size, dice.pair()),))


def _make_ring(dice: _Dice) -> Solid:
    return Solid(
        "ring", (Part("ring", (0, 0, 0), (dice.between(0.18, 0.24), dice.between(0.07, 0.1), 0), dice.plain()),)
    )


def _make_cone(dice: _Dice) -> Solid:
    size = (dice.between(0.2, 0.32), dice.between(0.02, 0.1), dice.between(0.2, 0.32))
    return Solid("cone", (Part("cone", (0, 0, 0), size, dice.pair()),))


def _make_pill(dice: _Dice) -> Solid:
    radius = dice.between(0.12, 0.19)
    return Solid("pill", (Part("capsule", (0, 0, 0), (radius, dice.between(0.08, 0.33 - radius), 0), dice.pair()),))


def _make_mug(dice: _Dice) -> Solid:
    radius, half, loop = dice.between(0.17, 0.21), dice.between(0.19, 0.27), dice.between(0.1, 0.12)
    body = Part("cylinder", (-0.06, 0, 0), (radius, half, 0), dice.plain())
    handle = Part("ring", (radius - 0.06, 0, 0), (loop, 0.038, 0), dice.plain(), axis=1)
    hollow = Part("cylinder", (-0.06, 0, 0.08), (radius - 0.06, half, 0), body.colours)
    return Solid("mug", (body, handle), (hollow,))


def _make_chair(dice: _Dice) -> Solid:
    wide, deep, leg = dice.between(0.17, 0.24), dice.between(0.17, 0.22), 0.045
    seat_z, back = dice.between(-0.08, 0.02), dice.between(0.24, 0.32)
    seat = Part("box", (0, 0, seat_z), (wide, deep, 0.045), dice.plain())
    upright = Part("box", (0, -deep + 0.045, (back + seat_z) / 2), (wide, 0.045, (back - seat_z) / 2), dice.plain())
    colours, floor = dice.plain(), -0.3
    legs = tuple(
        Part("box", (x, y, (seat_z + floor) / 2), (leg, leg, (seat_z - floor) / 2), colours)
        for x in (leg - wide, wide - leg)
        for y in (leg - deep, deep - leg)
    )
    return Solid("chair", (seat, upright, *legs))


def _make_snowman(dice: _Dice) -> Solid:
    radii = dice.between(0.16, 0.21), dice.between(0.12, 0.15), dice.between(0.085, 0.11)
    low = -0.33 + radii[0]
    middle = low + radii[0] + 0.6 * radii[1]
    top = middle + radii[1] + 0.5 * radii[2]
    balls = zip((low, middle, top), radii, strict=True)
    return Solid("snowman", tuple(Part("ball", (0, 0, z), (radius, 0, 0), dice.plain()) for z, radius in balls))


MAKERS: tuple[Callable[[_Dice], Solid], ...] = (
    _make_ball,
    _make_box,
    _make_ring,
    _make_cone,
    _make_pill,
    _make_mug,
    _make_chair,
    _make_snowman,
)


def solid_from_seed(seed: int) -> Solid:
    """The object with this number: kinds take turns, the rest is drawn from the seed."""
    return MAKERS[seed % len(MAKERS)](_Dice(seed))


def yaw_matrix(angle: float) -> Array:
    """(3, 3) rotation about z that takes x towards y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
