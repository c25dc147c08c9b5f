"""Pictures in: from a file or an array to uint8 (H, W, 3) RGB, or one clear ImageError.

What a file may be, and what becomes of it:

- JPEG, PNG, WebP, BMP, TIFF or GIF, recognised by content, never by name; of several frames the first, but an animated GIF
  is refused: it is a video, which `samrt track` reads
- turned upright as its EXIF orientation says
- grey and palette become RGB; alpha is dropped, not composited (as ``PIL.Image.convert("RGB")`` does); CMYK is
  converted
- 16 bits a channel are scaled to 8 by dropping the lower byte
- at most 50 million pixels and 16,384 a side, read from the header: a bomb is refused before anything is decoded
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384

Image = Any
"""A picture as callers pass it: a numpy array or anything numpy reads as one, or a PIL image. See `as_rgb_uint8`."""


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> NDArray[np.uint8]:
    """Read a picture file as the module's rules say.

    source: a path, the file's bytes, or a binary file object
    returns: uint8 (H, W, 3) RGB, upright
    Raises ImageError for a missing, empty, truncated or too large file, one that is not a picture, or another format.
    """
    import PIL.Image

    name = str(os.fspath(source)) if isinstance(source, str | os.PathLike) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of bombs and odd EXIF; the caps below are stricter
            with PIL.Image.open(_opened(source, name), formats=FORMATS) as picture:
                _check_size(picture.width, picture.height, name, max_pixels, max_side)
                _check_still(picture, name)
                return as_rgb_uint8(_upright(picture))
    except ImageError:
        raise
    except PIL.UnidentifiedImageError:
        raise ImageError(
            f"cannot read {name}", got="not a picture of a known format", expected=", ".join(FORMATS)
        ) from None
    except (
        PIL.Image.DecompressionBombError
    ) as error:  # PIL's own cap, where the one asked for is higher or is met first
        raise ImageError(f"{name} is too large", got=str(error), expected=f"at most {max_pixels} pixels") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ImageError(f"cannot read {name}", got=error.strerror, expected="a picture file") from None
    except MemoryError:
        raise ImageError(f"cannot read {name}", got="out of memory", fix="lower max_pixels") from None
    except Exception as error:  # on damaged files decoders raise OSError, SyntaxError, struct.error, and more
        raise ImageError(
            f"cannot read {name}", got=f"a damaged file: {error}", expected="a whole picture", fix="save it again"
        ) from None


def as_rgb_uint8(image: Image) -> NDArray[np.uint8]:
    """Bring a picture in memory to the one form the runtime works with.

    image: a PIL image; or an array (H, W) or (H, W, 1) grey, (H, W, 3) RGB, (H, W, 4) RGBA (alpha is dropped), of dtype
        uint8; uint16 (the upper byte is kept); float in 0..1 (times 255, rounded); bool (0 and 255)
    returns: uint8 (H, W, 3) RGB, C-contiguous; an array that is already so is returned itself, not copied
    Raises ImageError for any other dtype or shape, an empty picture, NaN, or floats outside 0..1.
    """
    if type(image).__module__.startswith("PIL."):
        return _from_pil(image)
    if isinstance(image, str | bytes | os.PathLike):
        raise ImageError("not a picture", got=type(image).__name__, expected=_EXPECTED, fix="samrt.read_image(...)")
    try:
        array = np.asarray(image)
    except (ValueError, TypeError) as error:
        raise ImageError("not a picture", got=f"{type(image).__name__}: {error}", expected=_EXPECTED) from None
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        raise ImageError("not a picture", got=_described(array), expected=_EXPECTED, fix=_layout_fix(array))
    if array.size == 0:
        raise ImageError("the picture is empty", got=_described(array), expected="at least one pixel")
    if channels == 4:
        array = array[..., :3]
    array = _to_uint8(array)
    if channels == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array)


_EXPECTED = "an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16, bool or float in 0..1"


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        scaled: NDArray[np.uint8] = (array >> 8).astype(np.uint8)
        return scaled
    if array.dtype.kind != "f":
        fix = "image.astype(numpy.uint8) for values 0..255" if array.dtype.kind in "iu" else None
        raise ImageError("a picture of this type is not understood", got=_described(array), expected=_EXPECTED, fix=fix)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):
        got = "NaN among the values" if np.isnan(low) or np.isnan(high) else f"values from {low:g} to {high:g}"
        is_255 = low >= 0 and high <= 255
        fix = "image.astype(numpy.uint8), where these are 0..255" if is_255 else "numpy.clip(image, 0, 1)"
        raise ImageError("a float picture must lie in 0..1", got=got, expected="values from 0 to 1", fix=fix)
    rounded: NDArray[np.uint8] = np.rint(array.astype(np.float32) * np.float32(255)).astype(np.uint8)
    return rounded


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} array of shape {array.shape}"


def _layout_fix(array: NDArray[Any]) -> str | None:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return "image.transpose(1, 2, 0), where the channels come first"
    if array.ndim == 4:
        return "a list of pictures, each (H, W, 3), for a batch"
    return None


def _opened(source: str | os.PathLike[str] | bytes | BinaryIO, name: str) -> Any:
    """Return what PIL opens; refuses an empty file by name, which PIL would call unidentified."""
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"cannot read {name}", got="an empty file", expected="a picture")
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if "\0" in str(path):
            raise ImageError("cannot read the picture", got=f"the path {str(path)!a}", expected="a picture file")
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(f"cannot read {name}", got="an empty file", expected="a picture")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ImageError(f"cannot read {name}", got="a device, pipe or socket", expected="a picture file")
        return path
    return source


def _check_size(width: int, height: int, name: str, max_pixels: int, max_side: int) -> None:
    if width * height > max_pixels or max(width, height) > max_side:
        raise ImageError(
            f"{name} is too large",
            got=f"{width} x {height} pixels",
            expected=f"at most {max_pixels} pixels and {max_side} a side",
            fix="scale it down, or raise max_pixels and max_side of samrt.read_image",
        )


def _check_still(picture: PIL.Image.Image, name: str) -> None:
    """Refuse an animated GIF. Only the start of its second frame is looked for."""
    if picture.format == "GIF" and getattr(picture, "is_animated", False):
        raise ImageError(
            f"{name} is an animation",
            got="a GIF of several frames",
            expected="one picture",
            fix="as a video: samrt track, samrt.media.open_frames; as a picture: save one of its frames as PNG",
        )


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Decode, and apply the EXIF orientation."""
    import PIL.Image
    import PIL.ImageOps

    picture.load()
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except (ValueError, TypeError, KeyError, SyntaxError, OSError):
        return picture  # damaged EXIF data is no reason to refuse an intact picture


def _from_pil(image: PIL.Image.Image) -> NDArray[np.uint8]:
    """A PIL image of any mode; modes of more than 8 bits are reduced by value where PIL itself would clip them."""
    if min(image.size) == 0:
        raise ImageError("the picture is empty", got=f"a PIL image of size {image.size}", expected="at least one pixel")
    if image.mode.startswith("I;16"):
        return as_rgb_uint8(np.asarray(image).astype(np.uint16))
    if image.mode == "I":  # PIL reads some 16-bit files into 32 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            got = f"PIL mode I with values from {values.min()} to {values.max()}"
            raise ImageError("a picture of this depth is not understood", got=got, expected="0 to 65535")
        return as_rgb_uint8(values.astype(np.uint16))
    if image.mode == "F":
        return as_rgb_uint8(np.asarray(image))
    try:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")))
    except (ValueError, OSError, SyntaxError) as error:
        got = f"PIL mode {image.mode}: {error}"
        raise ImageError("cannot convert the picture to RGB", got=got, expected="a whole picture") from None
