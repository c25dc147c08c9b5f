"""A picture and a mask to the views that the image features are made of.

Values are those of the official preprocessing: torchvision's resize of a float tensor (bilinear, antialiased) for colours,
torch's nearest neighbour for masks. A view is a square *window* of the picture that may reach past its edges, where
colours, masks and points are 0. No window is ever built whole, so that a wide picture does not cost its square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.images import MAX_PIXELS, MAX_SIDE, as_rgb_uint8
from samrt.numbers import ReconstructionNumbers
from samrt_engines.errors import ImageError, PromptError

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]

LEAST_BOX_PX = 2
_BAND_ROWS = 256  # of a picture that are widened to floats at once


@dataclass(frozen=True, slots=True)
class Window:
    """A square of a picture: rows `top` to `top + side - 1`, columns `left` to `left + side - 1`; any may lie outside."""

    top: int
    left: int
    side: int

    def inside(self, image_hw: tuple[int, int]) -> tuple[slice, slice]:
        """The picture's rows and columns that the window covers."""
        starts = (max(self.top, 0), max(self.left, 0))
        stops = (min(self.top + self.side, image_hw[0]), min(self.left + self.side, image_hw[1]))
        return slice(starts[0], stops[0]), slice(starts[1], stops[1])


def check_picture(image: Any, mask: Any) -> tuple[NDArray[np.uint8], BoolArray]:
    """Check a picture and a mask.

    image: what `samrt.as_rgb_uint8` takes
    mask: bool (H, W), as large as the picture
    returns: uint8 (H, W, 3), bool (H, W)
    Raises ImageError for what is not a picture or too large, PromptError for a mask that does not fit it or is empty.
    """
    picture = as_rgb_uint8(image)
    height, width = picture.shape[:2]
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise ImageError(
            "the picture is too large",
            got=f"{width} x {height} pixels",
            expected=f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side",
            fix="scale picture, mask and pointmap down: the model looks at a few hundred pixels a side",
        )
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise PromptError(
            "the mask is not a bool array", got=f"{array.dtype} {array.shape}", expected="bool (H, W)", fix="mask > 127"
        )
    if array.shape != (height, width):
        raise PromptError(
            "the mask is of another size than the picture",
            got=f"mask of shape {array.shape}",
            expected=f"({height}, {width}), the picture's height and width",
        )
    if not array.any():
        raise PromptError("the mask is empty", got="no True pixel", expected="True where the object is")
    return picture, array


def box_of_mask(mask: BoolArray) -> tuple[int, int, int, int]:
    """First and last row, first and last column with a True pixel. Raises PromptError for a box under 2 x 2 pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    # Sides are differences, as in the official code: three pixels in a row are two long.
    height, width = box[1] - box[0], box[3] - box[2]
    if min(height, width) < LEAST_BOX_PX:
        raise PromptError(
            "the mask is too small to see an object in",
            got=f"{width + 1} x {height + 1} pixels",
            expected=f"at least {LEAST_BOX_PX + 1} x {LEAST_BOX_PX + 1}",
            fix="take a mask of the whole object, or a larger picture",
        )
    return box


def crop_window(mask: BoolArray, crop_scale: float) -> Window:
    """The square around the mask's box, `crop_scale` times its longer side, centred, everything truncated to integers."""
    top, bottom, left, right = box_of_mask(mask)
    side = int(max(bottom - top, right - left) * crop_scale)
    return Window(int((top + bottom) / 2 - side / 2), int((left + right) / 2 - side / 2), side)


