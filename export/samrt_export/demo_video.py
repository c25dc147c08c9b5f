"""The demo's clip: objects that move, overlap, leave and return, followed from one click each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import samrt
from samrt.media import TimedFrame, open_results
from samrt.media.objects import draw_objects
from samrt.video import TrackedFrame
from samrt_engines.errors import MissingExtraError
from samrt_export.nano.clicks import innermost_point
from samrt_export.nano.clips import Clip, held_out_clips
from samrt_export.nano.davis import region_similarity
from samrt_export.nano.scenes import Frame

CLIP = 6
"""Which held-out clip; of three objects."""
FRAMES, FPS = 48, 12.0
SHOWN = (0, 9, 18, 28, 37, 47)
SHEET = "track.png"
CLIP_FILE, TRACK_FILE = "clip.mp4", "track.mp4"

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class TrackedClip:
    """What tracking came to."""

    objects: int
    frames: int
    region_similarity: float
    """J of DAVIS: the mean IoU over objects and all frames but the first."""
    frame_ms: float
    """Median time of a frame, all objects together."""
    pictures: tuple[Picture, ...]
    """Some frames with the objects drawn on them."""
    captions: tuple[str, ...]
    videos: tuple[str, ...]
    """Files that were written; none without PyAV."""
    click: tuple[float, float]
    """The first object's, in pixels of the clip."""


def track_clip(model: samrt.Model, out: Path, *, side: int) -> TrackedClip:
    """Follow the objects of a clip, side x side pixels, and write it to ``out`` as videos where PyAV is installed."""
    clip = list(held_out_clips(CLIP + 1))[CLIP]
    tracker = samrt.VideoTracker(model)
    clicks = [innermost_point(mask) for mask in clip.masks(_frame(clip, 0, side))]
    for obj_id, click in enumerate(clicks, start=1):
        tracker.add_points(obj_id, [click], [1])
    times, scores, pictures = [], [], []
    originals: list[TimedFrame] = []
    tracked: list[TrackedFrame] = []
    for index, frame in enumerate(_frames(clip, side)):
        start = time.perf_counter()
        found = tracker.step(frame.image)
        masks = found.masks
        times.append((time.perf_counter() - start) * 1e3)
        if index:
            scores.append(region_similarity(masks, clip.masks(frame)))
        if index in SHOWN:
            pictures.append(draw_objects(frame.image, masks, found.obj_ids))
        originals.append(TimedFrame(frame.image, index, index / FPS))
        tracked.append(found)
    x, y = (float(value) for value in clicks[0])
    return TrackedClip(
        objects=len(clicks),
        frames=FRAMES,
        region_similarity=float(np.mean(scores)),
        frame_ms=float(np.median(times[1:])),
        pictures=tuple(pictures),
        captions=tuple(f"frame {index}" for index in SHOWN),
        videos=_write_videos(model, out, originals, tracked),
        click=(round(x), round(y)),
    )


def _frames(clip: Clip, side: int) -> Iterator[Frame]:
    return (_frame(clip, index, side) for index in range(FRAMES))


def _frame(clip: Clip, index: int, side: int) -> Frame:
    """A frame of the clip, larger than the model's input."""
    return clip.scene.render(index * clip.interval, size=side)


def _write_videos(
    model: samrt.Model, out: Path, frames: list[TimedFrame], tracked: list[TrackedFrame]
) -> tuple[str, ...]:
    """The clip as it is, and with its objects drawn on it."""
    nobody = samrt.VideoTracker(model)
    try:
        with open_results(out / CLIP_FILE, fps=FPS) as plain, open_results(out / TRACK_FILE, fps=FPS) as drawn:
            for frame, found in zip(frames, tracked, strict=True):
                plain.write(frame, nobody.step(frame.image))
                drawn.write(frame, found)
    except MissingExtraError:
        return ()
    return CLIP_FILE, TRACK_FILE
