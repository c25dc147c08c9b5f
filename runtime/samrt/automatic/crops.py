"""Crops: the picture cut into overlapping parts, so that small things are looked at larger."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EDGE_PX = 20.0
"""A box that comes this close to an edge of its crop is taken to be cut off by it."""


class Crop(NamedTuple):
    """A part of a picture, in original pixels; layer 0 is the whole."""

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int

    @property
    def hw(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def crop_boxes(image_hw: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole picture, then for each layer i = 1.. a grid of 2^i by 2^i crops, column by column.

    Neighbours in layer 1 overlap by `overlap_ratio` of the picture's shorter side, in each further layer by half as much.
    Crops of pictures with fewer pixels than crops along a side may be empty: those are left out.
    """
    height, width = image_hw
    crops = [Crop(0, 0, width, height, 0)]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        crop_w, crop_h = (math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height))
        for column in range(per_side):
            for row in range(per_side):
                x0, y0 = (crop_w - overlap) * column, (crop_h - overlap) * row
                crop = Crop(x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height), layer)
                if crop.x0 < crop.x1 and crop.y0 < crop.y1:
                    crops.append(crop)
    return crops


def cut_off(boxes: NDArray[np.integer], crop: Crop, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes lie within `EDGE_PX` of an edge of their crop that is not an edge of the picture.

    boxes: (M, 4) xyxy in original pixels
    returns: bool (M,)
    """
    height, width = image_hw
    near_crop = np.abs(boxes - np.array([crop.x0, crop.y0, crop.x1, crop.y1])) <= EDGE_PX
    near_image = np.abs(boxes - np.array([0, 0, width, height])) <= EDGE_PX
    return np.asarray((near_crop & ~near_image).any(axis=1))
