"""The demo's pictures without any prompt: all their masks, found on a grid of points."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import samrt
from samrt.commands.output import json_text, write_whole
from samrt.segment_output import coco_document, draw_segments
from samrt_export.nano.evaluate import iou
from samrt_export.nano.scenes import Frame

POINTS_PER_SIDE = 16
"""The things in these pictures are large: a quarter of the usual points finds them."""
SHEET, FILE = "everything.png", "everything.json"


@dataclass(frozen=True)
class Everything:
    """What asking nothing came to."""

    pictures: tuple[NDArray[np.uint8], ...]
    """The masks, drawn."""
    captions: tuple[str, ...]
    masks: int
    """Found, in all pictures."""
    things: int
    """There, in all pictures."""
    iou: float
    """Mean over the things of the best mask's."""
    picture_s: float
    """Median time of a picture, encoding included."""


def find_everything(model: samrt.Model, frames: Sequence[Frame], out: Path) -> Everything:
    """Find all masks of some pictures; those of the first are written to ``out`` as a COCO file."""
    generator = samrt.AutomaticMaskGenerator(model, points_per_side=POINTS_PER_SIDE)
    pictures: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    times: list[float] = []
    best: list[float] = []
    found = 0
    for frame in frames:
        start = time.perf_counter()
        segments = generator.segments(frame.image)
        times.append(time.perf_counter() - start)
        masks = segments.masks()
        matches = [max((iou(mask, frame.mask(label)) for mask in masks), default=0.0) for label in frame.visible]
        if not pictures:
            write_whole(out / FILE, json_text(coco_document(segments, "scene.png")).encode())
        pictures.append(draw_segments(frame.image, segments))
        captions.append(f"{len(segments)} masks of {len(matches)} things\nIoU {np.mean(matches):.3f}")
        best += matches
        found += len(segments)
    return Everything(tuple(pictures), tuple(captions), found, len(best), float(np.mean(best)), float(np.median(times)))
