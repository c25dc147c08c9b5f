"""What memory is trained on: clips whose frozen image features are kept, and windows of objects cut from them.

Everything follows from the number of a clip and from the generator of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samrt_export.families.sam2 import Sam2
from samrt_export.nano.clips import LENGTH, TRAINING_SEED, clip_from_seed
from samrt_export.nano.scenes import MIN_AREA
from samrt_export.nano.tracking import FrameMaps
from samrt_export.nano.train import LOW, MID, Targets

CLIPS, OBJECTS = 2, 2
"""Clips of a window, objects of each."""
FIRST_CLIPS, MOST_CLIPS, RENEWAL = 60, 400, 3
"""Clips kept at the start and at most; steps from one new clip to the next."""
CACHED = 12
"""Frames kept of a clip, evenly spaced."""


@dataclass(frozen=True)
class CachedClip:
    """Image features (F, ...) fp16, labels uint8 (F, S, S), the objects."""

    maps: FrameMaps
    labels: Tensor
    objects: tuple[int, ...]


class ClipPool:
    """The clips of a step: a window over the sequence of all clips, which moves on as training does."""

    def __init__(self, model: Sam2) -> None:
        self.model = model
        self.clips: dict[int, CachedClip] = {}

    def at(self, step: int) -> list[CachedClip]:
        """The clips to draw from, drawn and encoded where they are new."""
        end = FIRST_CLIPS + step // RENEWAL
        wanted = range(max(0, end - MOST_CLIPS), end)
        self.clips = {i: self.clips[i] if i in self.clips else cache_clip(self.model, i) for i in wanted}
        return list(self.clips.values())


def cache_clip(model: Sam2, index: int) -> CachedClip:
    """Training clip ``index``: every first, second, third, fourth or fifth frame of a part of a clip."""
    rng = np.random.default_rng((2, index))
    stride = int(rng.integers(1, 6))
    start = int(rng.integers(0, LENGTH - stride * (CACHED - 1)))
    clip, shift = None, 0
    while clip is None:
        clip = clip_from_seed(TRAINING_SEED + index + shift)
        shift += 10_000_000  # beyond all clips
    frames = [clip.frame(start + stride * i) for i in range(CACHED)]
    with torch.no_grad():
        maps = [model.encode(torch.from_numpy(frame.image).float()[None]) for frame in frames]
    features = FrameMaps(*(torch.cat(parts).half() for parts in zip(*maps, strict=True)))
    labels = torch.from_numpy(np.stack([frame.labels for frame in frames]))
    return CachedClip(features, labels, tuple(range(1, len(clip.scene.shapes) + 1)))


@dataclass(frozen=True)
class Window:
    """Frames of several clips in step, one row per object."""

    maps: list[FrameMaps]
    masks: Tensor  # (T, R, S, S) 0 or 1

    def targets(self, frame: int) -> Targets:
        """The truth of a frame."""
        full = self.masks[frame]
        low, mid = (F.adaptive_avg_pool2d(full[:, None], side) for side in (LOW, MID))
        return Targets(full, low, (mid > 0.5).float(), full.flatten(1).any(1, keepdim=True).float())


def sample_window(pool: list[CachedClip], length: int, scattered: float, rng: np.random.Generator) -> Window:
    """Objects that are visible on the first frame; those that are absent on a later one are drawn more often.

    scattered: share of the windows whose frames lie at random distances
    """
    features: list[list[FrameMaps]] = []
    masks: list[Tensor] = []
    while len(features) < CLIPS:
        clip = pool[int(rng.integers(len(pool)))]
        if rng.uniform() < scattered:
            index = np.sort(rng.choice(CACHED, size=length, replace=False))
        else:
            stride = int(rng.integers(1, (CACHED - 1) // (length - 1) + 1))
            index = int(rng.integers(0, CACHED - stride * (length - 1))) + stride * np.arange(length)
        if rng.uniform() < 0.5:
            index = index[::-1]
        labels = clip.labels[index.copy()]  # (T, S, S)
        areas = torch.stack([(labels == k).sum((1, 2)) for k in clip.objects])  # (objects, T)
        weights = ((areas[:, 0] >= MIN_AREA * labels[0].numel()) * (1 + 2 * (areas == 0).any(1))).double().numpy()
        if not weights.any():
            continue
        chosen = torch.from_numpy(rng.choice(clip.objects, size=OBJECTS, p=weights / weights.sum()))
        masks.append((labels[:, None] == chosen[:, None, None]).float())
        features.append([FrameMaps(*(part[[i]].float() for part in clip.maps)) for i in index])
    maps = []
    for frames in zip(*features, strict=True):
        maps.append(
            FrameMaps(*(torch.cat(parts).repeat_interleave(OBJECTS, dim=0) for parts in zip(*frames, strict=True)))
        )
    return Window(maps, torch.cat(masks, dim=1))
