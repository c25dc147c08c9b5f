"""What a narrow precision costs in tracking: nano follows held-out clips, and errors feed back through its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt import Model, VideoTracker
from samrt_export.nano.clicks import innermost_point
from samrt_export.nano.clips import Clip, held_out_clips
from samrt_export.nano.evaluate import iou
from samrt_export.progress import Progress, silent

FRAMES = 300
"""Of a clip: five times what nano's memory was trained on."""
BARS = {"fp16": (0.99, 0.98)}
"""Precision -> smallest mean over all frames and objects, and smallest mean of a single frame of a clip."""
SIGNIFICANT = 3.0
"""Standard errors by which a falling IoU counts as drift."""


@dataclass(frozen=True)
class TrackAgreement:
    """IoU with the fp32 masks on every frame but the first, from one click per object on that.

    mean: over objects and frames; smallest_frame: the lowest mean of one frame of a clip; smallest: of one object on one
    frame; slope: of the IoU over frames, per 100 frames; slope_error: its standard error
    """

    precision: str
    clips: int
    frames: int
    mean: float
    smallest_frame: float
    smallest: float
    slope: float
    slope_error: float

    @property
    def drifts(self) -> bool:
        """Whether the IoU falls over the frames, by more than chance."""
        return self.slope < -SIGNIFICANT * self.slope_error

    @property
    def ok(self) -> bool:
        """Whether the bars of `BARS` hold and nothing drifts; a precision without bars is only reported."""
        if self.precision not in BARS:
            return True
        mean, smallest = BARS[self.precision]
        return self.mean >= mean and self.smallest_frame >= smallest and not self.drifts

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return asdict(self) | {"drifts": self.drifts, "ok": self.ok}


def compare_tracks(
    reference: Model, others: Mapping[str, Model], count: int, *, frames: int = FRAMES, progress: Progress = silent
) -> tuple[TrackAgreement, ...]:
    """Have the fp32 model and others (precision -> model) follow the objects of ``count`` held-out clips."""
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in others}
    for index, clip in enumerate(held_out_clips(count)):
        progress("clips", index, count)
        for name, scores in follow_both(reference, others, clip, frames).items():
            found[name].append(scores)
    progress("clips", count, count)
    return tuple(summarize(name, scores) for name, scores in found.items())


def follow_both(
    reference: Model, others: Mapping[str, Model], clip: Clip, frames: int
) -> dict[str, NDArray[np.float64]]:
    """IoU (frames - 1, K) of each model's masks with the reference's."""
    trackers = {name: VideoTracker(model) for name, model in (("", reference), *others.items())}
    for tracker in trackers.values():
        for obj_id, mask in enumerate(clip.masks(clip.frame(0))):
            tracker.add_points(obj_id, [innermost_point(mask)], [1])
    rows: dict[str, list[list[float]]] = {name: [] for name in others}
    for index in range(frames):
        image = clip.frame(index).image
        masks = {name: tracker.step(image).masks for name, tracker in trackers.items()}
        if index:
            for name in others:
                rows[name].append([iou(a, b) for a, b in zip(masks[name], masks[""], strict=True)])
    return {name: np.array(values) for name, values in rows.items()}


def summarize(precision: str, clips: Sequence[NDArray[np.float64]]) -> TrackAgreement:
    """clips: (frames - 1, K) IoU each. The slope is that of a line through the mean IoU of each frame over all clips."""
    by_frame = np.stack([clip.mean(axis=1) for clip in clips])  # (clips, frames - 1)
    slope, error = slope_of(by_frame.mean(axis=0))
    return TrackAgreement(
        precision=precision,
        clips=len(clips),
        frames=by_frame.shape[1] + 1,
        mean=float(np.mean(np.concatenate([clip.ravel() for clip in clips]))),
        smallest_frame=float(by_frame.min()),
        smallest=float(min(clip.min() for clip in clips)),
        slope=slope * 100,
        slope_error=error * 100,
    )


def slope_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Slope of the least-squares line through values at 0, 1, 2, ..., and its standard error."""
    places = np.arange(len(values)) - (len(values) - 1) / 2
    spread = float((places**2).sum())
    slope = float((places * values).sum()) / spread
    residuals = values - values.mean() - slope * places
    return slope, math.sqrt(float((residuals**2).sum()) / max(len(values) - 2, 1) / spread)
