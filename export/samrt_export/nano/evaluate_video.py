"""Measures tracking on held-out clips: J & F from a prompt on the first frame, which does not count.

    python -m samrt_export.nano.evaluate_video BUNDLE --clips 50 --out scores.json

Works on anything that can be prompted once and then takes frames: the bundle through ``samrt``, or the PyTorch module.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from samrt import Model, load
from samrt.video import VideoTracker
from samrt_export.families.sam2 import Sam2
from samrt_export.nano.clicks import box_around, innermost_point
from samrt_export.nano.clips import LENGTH, Clip, held_out_clips
from samrt_export.nano.davis import Masks, boundary_accuracy, region_similarity
from samrt_export.nano.tracking import (
    POINTERS,
    FrameMaps,
    Remembered,
    RowPrompts,
    condition,
    decode,
    empty_prompts,
    remember,
    remember_mask,
)
from samrt_export.progress import Progress, silent

Kind = Literal["click", "box", "mask"]


class ClipTracker(Protocol):
    """One clip at a time: all objects are prompted on its first frame."""

    def start(self, image: NDArray[np.uint8], masks: Masks, kind: Kind) -> None:
        """image: (H, W, 3) RGB; masks: (K, H, W), the truth, from which a prompt of the kind is made."""

    def track(self, image: NDArray[np.uint8]) -> Masks:
        """The next frame -> (K, H, W)."""


@dataclass(frozen=True)
class Track:
    """How one object was followed: J and F of frames 1 to the last."""

    clip: int
    """Its seed."""
    objects: int
    """Objects followed in the clip."""
    absences: bool
    """Whether the object is completely out of sight on a frame."""
    j: NDArray[np.float64]
    f: NDArray[np.float64]

    @property
    def j_and_f(self) -> float:
        """The mean of both means."""
        return float((self.j.mean() + self.f.mean()) / 2)


@dataclass(frozen=True)
class VideoScores:
    """Means over tracks, as DAVIS takes them: each object counts the same."""

    clips: int
    tracks: int
    j: float
    f: float
    j_and_f: float
    by_objects: dict[int, float]
    """J & F by the number of objects of the clip."""
    with_absences: float
    without_absences: float

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def evaluate_video(
    tracker: ClipTracker, kind: Kind, count: int = 50, progress: Progress = silent, length: int = LENGTH
) -> VideoScores:
    """Follow every object of ``count`` held-out clips, or of their first frames, from a first-frame prompt of the kind."""
    tracks: list[Track] = []
    for index, clip in enumerate(held_out_clips(count)):
        progress("clips", index, count)
        tracks += follow(tracker, clip, kind, length)
    progress("clips", count, count)
    return summarize(tracks)


def follow(tracker: ClipTracker, clip: Clip, kind: Kind, length: int = LENGTH) -> list[Track]:
    """The tracks of one clip's objects."""
    first = clip.frame(0)
    tracker.start(first.image, clip.masks(first), kind)
    js, fs, there = [], [], []
    for index in range(1, length):
        frame = clip.frame(index)
        target, predicted = clip.masks(frame), tracker.track(frame.image)
        js.append(region_similarity(predicted, target))
        fs.append(boundary_accuracy(predicted, target))
        there.append(target.any(axis=(1, 2)))
    visible, number = np.stack(there, axis=1), len(clip.objects)
    pairs = zip(np.stack(js, axis=1), np.stack(fs, axis=1), visible, strict=True)
    return [Track(clip.seed, number, bool((~seen).any()), j, f) for j, f, seen in pairs]


def summarize(tracks: Sequence[Track]) -> VideoScores:
    """Scores of at least one track; nan for what no track is like."""

    def mean(chosen: Sequence[Track]) -> float:
        return float(np.mean([track.j_and_f for track in chosen])) if chosen else float("nan")

    numbers = sorted({track.objects for track in tracks})
    return VideoScores(
        clips=len({track.clip for track in tracks}),
        tracks=len(tracks),
        j=float(np.mean([track.j.mean() for track in tracks])),
        f=float(np.mean([track.f.mean() for track in tracks])),
        j_and_f=mean(tracks),
        by_objects={number: mean([track for track in tracks if track.objects == number]) for number in numbers},
        with_absences=mean([track for track in tracks if track.absences]),
        without_absences=mean([track for track in tracks if not track.absences]),
    )


