"""Pictures into the image encoder's input, and coordinates with them.

Equal, value by value, to the official preprocessing. SAM 2 (``SAM2Transforms``: ToTensor, then a torch resize with
antialias) runs the triangle filter on unrounded float values, which is what Pillow does on mode "F"; SAM
(``ResizeLongestSide``) lets Pillow resize the picture in bytes. Normalisation is not here: it is inside the graph, and
values stay on the 0..255 scale.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from samrt.bilinear import resize_planes
from samrt.numbers import ImageNumbers
from samrt_engines.errors import ImageError

_LARGE = 3 * 512 * 512  # values from which on threads pay


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the model's input: the link between original pixels and input pixels.

    stretch: the picture fills the input, its aspect is not kept (SAM 2).
    longest_side: the longer side fills the input, the picture lies top left, the rest is padding (SAM).
    """

    image_hw: tuple[int, int]
    numbers: ImageNumbers

    @property
    def input_hw(self) -> tuple[int, int]:
        """Size of the model's input."""
        return self.numbers.size_hw

    @cached_property
    def content_hw(self) -> tuple[int, int]:
        """Size of the picture in the input, the padding left out. Never 0, also for a picture one pixel high."""
        if self.numbers.resize == "stretch":
            return self.input_hw
        scale = self.input_hw[0] / max(self.image_hw)
        height, width = (max(1, int(side * scale + 0.5)) for side in self.image_hw)
        return height, width

    def input_from_image(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Map points from original pixels to input pixels.

        points: float (..., 2) as (x, y); boxes as (..., 2, 2), their two corners
        returns: float32, the same shape
        """
        scale = [self.content_hw[1] / self.image_hw[1], self.content_hw[0] / self.image_hw[0]]
        return (np.asarray(points, np.float64) * scale).astype(np.float32)


def image_to_input(image: NDArray[np.uint8], numbers: ImageNumbers, dtype: str = "float32") -> NDArray[np.generic]:
    """Resize one picture to the image encoder's input.

    image: uint8 (h, w, 3) RGB
    dtype: "float32" gives the exact resized values, "uint8" these values rounded
    returns: (H, W, 3) of that dtype, 0..255; the padding of longest_side has the mean colour, which becomes 0 where the
        graph normalises (the official code pads with 0 after normalising), within half a level for uint8
    Raises ImageError for an array of another type or shape: `samrt.images.as_rgb_uint8` brings it into this form.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(
            "not a picture in the form of the runtime",
            got=f"{image.dtype} array of shape {image.shape}",
            expected="uint8 (H, W, 3) RGB",
            fix="samrt.as_rgb_uint8(image)",
        )
    frame = Frame((image.shape[0], image.shape[1]), numbers)
    content_h, content_w = frame.content_hw
    if frame.content_hw == frame.input_hw:
        target = np.empty((*frame.input_hw, 3), np.float32)
    else:
        target = np.tile(np.array(numbers.mean, np.float32) * np.float32(255), (*frame.input_hw, 1))
    content = target[:content_h, :content_w]
    if frame.image_hw == frame.content_hw:
        content[...] = image
    elif numbers.resize_dtype == "uint8":
        content[...] = _resized_in_bytes(image, frame.content_hw)
    elif numbers.antialias:
        _resize_antialiased(image, content)
    else:
        planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        content[...] = resize_planes(planes, frame.content_hw).transpose(1, 2, 0)
    if dtype == "uint8":
        return np.rint(target, out=target).astype(np.uint8)
    return target


def _resized_in_bytes(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 (h, w, 3) as Pillow does with an ordinary picture: whole levels after each of its two passes."""
    import PIL.Image

    picture = PIL.Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((hw[1], hw[0]), PIL.Image.Resampling.BILINEAR))


def _resize_antialiased(image: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Resize uint8 (h, w, 3) into float32 (H, W, 3): bilinear (triangle filter, widened when reducing), unrounded.

    The channels of a large picture are resized side by side: Pillow lets go of the interpreter meanwhile.
    """
    import PIL.Image

    size = (out.shape[1], out.shape[0])

    def resize_channel(channel: int) -> None:
        plane = PIL.Image.fromarray(image[..., channel].astype(np.float32))  # mode "F"
        out[..., channel] = np.asarray(plane.resize(size, PIL.Image.Resampling.BILINEAR))

    if image.size < _LARGE:
        for channel in range(3):
            resize_channel(channel)
        return
    with ThreadPoolExecutor(3) as pool:
        for _ in pool.map(resize_channel, range(3)):
            pass
