"""Segments as files: a COCO document, a coloured picture, mask pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.draw import PALETTE, blend_mask, overlay, pen_for
from samrt.segments import NO_CATEGORY, Segments

Uint8Array = NDArray[np.uint8]

_SAMPLES = 500  # pixels that tell a mask's mean colour
_OUTLINE_LINES = 6  # so many line widths from a mask nothing is drawn any more


def coco_document(
    segments: Segments, file_name: str, image_id: int = 1, *, first_id: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """A COCO file of one picture, as pycocotools reads it: images, annotations, categories."""
    height, width = segments.image_hw
    return {
        "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
        "annotations": segments.to_coco(image_id, first_id),
        "categories": categories_of(segments),
    }


def categories_of(segments: Segments) -> list[dict[str, Any]]:
    """COCO's categories: the named ones, and those that masks have; one called object where there are none."""
    names: Mapping[int, str] = segments.names or {}
    if segments.labels is None and not names:
        return [{"id": NO_CATEGORY, "name": "object"}]
    labels = [] if segments.labels is None else segments.labels.tolist()
    ids = sorted({*labels, *names})
    return [{"id": one, "name": names.get(one, str(one))} for one in ids]


def draw_segments(image: Uint8Array, segments: Segments, *, alpha: float = 0.5) -> Uint8Array:
    """Draw masks with smooth outlines on a copy of a picture, large ones first, and the boxes they answer.

    image: uint8 (H, W, 3) RGB
    returns: uint8 (H, W, 3) RGB. Masks are made one at a time, so that hundreds on a large picture take no more memory
        than one. Masks whose boxes overlap get different colours while there are enough, unlike what they lie on.
    """
    pen = pen_for(image.shape[:2])
    canvas = image.astype(np.float32)
    order = np.argsort(-segments.areas, kind="stable")
    boxed = segments.prompt_boxes is not None
    colours = np.arange(len(segments)) % len(PALETTE) if boxed else _colours(image, segments, order)
    for index in order:
        window, inside = segments.window(index, math.ceil(_OUTLINE_LINES * pen.line))
        blend_mask(canvas[window], inside, PALETTE[colours[index]], alpha, pen)
    drawn = np.rint(canvas).astype(np.uint8)
    if segments.prompt_boxes is not None and len(segments):
        return overlay(drawn, boxes=segments.prompt_boxes)
    return drawn


def _colours(image: Uint8Array, segments: Segments, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each mask the number of a colour: of those that the fewest drawn before it have whose boxes meet its own, the one
    that is furthest from what the mask lies on. (M,)
    """
    palette = np.array(PALETTE, np.float32)
    colours = np.zeros(len(order), np.int64)
    for place, index in enumerate(order):
        before, box = order[:place], segments.boxes[index]
        boxes = segments.boxes[before]
        meets = ((boxes[:, :2] <= box[2:] + 1) & (boxes[:, 2:] >= box[:2] - 1)).all(axis=1)
        used = np.bincount(colours[before[meets]], minlength=len(PALETTE))
        window, inside = segments.window(index)
        under = image[window][inside][:: max(1, segments.areas[index] // _SAMPLES)]
        apart = np.abs(palette - under.mean(axis=0)).sum(axis=1) if len(under) else np.zeros(len(PALETTE))
        colours[index] = np.lexsort((-apart, used))[0]
    return colours


def png_bytes(picture: NDArray[Any]) -> bytes:
    """A picture as PNG. picture: uint8 (H, W, 3) RGB or (H, W) grey; or bool (H, W), which becomes 0 and 255."""
    import PIL.Image

    array = picture.astype(np.uint8) * np.uint8(255) if picture.dtype == np.bool_ else picture
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def mask_pngs(segments: Segments) -> Iterator[bytes]:
    """Each mask as a PNG, 255 inside, one at a time."""
    return (png_bytes(segments.mask(index)) for index in range(len(segments)))