class BundleTracker:
    """A bundle, through the public runtime, as it is by default."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def start(self, image: NDArray[np.uint8], masks: Masks, kind: Kind) -> None:
        """See `ClipTracker`."""
        self.tracker = VideoTracker(self.model)
        for index, mask in enumerate(masks):
            if kind == "mask":
                self.tracker.add_mask(index, mask)
            elif kind == "box":
                self.tracker.add_box(index, box_around(mask))
            else:
                self.tracker.add_points(index, [innermost_point(mask)], [1])
        self.tracker.step(image)

    def track(self, image: NDArray[np.uint8]) -> Masks:
        """See `ClipTracker`."""
        return self.tracker.step(image).masks


class TorchTracker:
    """The PyTorch module with the loop that training uses: a check on the runtime's. Fills no holes, resolves no overlaps."""

    def __init__(self, model: Sam2) -> None:
        self.model = model.eval()
        self.past: list[Remembered] = []
        self.now = 0

    @torch.inference_mode()
    def start(self, image: NDArray[np.uint8], masks: Masks, kind: Kind) -> None:
        """See `ClipTracker`."""
        maps, self.now = self._maps(image, len(masks)), 0
        if kind == "mask":
            self.past = [remember_mask(self.model, maps, 0, torch.from_numpy(masks).float()[:, None])[1]]
            return
        decoded = decode(self.model, maps.embed, maps, self._prompts(masks, kind), multimask=kind == "click")
        self.past = [remember(self.model, maps, 0, True, decoded.gated(), decoded.score, decoded.token)]

    @torch.inference_mode()
    def track(self, image: NDArray[np.uint8]) -> Masks:
        """See `ClipTracker`."""
        self.now += 1
        model, rows = self.model, self.past[0].memory.shape[0]
        maps = self._maps(image, rows)
        embed = condition(model, maps.embed, self.past, self.now)
        decoded = decode(model, embed, maps, empty_prompts(rows, model.config.mask_size), multimask=True)
        logits = decoded.gated()
        self.past.append(remember(model, maps, self.now, False, logits, decoded.score, decoded.token))
        self.past = [kept for kept in self.past if kept.conditioning or self.now - kept.frame < POINTERS]
        full = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
        return np.asarray((full[:, 0] > 0).numpy())

    def _maps(self, image: NDArray[np.uint8], rows: int) -> FrameMaps:
        """image: (S, S, 3), the model's own size; one row for each object."""
        maps = self.model.encode(torch.from_numpy(image).float()[None])
        return FrameMaps(*(part.expand(rows, *part.shape[1:]) for part in maps))

    def _prompts(self, masks: Masks, kind: Kind) -> RowPrompts:
        if kind == "click":
            points = [[innermost_point(mask)] for mask in masks]
            codes = [1]
        else:
            boxes = [box_around(mask) for mask in masks]
            points, codes = [[box[:2], box[2:]] for box in boxes], [2, 3]
        empty = empty_prompts(len(masks), self.model.config.mask_size)
        labels = torch.tensor([codes] * len(masks), dtype=torch.int32)
        return empty._replace(coords=torch.tensor(points, dtype=torch.float32), labels=labels)


def main() -> None:
    """Print, and write, the scores of a nano bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", default=["click", "mask"], choices=("click", "box", "mask"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    scores = {}
    with load(options.bundle) as model:
        for kind in options.kinds:
            found = evaluate_video(BundleTracker(model), kind, options.clips)
            print(
                f"{kind} on the first frame: J&F {found.j_and_f:.3f} over {found.clips} clips, {found.tracks} objects"
            )
            scores[kind] = found.to_json()
    if options.out is not None:
        options.out.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
