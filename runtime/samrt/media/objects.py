"""Tracked objects as pictures: drawn on a frame, and as one plane of object ids with the DAVIS palette."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.draw import INK, PALETTE, WHITE, Colour, Pen, blend_mask, pen_for, stamp
from samrt.media.frames import Uint8Array
from samrt_engines.errors import InputError

BoolArray = NDArray[np.bool_]

MOST_ID = 255
"""The highest object id that an indexed picture can hold; 0 is the background."""


def colour_of(obj_id: int) -> Colour:
    """The colour of an object: object 1 has the first of `samrt.draw.PALETTE`; the eleventh shares it."""
    return PALETTE[(obj_id - 1) % len(PALETTE)]


def draw_objects(image: Uint8Array, masks: BoolArray, obj_ids: Sequence[int]) -> Uint8Array:
    """Draw masks with outlines, each in its object's colour and with its id, on a copy of a frame.

    image: uint8 (H, W, 3); masks: bool (K, H, W); small ones lie on top
    returns: uint8 (H, W, 3)
    """
    import PIL.Image

    pen = pen_for(image.shape[:2])
    canvas = image.copy()
    order = sorted(range(len(masks)), key=lambda index: -np.count_nonzero(masks[index]))
    for index in order:
        window = _window(masks[index], reach=int(3 * pen.line) + 2)
        if window is not None:  # only what changes goes through float
            part = canvas[window].astype(np.float32)
            blend_mask(part, masks[index][window], colour_of(obj_ids[index]), 0.5, pen)
            canvas[window] = np.rint(part).astype(np.uint8)
    drawing = PIL.Image.fromarray(canvas)
    for index in order:
        _draw_id(drawing, masks[index], obj_ids[index], pen)
    return np.asarray(drawing)


def _window(mask: BoolArray, reach: int) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return (
        slice(max(0, rows[0] - reach), rows[-1] + reach + 1),
        slice(max(0, columns[0] - reach), columns[-1] + reach + 1),
    )


def _draw_id(drawing: Any, mask: BoolArray, obj_id: int, pen: Pen) -> None:
    """Write an object's id on a chip in its colour, at the top of its mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return
    x, text, colour = float(np.flatnonzero(mask[rows[0]]).mean()), str(obj_id), colour_of(obj_id)
    width, height = (0.75 + 0.6 * len(text)) * pen.text, 1.35 * pen.text
    left = float(np.clip(x - width / 2, 0, max(0, drawing.width - width)))
    top = float(np.clip(rows[0] - height - pen.line, 0, max(0, drawing.height - height)))

    def draw(pencil: Any, scale: float) -> None:
        import PIL.ImageFont

        pencil.rounded_rectangle(
            (0, 0, width * scale - 1, height * scale - 1), radius=height * scale / 3, fill=(*colour, 235)
        )
        ink = INK if sum(np.multiply(colour, (0.3, 0.59, 0.11))) > 150 else WHITE
        font = PIL.ImageFont.load_default(pen.text * scale)
        pencil.text((width * scale / 2, height * scale / 2), text, font=font, anchor="mm", fill=(*ink, 255))

    stamp(drawing, draw, (left, top), (width, height))


def davis_palette() -> NDArray[np.uint8]:
    """The palette of DAVIS and PASCAL VOC, uint8 (256, 3): the bits of an id, dealt to red, green, blue in turn.

    The three lowest bits become the highest of red, green and blue, the next three the ones below, and so on.
    """
    ids = np.arange(256)[:, None]
    channels = np.arange(3)
    colours = np.zeros((256, 3), np.int64)
    for level in range(3):
        colours |= ((ids >> (3 * level + channels)) & 1) << (7 - level)
    return colours.astype(np.uint8)


def id_plane(masks: BoolArray, obj_ids: Sequence[int]) -> Uint8Array:
    """One plane that holds each pixel's object id, 0 where there is none. Where masks overlap, the lower id wins.

    masks: bool (K, H, W)
    returns: uint8 (H, W)
    Raises InputError for an id that does not fit.
    """
    check_ids(obj_ids)
    plane = np.zeros(masks.shape[1:], np.uint8)
    for index in sorted(range(len(masks)), key=lambda index: -obj_ids[index]):
        plane[masks[index]] = obj_ids[index]
    return plane


def check_ids(obj_ids: Sequence[int]) -> None:
    """Refuse object ids that an indexed picture cannot hold. Raises InputError."""
    for obj_id in obj_ids:
        if not 1 <= obj_id <= MOST_ID:
            raise InputError(
                f"object id {obj_id} does not fit a mask picture",
                got=str(obj_id),
                expected=f"1 to {MOST_ID}; 0 is the background",
                fix="number the objects from 1 on, or write .jsonl",
            )
