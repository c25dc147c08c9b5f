"""From the mask decoder's candidates to masks in original pixels.

The order is the official one (``SAM2ImagePredictor``, ``SAM2Transforms.postprocess_masks``): choose candidates, fill
holes and remove sprinkles on the low-res logits, resize, threshold. The logits handed back for the next round are the
untouched ones, clamped.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samrt.bilinear import resize_planes, threshold_planes
from samrt.components import small_components
from samrt.numbers import MaskNumbers
from samrt.transforms import Frame

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_FILL = 10.0  # how far past the threshold filled holes and removed sprinkles are put, as upstream does


class Candidates(NamedTuple):
    """Chosen candidates: logits float32 (P, C, h, w), scores float32 (P, C)."""

    logits: Float32Array
    scores: Float32Array


def choose_candidates(
    logits: Float32Array, scores: Float32Array, numbers: MaskNumbers, *, multimask: bool
) -> Candidates:
    """Choose which of the decoder's candidates answer a request.

    logits: float32 (P, T, h, w); scores: float32 (P, T), the predicted IoU

    With `multimask`, all of ``numbers.multi``. Without, ``numbers.single``, of several the best-scored; and where the
    model asks for it, a prompt whose single mask is not stable gets the best-scored of ``numbers.multi`` instead, with its
    score (``MaskDecoder._dynamic_multimask_via_stability`` of SAM 2).
    """
    if multimask:
        return Candidates(_take(logits, numbers.multi), _take(scores, numbers.multi))
    if len(numbers.single) > 1:
        rows, best = np.arange(len(scores)), _best(scores, numbers.single)
        return Candidates(logits[rows, best][:, None], scores[rows, best][:, None])
    chosen = Candidates(_take(logits, numbers.single), _take(scores, numbers.single))
    rule = numbers.stability
    if rule is None:
        return chosen
    unstable = np.flatnonzero(stability_scores(chosen.logits, rule.delta)[:, 0] < rule.threshold)
    if len(unstable):
        best = _best(scores[unstable], numbers.multi)
        chosen = Candidates(chosen.logits.copy(), chosen.scores.copy())
        chosen.logits[unstable] = logits[unstable, best][:, None]
        chosen.scores[unstable] = scores[unstable, best][:, None]
    return chosen


def hq_candidates(logits: Float32Array, scores: Float32Array, numbers: MaskNumbers, *, multimask: bool) -> Candidates:
    """The HQ mask alone as the one candidate of each prompt, as sam-hq's ``hq_token_only`` does.

    logits: float32 (P, 1, h, w), the HQ mask; scores: float32 (P, T), of the decoder's candidates

    It has no score of its own. Its score is that of the candidate it would have been added to: of the single one, or with
    `multimask` the best of ``numbers.multi``.
    """
    asked = numbers.multi if multimask else numbers.single
    return Candidates(logits, _take(scores, asked).max(axis=1, keepdims=True))


def _best(scores: Float32Array, candidates: tuple[int, ...]) -> NDArray[np.intp]:
    """The best-scored of some candidates for each prompt; scores: (P, T) -> (P,)."""
    best: NDArray[np.intp] = np.array(candidates)[np.argmax(scores[:, candidates], axis=1)]
    return best


def _take(array: Float32Array, candidates: tuple[int, ...]) -> Float32Array:
    """The given candidates of (P, T, ...); a view where they stand next to each other, as in all known models."""
    first = candidates[0]
    if candidates == tuple(range(first, first + len(candidates))):
        return array[:, first : first + len(candidates)]
    return array[:, list(candidates)]


def stability_scores(logits: Float32Array, delta: float, threshold: float = 0.0) -> Float32Array:
    """Return how little each mask changes when its threshold moves by `delta` up and down: an IoU, 1 is most stable.

    logits: float32 (P, C, h, w)
    returns: float32 (P, C): pixels above threshold + delta over pixels above threshold - delta; 1 where there are none
    """
    flat = logits.reshape(*logits.shape[:2], -1)
    inner = np.count_nonzero(flat > np.float32(threshold + delta), axis=-1)
    outer = np.count_nonzero(flat > np.float32(threshold - delta), axis=-1)
    scores = np.ones(inner.shape, np.float32)
    np.divide(inner, outer, out=scores, where=outer > 0, casting="same_kind")
    return scores


def fill_holes(logits: Float32Array, max_area: float, threshold: float = 0.0) -> Float32Array:
    """Fill small holes: background components of at most `max_area` low-res pixels are set to threshold + 10.

    logits: float32 (P, C, h, w), not changed
    returns: float32 (P, C, h, w)
    """
    return _overwrite(logits, logits <= np.float32(threshold), max_area, threshold + _FILL)


def remove_sprinkles(logits: Float32Array, max_area: float, threshold: float = 0.0) -> Float32Array:
    """Remove small sprinkles: foreground components of at most `max_area` low-res pixels are set to threshold - 10.

    logits: float32 (P, C, h, w), not changed
    returns: float32 (P, C, h, w)
    """
    return _overwrite(logits, logits > np.float32(threshold), max_area, threshold - _FILL)


def clean_masks(
    logits: Float32Array, *, fill_hole_area: float = 0, remove_sprinkle_area: float = 0, threshold: float = 0.0
) -> Float32Array:
    """Fill holes, then remove sprinkles, each found in the logits as given (as upstream does); an area of 0 is off.

    logits: float32 (P, C, h, w), not changed
    returns: float32 (P, C, h, w)
    """
    cleaned = logits
    if fill_hole_area > 0:
        cleaned = fill_holes(logits, fill_hole_area, threshold)
    if remove_sprinkle_area > 0:
        cleaned = _overwrite(cleaned, logits > np.float32(threshold), remove_sprinkle_area, threshold - _FILL)
    return cleaned


def _overwrite(logits: Float32Array, region: BoolArray, max_area: float, value: float) -> Float32Array:
    small = small_components(region.reshape(-1, *region.shape[2:]), max_area).reshape(region.shape)
    return np.where(small, np.float32(value), logits)


def upscale_logits(logits: Float32Array, hw: tuple[int, int], frame: Frame | None = None) -> Float32Array:
    """Resize mask logits to a picture's size: bilinear, align_corners False, no antialias.

    logits: float32 (P, C, h, w); hw: the picture's size
    frame: where the picture lies in the model's input; needed when that is padded (see `binary_masks`)
    returns: float32 (P, C, H, W)
    """
    planes = _picture_planes(logits, frame)
    return resize_planes(planes, hw).reshape(*logits.shape[:2], *hw)


def binary_masks(
    logits: Float32Array, hw: tuple[int, int], threshold: float = 0.0, frame: Frame | None = None
) -> BoolArray:
    """Return ``upscale_logits(logits, hw, frame) > threshold``, the same pixel for pixel and much faster.

    logits: float32 (P, C, h, w); hw: the picture's size
    frame: where the picture lies in the model's input. Logits cover the padded input of longest_side; they are then
        resized to input pixels, cropped to the picture, and resized again, as the official SAM does
    returns: bool (P, C, H, W)
    """
    planes = _picture_planes(logits, frame)
    return threshold_planes(planes, hw, threshold).reshape(*logits.shape[:2], *hw)


def _picture_planes(logits: Float32Array, frame: Frame | None) -> Float32Array:
    """Logits as planes (P * C, h, w) that cover the picture and nothing else."""
    planes = np.ascontiguousarray(logits, np.float32).reshape(-1, *logits.shape[2:])
    if frame is None or frame.content_hw == frame.input_hw:
        return planes
    return resize_planes(planes, frame.input_hw, crop_hw=frame.content_hw)
