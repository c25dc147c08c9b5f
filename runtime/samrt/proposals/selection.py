"""Prompts to a model that has none: they choose among the masks it found.

All of it is worked out on run lengths, so that three hundred masks of a large picture need no more memory than the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.images import Image, as_rgb_uint8
from samrt.rle import Counts
from samrt.segments import Segments
from samrt_engines.errors import ImageError, InputError, PromptError

BoolArray = NDArray[np.bool_]
ScoreFunction = Callable[[Sequence[NDArray[np.uint8]]], ArrayLike]

_CROPS_AT_ONCE = 16


def select_points(segments: Segments, points: ArrayLike, labels: ArrayLike | None = None) -> BoolArray:
    """One mask from points, as FastSAM's own scripts answer them: masks are laid over each other, the largest first.

    A mask under a positive point is added to the answer, one under a negative point is cleared from it. About a mask under
    several points the last of them decides: to cut a part out of a whole, give the negative point first.

    points: (N, 2) or (2,) as (x, y), original pixels
    labels: (N,) 1 or 0; None is all 1
    returns: bool (H, W)
    Raises PromptError for points outside the picture or other labels.
    """
    hits, positive = _hits(segments, points, labels)
    answer = np.zeros(segments.image_hw, np.bool_)
    for index in np.argsort(-segments.areas, kind="stable"):
        under = np.flatnonzero(hits[index])
        if not len(under):
            continue
        if positive[under[-1]]:
            answer |= segments.mask(int(index))
        else:
            answer &= ~segments.mask(int(index))
    return answer


def select_hit(segments: Segments, points: ArrayLike, labels: ArrayLike | None = None) -> Segments:
    """The masks that lie under a positive point and under no negative one, each for itself, in their order.

    Arguments and errors: see `select_points`.
    """
    hits, positive = _hits(segments, points, labels)
    return segments[np.flatnonzero(hits[:, positive].any(axis=1) & ~hits[:, ~positive].any(axis=1))]


def select_box(segments: Segments, box: ArrayLike) -> BoolArray:
    """The mask that fits a box best: see `select_boxes`.

    box: (4,) xyxy, original pixels
    returns: bool (H, W); nothing where no mask touches the box
    Raises PromptError.
    """
    corners = np.asarray(box, np.float64)
    if corners.shape != (4,):
        raise PromptError("not a box", got=f"an array of shape {corners.shape}", expected="(4,) xyxy")
    found = select_boxes(segments, corners)
    return found.mask(0) if len(found) else np.zeros(segments.image_hw, np.bool_)


def select_boxes(segments: Segments, boxes: ArrayLike) -> Segments:
    """For each box the mask with the highest IoU with its area.

    boxes: (P, 4) or (4,) xyxy, original pixels; rounded to whole ones and cut off at the picture's edges
    returns: P `Segments` in the boxes' order with `prompt_boxes` set; less those boxes that no mask touches
    Raises PromptError for boxes without area, or outside the picture.
    """
    given = _checked_boxes(boxes, segments.image_hw)
    if not len(segments):
        return replace(segments, prompt_boxes=np.zeros((0, 4), np.float32))
    inside = np.stack([_areas_in_box(segments, box) for box in given])  # (P, M)
    box_areas = (given[:, 2] - given[:, 0]) * (given[:, 3] - given[:, 1])
    iou = inside / (box_areas[:, None] + segments.areas - inside)
    best = iou.argmax(axis=1)
    touched = iou[np.arange(len(given)), best] > 0
    return replace(segments[best[touched]], prompt_boxes=given[touched].astype(np.float32))


def select_by(segments: Segments, image: Image, score: ScoreFunction, *, least_px: int = 100) -> Segments:
    """Order masks by what a function says of their pictures, best first: the place of a text prompt.

    With CLIP, `score` embeds the pictures and returns their products with the embedding of the text; the first of the
    result is the answer, and a softmax over all of them would not change the order.

    image: the picture that the masks are of
    score: called with up to 16 pictures, each uint8 (h, w, 3): a mask's box cut out, black outside the mask; it returns
        as many numbers
    least_px: smaller masks are left out
    Raises ImageError for another picture's size, InputError for another number of scores or one that is not finite.
    """
    picture = as_rgb_uint8(image)
    if picture.shape[:2] != segments.image_hw:
        raise ImageError(
            "the masks are of another picture",
            got="{} x {} pixels".format(*picture.shape[1::-1]),
            expected="{} x {}".format(*segments.image_hw[::-1]),
        )
    large = segments[np.flatnonzero(segments.areas >= max(1, least_px))]
    scores: list[float] = []
    for start in range(0, len(large), _CROPS_AT_ONCE):
        crops = list(_crops(large[start : start + _CROPS_AT_ONCE], picture))
        said = np.asarray(score(crops), np.float64)
        if said.shape != (len(crops),) or not np.isfinite(said).all():
            raise InputError(
                "the function gave no score for each picture",
                got=f"an array of shape {said.shape}" + ("" if np.isfinite(said).all() else " with numbers not finite"),
                expected=f"({len(crops)},) finite numbers",
            )
        scores += said.tolist()
    return large[np.argsort(-np.array(scores), kind="stable")]


def _crops(segments: Segments, picture: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for index, box in enumerate(segments.boxes.astype(np.intp)):
        part = slice(box[1], box[3] + 1), slice(box[0], box[2] + 1)  # boxes include their last pixel
        yield picture[part] * segments.mask(index)[part][..., None]


def _hits(segments: Segments, points: ArrayLike, labels: ArrayLike | None) -> tuple[BoolArray, BoolArray]:
    """Which masks lie under which points, bool (M, N), and which points are positive, bool (N,). Raises PromptError."""
    places = np.asarray(points, np.float64)
    places = places[None] if places.shape == (2,) else places
    marks: NDArray[Any] = np.ones(len(places), np.int64) if labels is None else np.atleast_1d(np.asarray(labels))
    if places.ndim != 2 or places.shape[1] != 2 or not len(places) or marks.shape != (len(places),):
        raise PromptError(
            "points and labels do not belong together",
            got=f"points {places.shape}, labels {marks.shape}",
            expected="points (N, 2) as (x, y) and labels (N,)",
        )
    if not np.isin(marks, (0, 1)).all():
        raise PromptError("unknown label", got=f"{marks.tolist()}", expected="1 (on it) or 0 (not on it)")
    height, width = segments.image_hw
    if not ((places >= 0) & (places < (width, height))).all():  # not so for NaN
        raise PromptError(
            "a point outside the picture", got=f"{places.tolist()}", expected=f"0 <= x < {width}, 0 <= y < {height}"
        )
    columns, rows = places.astype(np.int64).T
    pixel = columns * height + rows  # as runs are counted
    hits = [np.searchsorted(np.cumsum(counts), pixel, side="right") % 2 == 1 for counts in segments.counts]
    return np.array(hits, np.bool_).reshape(len(segments), len(places)), marks == 1


def _checked_boxes(boxes: ArrayLike, image_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Boxes as whole pixels, one at least, int (P, 4) xyxy, the last ones not included. Raises PromptError."""
    given = np.atleast_2d(np.asarray(boxes, np.float64))
    if given.ndim != 2 or given.shape[1] != 4 or not np.isfinite(given).all():
        raise PromptError("not boxes", got=f"an array of shape {given.shape}", expected="finite (P, 4) xyxy")
    height, width = image_hw
    within = np.clip(given, 0, (width, height, width, height))
    empty = np.flatnonzero((within[:, 2:] <= within[:, :2]).any(axis=1))
    if len(empty):
        raise PromptError(
            "a box has no area in the picture",
            got=f"box {empty[0]}: {given[empty[0]].tolist()}",
            expected=f"x0 < x1 and y0 < y1 within {width} x {height}",
        )
    first, last = np.split(np.rint(within).astype(np.int64), 2, axis=1)
    narrow = last <= first
    first = np.where(narrow, np.floor(within[:, :2]).astype(np.int64), first)
    return np.concatenate((first, np.where(narrow, first + 1, last)), axis=1)


def _areas_in_box(segments: Segments, box: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many pixels of each mask lie in a box; int (M,).

    With before(p), the number of the box's pixels before pixel p in the order of the runs, a run from s to e holds
    before(e) - before(s) of them.
    """
    return np.array([_area_in_box(counts, box, segments.image_hw[0]) for counts in segments.counts], np.int64)


def _area_in_box(counts: Counts, box: NDArray[np.int64], height: int) -> int:
    x0, y0, x1, y1 = box.tolist()
    column, row = np.divmod(np.cumsum(counts), height)
    before = np.clip(column - x0, 0, x1 - x0) * (y1 - y0)
    before += np.where((column >= x0) & (column < x1), np.clip(row - y0, 0, y1 - y0), 0)
    runs = len(counts) // 2  # of pixels inside
    return int((before[1 : 2 * runs : 2] - before[0 : 2 * runs : 2]).sum())