def full_window(image_hw: tuple[int, int]) -> Window:
    """The whole picture in the middle of a square."""
    height, width = image_hw
    side = max(height, width)
    return Window(-((side - height) // 2), -((side - width) // 2), side)


def view_rgb(image: NDArray[np.uint8], window: Window, px: int) -> Float32Array:
    """A window's colours, resized: bilinear with the triangle widened when reducing, edges cut off, unrounded.

    image: uint8 (H, W, 3)
    returns: float32 (px, px, 3), 0..1; outside of the picture 0
    """
    rows, columns = window.inside((image.shape[0], image.shape[1]))
    view = np.empty((px, px, 3), np.float32)
    for channel in range(3):
        tall = np.zeros((window.side, px), np.float32)
        for start in range(rows.start, rows.stop, _BAND_ROWS):
            band = slice(start, min(start + _BAND_ROWS, rows.stop))
            wide = np.zeros((band.stop - band.start, window.side), np.float32)
            inner = image[band, columns, channel].astype(np.float32) / np.float32(255)
            wide[:, columns.start - window.left : columns.stop - window.left] = inner
            tall[band.start - window.top : band.stop - window.top] = _resized(wide, px, len(wide))
        view[..., channel] = _resized(tall, px, px)
    return view


def _resized(plane: Float32Array, width: int, height: int) -> Float32Array:
    """Pillow's triangle filter on mode "F": what torch computes too. An axis that keeps its size is not touched."""
    import PIL.Image

    resized = PIL.Image.fromarray(plane).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def nearest(source: int, target: int) -> IndexArray:
    """The sample that torch's nearest neighbour takes for each of `target` pixels: floor(pixel * source / target)."""
    scale = np.float32(source) / np.float32(target)
    index = np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.intp)
    clipped: IndexArray = np.minimum(index, source - 1)
    return clipped


def take_window(array: NDArray[Any], window: Window, index: IndexArray, fill: float | bool) -> NDArray[Any]:
    """Samples of a window at the same places down and across.

    array: (H, W, ...); index: (px,), rows and columns of the window
    returns: (px, px, ...), `fill` where the window lies outside
    """
    height, width = array.shape[:2]
    rows, columns = index + window.top, index + window.left
    taken = array[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    outside = ((rows < 0) | (rows >= height))[:, None] | (columns < 0) | (columns >= width)
    taken[outside] = fill
    return taken


def view_mask(mask: BoolArray, window: Window, px: int) -> Float32Array:
    """A window's mask by nearest neighbour, as grey in three channels: float32 (px, px, 3), 0 or 1."""
    taken = take_window(mask, window, nearest(window.side, px), False)
    return np.repeat(taken[..., None], 3, axis=2).astype(np.float32)


def view_object(image: NDArray[np.uint8], mask: BoolArray, crop_scale: float, px: int) -> Float32Array:
    """The object alone on black, cropped: float32 (px, px, 3), 0..1.

    Step by step what `TrellisImageTo3DPipeline.preprocess_image` does with a picture that has alpha (microsoft/TRELLIS):
    Pillow crops, and resizes by Lanczos with alpha multiplied in, in whole levels.
    """
    import PIL.Image

    top, bottom, left, right = box_of_mask(mask)
    half = int(max(bottom - top, right - left) * crop_scale) // 2
    x, y = (left + right) / 2, (top + bottom) / 2
    rgba = np.dstack([image, mask.astype(np.uint8) * np.uint8(255)])
    crop = PIL.Image.fromarray(rgba).crop((x - half, y - half, x + half, y + half))
    levels = np.asarray(crop.resize((px, px), PIL.Image.Resampling.LANCZOS), np.float32) / np.float32(255)
    rounded = (levels[..., :3] * levels[..., 3:] * np.float32(255)).astype(np.uint8)
    return rounded.astype(np.float32) / np.float32(255)


def make_views(image: NDArray[np.uint8], mask: BoolArray, numbers: ReconstructionNumbers) -> Float32Array:
    """The views a model asks for, in its order.

    image: uint8 (H, W, 3); mask: bool (H, W)
    returns: float32 (views, view_px, view_px, 3), 0..1; normalisation is in the graph
    Raises PromptError for a mask under 3 x 3 pixels.
    """
    crop = crop_window(mask, numbers.crop_scale)
    full = full_window((image.shape[0], image.shape[1]))
    px = numbers.view_px
    makers: dict[str, Callable[[], Float32Array]] = {
        "crop_rgb": lambda: view_rgb(image, crop, px),
        "full_rgb": lambda: view_rgb(image, full, px),
        "crop_mask": lambda: view_mask(mask, crop, px),
        "full_mask": lambda: view_mask(mask, full, px),
        "object": lambda: view_object(image, mask, numbers.crop_scale, px),
    }
    return np.stack([makers[name]() for name in numbers.views])
