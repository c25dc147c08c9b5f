"""What the video predictor knows of one video: its frames, and everything that was asked and found."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samrt.features import Features
from samrt.images import Image, as_rgb_uint8
from samrt.video.bank import MemoryBank
from samrt.video.outcome import Float32Array, Outcome
from samrt.video.requests import Request
from samrt.video.steps import Steps
from samrt_engines.errors import ImageError, PromptError

Source = str | os.PathLike[str] | Iterable[Image]
"""A video file or a folder of pictures; or the pictures themselves."""


@dataclass(slots=True)
class ObjectState:
    """One object of a video. Keys are frame numbers."""

    requests: dict[int, Request] = field(default_factory=dict)
    """What was asked."""
    fresh: dict[int, Outcome] = field(default_factory=dict)
    """What prompts gave that are not yet in the memory bank: the next propagation puts them there."""
    logits: dict[int, Float32Array] = field(default_factory=dict)
    """(h, w) low-res logits of all frames that are in the memory bank."""
    tracked: dict[int, bool] = field(default_factory=dict)
    """Frames that a propagation passed, and whether it went backwards."""

    def shown(self, frame: int) -> Float32Array | None:
        """The newest low-res logits (h, w) of a frame, if it has any."""
        return self.fresh[frame].logits[0] if frame in self.fresh else self.logits.get(frame)


class VideoState:
    """One video in a `VideoPredictor`. Made by `VideoPredictor.init_state`.

    As upstream's it can be asked for "num_frames", "video_height", "video_width" and "obj_ids" like a dict.
    """

    def __init__(self, steps: Steps, source: Source, cached_features: int, *, memory_on_host: bool = False) -> None:
        self._steps = steps
        self._memory_on_host = memory_on_host
        self._frames = _open(source)
        self._cached = cached_features
        self._features: OrderedDict[int, Features] = OrderedDict()
        self.num_frames = len(self._frames)
        if not self.num_frames:
            raise ImageError("the video has no frame", got="0 frames", expected="one or more")
        self.video_height, self.video_width = self.frame(0).shape[:2]
        self.obj_ids: list[Any] = []
        self.objects: list[ObjectState] = []
        self.bank = self._empty_bank()

    def __getitem__(self, name: str) -> Any:
        if name not in ("num_frames", "video_height", "video_width", "obj_ids"):
            raise KeyError(f"{name!r}: known are num_frames, video_height, video_width, obj_ids")
        return getattr(self, name)

    @property
    def hw(self) -> tuple[int, int]:
        """The size of the frames."""
        return self.video_height, self.video_width

    def frame(self, index: int) -> NDArray[np.uint8]:
        """A frame, uint8 (H, W, 3) RGB. Raises ImageError for one of another size than the first."""
        image = as_rgb_uint8(self._frames[index])
        if index and image.shape[:2] != self.hw:
            raise ImageError(
                f"frame {index} has another size than the first one",
                got=f"{image.shape[1]} x {image.shape[0]}",
                expected=f"{self.video_width} x {self.video_height}",
                fix="resize the frames to one size",
            )
        return image

    def features(self, index: int) -> Features:
        """A frame's features. Those of the last few frames are kept."""
        if index not in self._features:
            while len(self._features) >= self._cached:
                self._features.popitem(last=False)
            self._features[index] = self._steps.encode(self.frame(index))
        self._features.move_to_end(index)
        return self._features[index]

    def row(self, obj_id: Any) -> int:
        """The row of an object; a new one is added."""
        if obj_id not in self.obj_ids:
            self.bank.add_object()
            self.objects.append(ObjectState())
            self.obj_ids.append(obj_id)
        return self.obj_ids.index(obj_id)

    def remove(self, row: int) -> None:
        """Forget an object."""
        self.bank.remove_object(row)
        del self.objects[row], self.obj_ids[row]

    def reset(self) -> None:
        """Forget all objects."""
        self.obj_ids, self.objects, self.bank = [], [], self._empty_bank()

    def check_frame(self, index: int) -> int:
        """The index as a plain int. Raises PromptError for a frame that the video does not have."""
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < self.num_frames:
            raise PromptError(
                "the video has no such frame", got=f"frame_idx={index!r}", expected=f"0 to {self.num_frames - 1}"
            )
        return int(index)

    def _empty_bank(self) -> MemoryBank:
        return MemoryBank(
            self._steps.video,
            most_conditioning=self._steps.most_conditioning,
            keep_everything=True,
            on_host=self._memory_on_host,
        )


class _Frames(Protocol):
    """Frames by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def _open(source: Source) -> _Frames:
    """What gives frames by number. Files are read as they are needed."""
    if isinstance(source, str | os.PathLike):
        from samrt.media import open_frames  # here: arrays do not need it

        return open_frames(source)
    return source if isinstance(source, list | tuple | np.ndarray) else list(source)
