"""What a decode gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.masks import binary_masks, upscale_logits
from samrt.transforms import Frame
from samrt_engines.errors import ImageError

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Result:
    """P prompts with C candidates each, from `Model.decode`. A sequence of P results of one prompt each.

    Masks are made at their first use, and then kept: `best` chooses by score before anything is resized, so only the
    candidates that somebody looks at are ever brought to the picture's size.
    """

    scores: Float32Array
    """float32 (P, C): the IoU the model expects each mask to have."""
    logits: Float32Array
    """float32 (P, C, h, w): low-res logits, clamped as the model wants them back as the next mask prompt."""
    object_scores: Float32Array
    """float32 (P,): logits, above 0 where the model sees an object at all; 10 from models that do not say."""
    mask_logits: Float32Array
    """float32 (P, C, h, w): the low-res logits the masks are made of: not clamped, holes filled, sprinkles removed."""
    frames: tuple[Frame, ...]
    """The picture all prompts point at, or one for each prompt."""
    mask_threshold: float
    """Where a logit becomes mask."""
    provider: str
    """What the mask decoder really ran on: "CPUExecutionProvider"."""
    precision: str
    """The precision of the mask decoder graph that ran: "fp32"."""

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """bool (P, C, H, W), original pixels.

        Raises ImageError where the prompts point at pictures of different sizes.
        """
        return binary_masks(self.mask_logits, self._hw, self.mask_threshold, self.frames[0])

    def upscaled_logits(self) -> Float32Array:
        """float32 (P, C, H, W): logits in original pixels, `masks` before the threshold. Not kept.

        Raises ImageError where the prompts point at pictures of different sizes.
        """
        return upscale_logits(self.mask_logits, self._hw, self.frames[0])

    def best(self) -> Result:
        """The candidate with the highest score for each prompt (C = 1)."""
        prompts = np.arange(len(self))
        chosen = np.argmax(self.scores, axis=1)
        return replace(
            self,
            scores=self.scores[prompts, chosen][:, None],
            logits=self.logits[prompts, chosen][:, None],
            mask_logits=self.mask_logits[prompts, chosen][:, None],
        )

    def to_supervision(self, **columns: Any) -> Any:
        """The best mask of each prompt as ``supervision.Detections``; columns and errors: `samrt.Segments.from_result`."""
        from samrt.segments import Segments  # here: segments need results

        return Segments.from_result(self, **columns).to_supervision()

    def __len__(self) -> int:
        """The number of prompts, P."""
        return len(self.scores)

    def __getitem__(self, index: int) -> Result:
        """The result of one prompt (P = 1); no copy."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        index %= len(self)
        part = slice(index, index + 1)
        return replace(
            self,
            scores=self.scores[part],
            logits=self.logits[part],
            object_scores=self.object_scores[part],
            mask_logits=self.mask_logits[part],
            frames=self.frames if len(self.frames) == 1 else self.frames[part],
        )

    def __iter__(self) -> Iterator[Result]:
        return (self[index] for index in range(len(self)))

    @property
    def _hw(self) -> tuple[int, int]:
        sizes = sorted({frame.image_hw for frame in self.frames})
        if len(sizes) > 1:
            raise ImageError(
                "pictures of different sizes have no common mask array",
                got=", ".join(f"{width} x {height}" for height, width in sizes),
                expected="one size",
                fix="one by one: [one.masks for one in result]",
            )
        return sizes[0]
