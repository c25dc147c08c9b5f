"""What the mask decoder made of some objects on one frame, and how it is finished: chosen, filled, freed of overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from samrt.bilinear import plan_axis
from samrt.components import small_components
from samrt.masks import binary_masks, choose_candidates, upscale_logits
from samrt.numbers import MaskNumbers
from samrt.transforms import Frame

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_FILLED = 0.1  # what upstream's video predictor sets holes to
_OVERLAPPED = -10.0  # at most this is left of a logit where another object won


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """K objects on one frame."""

    logits: Float32Array
    """(K, h, w) low-res mask logits, small holes filled."""
    memory_logits: Float32Array
    """(K, h, w) what the memory is made of: as `logits`, but with holes where nobody pointed the object out."""
    scores: Float32Array
    """(K,) the IoU the model expects the mask to have."""
    object_scores: Float32Array
    """(K,) logits, above 0 where the object is seen."""
    pointer_scores: Float32Array
    """(K,) the same for the object pointer; differs for mask prompts, where the decoder may see what the mask denies."""
    tokens: NDArray[np.generic]
    """(K, C) the mask token the object pointer is made of."""
    prompted: BoolArray
    """(K,) whether somebody pointed the object out on this frame."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Sequence[int] | slice) -> Outcome:
        """Some of the objects."""
        index = rows if isinstance(rows, slice) else list(rows)
        return Outcome(**{one.name: getattr(self, one.name)[index] for one in fields(self)})

    def replaced(self, rows: Sequence[int], other: Outcome) -> Outcome:
        """With some objects' part taken from another outcome; a row that is one past the last adds an object."""
        count = max(len(self), *(row + 1 for row in rows))
        parts = {}
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            whole = np.zeros((count, *mine.shape[1:]), mine.dtype)
            whole[: len(mine)] = mine
            whole[list(rows)] = theirs
            parts[one.name] = whole
        return Outcome(**parts)


def join_outcomes(parts: Sequence[Outcome]) -> Outcome:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    names = [one.name for one in fields(Outcome)]
    return Outcome(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def choose_masks(
    logits: Float32Array, scores: Float32Array, numbers: MaskNumbers, *, multimask: bool
) -> tuple[Float32Array, Float32Array, NDArray[np.intp]]:
    """One mask for each object, of the decoder's candidates.

    logits: (K, T, h, w); scores: (K, T)
    multimask: the best-scored of several; else the single mask, which gives way to another where it is not stable
    returns: logits (K, h, w), scores (K,), and (K,) the candidate whose token makes the object pointer: the mask's own
        with `multimask`; else always the single one, whatever mask took its place (``SAM2Base._forward_sam_heads``)
    """
    chosen = choose_candidates(logits, scores, numbers, multimask=multimask)
    objects = np.arange(len(scores))
    best = np.argmax(chosen.scores, axis=1)
    candidates = np.array(numbers.multi if multimask else numbers.single, np.intp)
    token = candidates[best if multimask else np.zeros_like(best)]
    return chosen.logits[objects, best], chosen.scores[objects, best], token


def fill_small_holes(logits: Float32Array, max_area: float) -> Float32Array:
    """Fill holes of at most `max_area` low-res pixels; 0 is off.

    logits: float32 (K, h, w), not changed
    returns: float32 (K, h, w), 0.1 where there was a hole
    """
    if max_area <= 0 or not len(logits):
        return logits
    holes = small_components(logits <= 0, max_area)
    return np.where(holes, np.float32(_FILLED), logits) if holes.any() else logits


def video_logits(logits: Float32Array, frame: Frame, *, non_overlap: bool) -> Float32Array:
    """Logits in the frame's pixels.

    logits: float32 (K, h, w)
    non_overlap: where masks overlap, only the object with the highest logit keeps more than -10
    returns: float32 (K, H, W)
    """
    large = upscale_logits(logits[:, None], frame.image_hw, frame)[:, 0]
    if non_overlap and len(large) > 1:
        wins = np.argmax(large, axis=0)[None] == np.arange(len(large))[:, None, None]
        np.minimum(large, np.float32(_OVERLAPPED), out=large, where=~wins)
    return large


def video_masks(logits: Float32Array, frame: Frame, threshold: float, *, non_overlap: bool) -> BoolArray:
    """Masks in the frame's pixels: ``video_logits(...) > threshold`` pixel for pixel, and much faster.

    logits: float32 (K, h, w)
    returns: bool (K, H, W)
    """
    masks = binary_masks(logits[:, None], frame.image_hw, threshold, frame)[:, 0]
    if not non_overlap or len(masks) < 2:
        return masks
    disputed = np.nonzero(np.count_nonzero(masks, axis=0) > 1)
    if len(disputed[0]):
        wins = np.argmax(_values_at(logits, frame, *disputed), axis=0)[None] == np.arange(len(masks))[:, None]
        masks[:, disputed[0], disputed[1]] &= wins
    return masks


def _values_at(logits: Float32Array, frame: Frame, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Float32Array:
    """Logits in the frame's pixels, at some of them only. Returns (K, pixels)."""
    if frame.content_hw != frame.input_hw:
        return upscale_logits(logits[:, None], frame.image_hw, frame)[:, 0, rows, columns]
    height, width = logits.shape[1:]
    down, across = plan_axis(height, frame.image_hw[0]), plan_axis(width, frame.image_hw[1])
    top, left = down.cell[rows], across.cell[columns]
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    # In the order that samrt.bilinear keeps everywhere, so that the values are the same to the last bit.
    upper = logits[:, top, left] + (logits[:, top, right] - logits[:, top, left]) * across.weight[columns]
    lower = logits[:, bottom, left] + (logits[:, bottom, right] - logits[:, bottom, left]) * across.weight[columns]
    values: Float32Array = upper + (lower - upper) * down.weight[rows]
    return values
