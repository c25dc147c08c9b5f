"""Masks as prompts: from the frame's pixels to the model's input, and to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.transforms import Frame
from samrt_engines.errors import PromptError

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_SCALE, _BIAS = 20.0, -10.0  # from 0..1 to logits, as upstream


def read_mask(mask: ArrayLike, hw: tuple[int, int] | None = None) -> BoolArray:
    """Check a mask prompt.

    mask: (H, W) or (1, H, W) of bool or of numbers, of which all but 0 are the object
    hw: the frame's size, where it is known
    returns: bool (H, W), a copy
    Raises PromptError.
    """
    try:
        array: NDArray[Any] = np.asarray(mask)
    except ValueError:
        array = np.asarray(None)
    expected = "(H, W), the frame's pixels" if hw is None else f"({hw[0]}, {hw[1]}), the frame's pixels"
    if array.dtype.kind not in "biuf":
        raise PromptError("a mask must be an array of bool or numbers", got=type(mask).__name__, expected=expected)
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or array.size == 0 or (hw is not None and array.shape != hw):
        raise PromptError(
            "the mask has the wrong size",
            got=f"{array.shape}",
            expected=expected,
            fix="resize it to the frame: PIL.Image.fromarray(mask).resize((W, H))",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PromptError("a mask must be finite", got="NaN or infinity among the values", expected="0 and 1")
    inside: BoolArray = array != 0
    return inside


def fit_masks(masks: Sequence[BoolArray], frame: Frame) -> Float32Array:
    """Resize masks to the model's input as upstream does: bilinear with antialias, then cut at a half.

    masks: bool (H, W) each, the frame's pixels
    returns: float32 (K, S, S) of 0 and 1; the padding of longest_side is 0
    """
    fitted = np.zeros((len(masks), *frame.input_hw), np.float32)
    height, width = frame.content_hw
    for mask, target in zip(masks, fitted, strict=True):
        target[:height, :width] = _resized(mask.astype(np.float32), frame.content_hw) >= 0.5
    return fitted


def mask_logits(masks: Float32Array, hw: tuple[int, int]) -> Float32Array:
    """The low-res logits of masks at the model's input size: float32 (K, S, S) -> (K, h, w), -10 to 10."""
    return np.stack([_resized(mask * np.float32(_SCALE) + np.float32(_BIAS), hw) for mask in masks])


def _resized(plane: Float32Array, hw: tuple[int, int]) -> Float32Array:
    """Bilinear, with antialias where it shrinks."""
    import PIL.Image

    if plane.shape == hw:
        return plane
    picture = PIL.Image.fromarray(plane)  # mode "F": Pillow computes in floats
    return np.asarray(picture.resize((hw[1], hw[0]), PIL.Image.Resampling.BILINEAR))
