"""A picture of any shape in a detector's fixed input: scaled to fit, centred, grey around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from samrt.bilinear import resize_planes
from samrt.numbers import ProposalNumbers

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Letterbox:
    """Where a picture lies in the input: the link between original pixels and input pixels.

    The aspect is kept but for rounding to whole pixels; an odd pixel of padding is at the bottom or on the right.
    """

    image_hw: tuple[int, int]
    numbers: ProposalNumbers

    @cached_property
    def content_hw(self) -> tuple[int, int]:
        """Size of the picture in the input. Never 0, also for a picture one pixel wide."""
        gain = min(side / own for side, own in zip(self.numbers.size_hw, self.image_hw, strict=True))
        height, width = (
            min(side, max(1, round(own * gain))) for side, own in zip(self.numbers.size_hw, self.image_hw, strict=True)
        )
        return height, width

    @cached_property
    def offset_yx(self) -> tuple[int, int]:
        """The picture's top left corner in the input."""
        top, left = ((side - own) // 2 for side, own in zip(self.numbers.size_hw, self.content_hw, strict=True))
        return top, left

    def image_to_input(self, image: NDArray[np.uint8]) -> Float32Array:
        """The input for a picture: bilinear without antialiasing and in whole grey levels, as upstream resizes.

        image: uint8 (h, w, 3) RGB of `image_hw`
        returns: float32 (H, W, 3), 0..255
        """
        (top, left), (height, width) = self.offset_yx, self.content_hw
        target = np.full((*self.numbers.size_hw, 3), self.numbers.pad_value, np.float32)
        content = target[top : top + height, left : left + width]
        if self.content_hw == self.image_hw:
            content[...] = image
            return target
        for channel in range(3):  # one by one: a large picture in float32 takes four times its memory
            plane = np.ascontiguousarray(image[..., channel], np.float32)[None]
            np.rint(resize_planes(plane, self.content_hw)[0], out=content[..., channel])
        return target

    def image_from_input(self, boxes: Float32Array) -> Float32Array:
        """Map boxes from input pixels to original pixels, cut off at the picture's edges. float32 (M, 4) xyxy."""
        (top, left), (height, width) = self.offset_yx, self.content_hw
        scale = np.array([self.image_hw[1] / width, self.image_hw[0] / height] * 2, np.float32)
        moved = (boxes - np.array([left, top] * 2, np.float32)) * scale
        limits = np.array([self.image_hw[1], self.image_hw[0]] * 2, np.float32)
        clipped: Float32Array = np.clip(moved, np.float32(0), limits)
        return clipped

    def content_of(self, planes_hw: tuple[int, int]) -> tuple[slice, slice]:
        """The rows and columns of a coarser map of the whole input that show the picture.

        Whole samples, as upstream cuts them: a half at either end is kept, and one sample is left at least.
        """
        parts = []
        for side, own, offset, content in zip(
            self.numbers.size_hw, planes_hw, self.offset_yx, self.content_hw, strict=True
        ):
            per_px = own / side
            start, stop = math.ceil(offset * per_px - 0.5), math.floor((offset + content) * per_px + 0.5)
            if stop <= start:
                start = min(own - 1, math.floor(offset * per_px))
                stop = start + 1
            parts.append(slice(start, stop))
        return parts[0], parts[1]
