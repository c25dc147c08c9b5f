"""Seeded clips: the shapes of scenes.py, faster, some of which leave the picture and come back, and the truth of every frame.

A clip follows from its seed alone. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from samrt_export.nano.scenes import HELD_OUT_SEED, MIN_AREA, Frame, Pose, Scene, Shape, scene_from_seed

LENGTH = 60
"""Frames of a clip."""
TRAINING_SEED = 1_000_000
"""Training clips count from here: their scenes are none of those that the image model was trained on."""
HELD_OUT_CLIPS = HELD_OUT_SEED + 1_000_000
"""Held-out clips count from here: their scenes are none of the held-out pictures either."""
LEAVING_SHARE = 0.35
"""Share of the shapes that leave once in a clip."""
OUTSIDE = 1.6
"""A shape has left when its centre is this many radii behind the border."""


@dataclass(frozen=True)
class Leaver(Shape):
    """A shape that leaves over the nearest border around a time, stays away for a while and returns the way it went."""

    away: float
    """Time in the middle of the absence."""
    reach: float
    """Time from the first step towards the border to the middle of the absence, and from there back."""

    def pose(self, time: float) -> Pose:
        """Where the shape is: as without leaving, moved outwards while it is away."""
        pose = super().pose(time)
        share = min(1.0, 1.5 * max(0.0, math.cos(math.pi / 2 * min(1.0, abs(time - self.away) / self.reach))) ** 2)
        at_exit = super().pose(self.away)
        borders = {(-1, 0): at_exit.x, (1, 0): 1 - at_exit.x, (0, -1): at_exit.y, (0, 1): 1 - at_exit.y}
        direction = min(borders, key=lambda key: borders[key])
        distance = share * (borders[direction] + OUTSIDE * pose.radius * max(self.aspect, 1 / self.aspect))
        return replace(pose, x=pose.x + direction[0] * distance, y=pose.y + direction[1] * distance)


@dataclass(frozen=True)
class Clip:
    """A scene that moves, and the labels of the shapes that are asked about; all of them are visible on frame 0."""

    seed: int
    scene: Scene
    interval: float
    """Scene time from one frame to the next."""
    objects: tuple[int, ...]

    def frame(self, index: int) -> Frame:
        """Frame ``index``: the picture, and what is visible of each shape."""
        return self.scene.render(index * self.interval)

    def masks(self, frame: Frame) -> NDArray[np.bool_]:
        """bool (K, H, W): the visible part of each object, empty where it is hidden or outside."""
        return np.asarray(frame.labels == np.array(self.objects)[:, None, None])


def clip_from_seed(seed: int, objects: int | None = None) -> Clip | None:
    """The clip of a seed; None where fewer than ``objects`` (None: one) shapes are visible on the first frame.

    Without a number, all visible shapes are asked about, else so many, chosen by the seed.
    """
    rng = np.random.default_rng((seed, 1))
    interval = float(rng.uniform(0.07, 0.15))
    still = scene_from_seed(seed)
    scene = replace(still, shapes=tuple(_hastened(shape, interval, rng) for shape in still.shapes))
    areas = np.bincount(scene.render().labels.ravel(), minlength=len(scene.shapes) + 1)
    visible = [k for k in range(1, len(areas)) if areas[k] >= 1.5 * MIN_AREA * areas.sum()]
    if len(visible) < (objects or 1):
        return None
    chosen = visible if objects is None else rng.permutation(visible)[:objects].tolist()
    return Clip(seed, scene, interval, tuple(chosen))


def held_out_clips(count: int) -> Iterator[Clip]:
    """Clips that training never sees, with one, two, three and four objects in turn."""
    seed = HELD_OUT_CLIPS
    for index in range(count):
        while (clip := clip_from_seed(seed, 1 + index % 4)) is None:
            seed += 1
        seed += 1
        yield clip


def _hastened(shape: Shape, interval: float, rng: np.random.Generator) -> Shape:
    """A shape at a clip's pace, perhaps as one that leaves."""
    values = {field.name: getattr(shape, field.name) for field in fields(shape)}
    values["velocity"] = 1.8 * shape.velocity
    leaves = rng.uniform() < LEAVING_SHARE
    away, reach = rng.uniform(0.3, 0.8) * LENGTH * interval, rng.uniform(0.25, 0.45) * LENGTH * interval
    return Leaver(**values, away=float(away), reach=float(min(reach, away))) if leaves else Shape(**values)
