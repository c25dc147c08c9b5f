"""Non-maximum suppression: of boxes that overlap too much, the one with the highest score stays."""

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import InputError

_BLOCK = 256  # boxes judged at once, and
_COLUMNS = 2048  # boxes they are compared with at once: the tables between stay in the second-level cache


def nms(boxes: NDArray[np.floating], scores: NDArray[np.floating], threshold: float) -> NDArray[np.intp]:
    """Walk the boxes from the highest score down and drop each whose IoU with one that stayed is above `threshold`.

    The answer of ``torchvision.ops.nms`` on the CPU, bit for bit: arithmetic in the boxes' own float type, equal scores in
    the order given, IoU compared as a double; a box without area overlaps nothing. At most _BLOCK x _COLUMNS pairs are in
    memory at a time, whatever the number of boxes.

    boxes: float32 or float64 (M, 4) xyxy, finite
    scores: float (M,), finite
    returns: int (K,) indices of the boxes that stay, highest score first
    Raises InputError for arrays of other shapes.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != (len(boxes),):
        raise InputError(
            "boxes and scores do not belong together",
            got=f"boxes {boxes.shape}, scores {scores.shape}",
            expected="boxes (M, 4) and scores (M,)",
        )
    left = np.argsort(-scores, kind="stable")
    corners = np.ascontiguousarray(boxes.T)
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    limit = _round_down(threshold, boxes.dtype)
    kept: list[NDArray[np.intp]] = []
    while len(left):
        block, left = left[:_BLOCK], left[_BLOCK:]
        block = block[_stay(_overlap(corners, areas, block, block, limit))]
        kept.append(block)
        survives = [
            ~_overlap(corners, areas, block, left[start : start + _COLUMNS], limit).any(axis=0)
            for start in range(0, len(left), _COLUMNS)
        ]
        if survives:
            left = left[np.concatenate(survives)]
    return np.concatenate(kept) if kept else left


def _stay(overlap: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of boxes by falling score, which overlap none that stays before them.

    overlap: bool (n, n)
    """
    gone = np.zeros(len(overlap), np.bool_)
    later = np.triu(overlap, 1)
    for index in np.flatnonzero(later.any(axis=1)):
        if not gone[index]:
            gone |= later[index]
    return ~gone


def _overlap(
    corners: NDArray[np.floating],
    areas: NDArray[np.floating],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    limit: np.floating,
) -> NDArray[np.bool_]:
    """Whether the IoU of each pair is above the limit; bool (len(first), len(second))."""
    x0, y0, x1, y1 = corners[:, first, None]
    others = corners[:, second]
    width = np.minimum(x1, others[2])
    width -= np.maximum(x0, others[0])
    np.maximum(width, 0, out=width)
    height = np.minimum(y1, others[3])
    height -= np.maximum(y0, others[1])
    np.maximum(height, 0, out=height)
    shared = np.multiply(width, height, out=width)
    union = np.add(areas[first, None], areas[second], out=height)
    union -= shared
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 of boxes without area is not above any limit
        above: NDArray[np.bool_] = np.divide(shared, union, out=union) > limit
    return above


def _round_down(threshold: float, dtype: np.dtype[np.floating]) -> np.floating:
    """The largest number of a float type that is not above the threshold: `x > it` says what `float(x) > threshold` says."""
    rounded = dtype.type(threshold)
    below: np.floating = np.nextafter(rounded, dtype.type(-np.inf))
    return below if float(rounded) > threshold else rounded
