"""Prompts: what a person points at, checked once and turned into the prompt encoder's tensors.

Every kind of prompt says how many prompts P it holds, and all kinds given must agree: nothing is repeated silently. A
single point list (N, 2), box (4,) or mask (h, w) is P = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.numbers import PromptNumbers
from samrt.transforms import Frame
from samrt_engines.errors import PromptError

Float32Array = NDArray[np.float32]

LABELS = {-1: "padding", 0: "negative", 1: "positive", 2: "box_top_left", 3: "box_bottom_right"}
"""The labels a point may have, in every model; the manifest says by which number a model knows each."""

OUTSIDE_PX = 1.0
"""How far outside the picture a point or box corner may lie, in original pixels; an edge drawn by hand often does."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """P prompts for one picture, or one prompt each for P pictures.

    points: (N, 2) or (P, N, 2), x and y in original pixels
    labels: (N,) or (P, N), one for each point: 1 on the object, 0 not on it, -1 no point (fills up short lists; its
        position is ignored), 2 and 3 the top left and bottom right corner of a box
    boxes: (4,) or (P, 4), x0 y0 x1 y1 in original pixels
    masks: (h, w), (P, h, w) or (P, 1, h, w), low-res logits of an earlier result

    After construction the fields hold float32 (P, N, 2), int32 (P, N), float32 (P, 4), float32 (P, h, w), or None.
    Raises PromptError for no prompt at all, points without labels and labels without points, shapes that do not match,
    NaN or infinity, an unknown label, a box with x1 < x0 or y1 < y0, kinds that disagree about P.
    """

    points: Any = None
    labels: Any = None
    boxes: Any = None
    masks: Any = None

    def __post_init__(self) -> None:
        points, labels = _read_points(self.points, self.labels)
        kinds = {"points": points, "labels": labels, "boxes": _read_boxes(self.boxes), "masks": _read_masks(self.masks)}
        for name, array in kinds.items():
            object.__setattr__(self, name, array)
        counts = {name: len(array) for name, array in kinds.items() if array is not None and name != "labels"}
        if not counts:
            raise PromptError(
                "there is no prompt", got="no points, boxes or masks", fix="Prompts(points=[[x, y]], labels=[1])"
            )
        if len(set(counts.values())) > 1:
            raise PromptError(
                "the kinds of prompts disagree about how many prompts there are",
                got=", ".join(f"{count} of {name}" for name, count in counts.items()),
                expected="the same number of each",
                fix="repeat the shorter one: numpy.repeat(masks, P, axis=0)",
            )
        if 0 in counts.values():
            raise PromptError("there is no prompt", got=f"an empty array of {next(iter(counts))}", expected="P >= 1")

    def __len__(self) -> int:
        """The number of prompts, P."""
        return len(next(array for array in (self.points, self.boxes, self.masks) if array is not None))

    def scaled(self, x: float, y: float) -> Prompts:
        """The same prompts with all coordinates multiplied: by width and height, relative ones become pixels."""
        points = None if self.points is None else self.points * np.array([x, y], np.float32)
        boxes = None if self.boxes is None else self.boxes * np.array([x, y, x, y], np.float32)
        return Prompts(points, self.labels, boxes, self.masks)


def to_tensors(
    prompts: Prompts,
    frames: Sequence[Frame],
    numbers: PromptNumbers,
    max_columns: int | None = None,
    absent_mask_hw: tuple[int, int] | None = None,
) -> dict[str, NDArray[Any]]:
    """Turn prompts into the prompt encoder's feeds.

    frames: one for all prompts, or one for each
    max_columns: the most columns of points the graph takes, where its profile says so
    absent_mask_hw: size of mask_input where no prompt has a mask; None is the size of a mask
    returns: point_coords float32 (P, N, 2) in input pixels; point_labels int32 (P, N); mask_input float32 (P, 1, h, w);
        has_mask_input float32 (P,); without the last two where the model takes no masks. Columns are the box's two
        corners, the points, and the padding that the model wants; N is 0 for masks alone.
    Raises PromptError for a point or box more than 1 px outside its picture, more points than the model takes, masks of
    another size, and a kind of prompt that the model does not have.
    """
    columns = _columns(prompts, numbers)
    _check_count(columns, numbers, max_columns)
    coords, labels = _place_points(prompts, frames, numbers, columns)
    return {"point_coords": coords, "point_labels": labels} | _mask_tensors(prompts, numbers, absent_mask_hw)


def _columns(prompts: Prompts, numbers: PromptNumbers) -> tuple[int, int, int]:
    """How many columns the box, the points and the padding take."""
    box = 0 if prompts.boxes is None else 2
    points = 0 if prompts.points is None else prompts.points.shape[1]
    if numbers.padding_point == "fill":
        return box, points, max(0, numbers.max_points - box - points)
    padding = box == 0 if numbers.padding_point == "without_box" else True
    return box, points, int(padding and box + points > 0)


def _check_count(columns: tuple[int, int, int], numbers: PromptNumbers, max_columns: int | None) -> None:
    box, points, padding = columns
    most = numbers.max_points
    if max_columns is not None:
        most = min(most, max_columns - (0 if numbers.padding_point == "fill" else padding))
    if box + points > most:
        raise PromptError(
            "more points than the model takes",
            got=f"{points} points" + (" and 2 corners of the box" if box else ""),
            expected=f"at most {most} in all",
            fix="give fewer points",
        )


def _place_points(
    prompts: Prompts, frames: Sequence[Frame], numbers: PromptNumbers, columns: tuple[int, int, int]
) -> tuple[Float32Array, NDArray[np.int32]]:
    box, points, padding = columns
    total = box + points + padding
    coords = np.zeros((len(prompts), total, 2), np.float32)
    labels = np.full((len(prompts), total), numbers.padding, np.int32)
    if box:
        coords[:, :2] = prompts.boxes.reshape(-1, 2, 2)
        labels[:, :2] = numbers.box_top_left, numbers.box_bottom_right
    if points:
        coords[:, box : box + points] = prompts.points
        labels[:, box : box + points] = _model_labels(prompts.labels, numbers)
    real = slice(0, box + points)  # the padding stays at (0, 0)
    _check_inside(prompts, coords[:, real], frames)
    if len(frames) == 1:
        coords[:, real] = frames[0].input_from_image(coords[:, real])
    else:
        for row, frame in zip(coords, frames, strict=True):
            row[real] = frame.input_from_image(row[real])
    return coords, labels


def _model_labels(labels: NDArray[np.int32], numbers: PromptNumbers) -> NDArray[np.int32]:
    known = {label: getattr(numbers, name) for label, name in LABELS.items()}
    absent = [label for label, number in known.items() if number is None and (labels == label).any()]
    if absent:
        raise PromptError(
            f"the model has no {LABELS[absent[0]]} points",
            got=f"label {absent[0]}",
            expected=", ".join(
                f"{label} {LABELS[label].replace('_', ' ')}" for label in known if known[label] is not None
            ),
            fix="leave these points out, or use a model that was trained with them",
        )
    table = np.array([0 if number is None else number for number in known.values()], np.int32)
    return table[labels - min(LABELS)]


def _check_inside(prompts: Prompts, coords: Float32Array, frames: Sequence[Frame]) -> None:
    """Refuse what lies more than a pixel outside the picture. coords: (P, N, 2), the box's corners first."""
    size = np.array([(frame.image_hw[1], frame.image_hw[0]) for frame in frames], np.float32)[:, None]  # (1 or P, 1, 2)
    outside: NDArray[np.bool_] = np.any((coords < -OUTSIDE_PX) | (coords > size + np.float32(OUTSIDE_PX)), axis=-1)
    if not outside.any():
        return
    box = coords.shape[1] - (0 if prompts.points is None else prompts.points.shape[1])
    if prompts.labels is not None:
        outside[:, box:] &= prompts.labels != -1
    for prompt, column in np.argwhere(outside)[:1]:
        width, height = size[prompt if len(size) > 1 else 0, 0]
        if column < box:
            what, value = f"box {prompt}", prompts.boxes[prompt]
        else:
            what, value = f"point {column - box} of prompt {prompt}", prompts.points[prompt, column - box]
        inside = np.clip(value, 0, [width, height] * (len(value) // 2))
        raise PromptError(
            f"{what} lies outside the picture",
            got=_listed(value),
            expected=f"x in 0..{width:g}, y in 0..{height:g} (original pixels)",
            fix=f"clip it: {_listed(inside)}",
        )


def _mask_tensors(
    prompts: Prompts, numbers: PromptNumbers, absent_hw: tuple[int, int] | None
) -> dict[str, Float32Array]:
    """``mask_input`` and ``has_mask_input``; nothing where the model takes no masks."""
    if numbers.mask_size_hw is None:
        if prompts.masks is not None:
            raise PromptError(
                "the model takes no mask prompts",
                got=f"{len(prompts)} masks",
                expected="points or boxes",
                fix="leave the masks out, or use a model whose abilities include masks: samrt info BUNDLE",
            )
        return {}
    height, width = numbers.mask_size_hw
    if prompts.masks is None:
        masks = np.zeros((len(prompts), 1, *(absent_hw or (height, width))), np.float32)
        return {"mask_input": masks, "has_mask_input": np.zeros(len(prompts), np.float32)}
    if prompts.masks.shape[1:] != (height, width):
        raise PromptError(
            "a mask prompt has the wrong size",
            got=f"{prompts.masks.shape[1]} x {prompts.masks.shape[2]}",
            expected=f"{height} x {width} low-res logits",
            fix="pass result.logits of an earlier decode, not result.masks",
        )
    masks = np.ascontiguousarray(prompts.masks[:, None])
    return {"mask_input": masks, "has_mask_input": np.ones(len(prompts), np.float32)}


def _read_points(points: ArrayLike | None, labels: ArrayLike | None) -> tuple[Float32Array | None, Any]:
    if points is None and labels is None:
        return None, None
    if points is None or labels is None:
        given, absent = ("labels", "points") if points is None else ("points", "labels")
        raise PromptError(f"{given} without {absent}", got=f"{absent}=None", expected="one label for each point")
    coords = _read_floats("points", points)
    if coords.ndim not in (2, 3) or coords.shape[-1] != 2:
        _wrong_shape("points", coords, "(N, 2) or (P, N, 2)", "points=[[x, y]] for a single point")
    marks = _read_labels(labels)
    if marks.shape != coords.shape[:-1]:
        _wrong_shape("labels", marks, f"{coords.shape[:-1]}, one for each point")
    if coords.shape[-2] == 0:
        raise PromptError("there is no prompt", got=f"points of shape {coords.shape}", expected="at least one point")
    coords, marks = coords.reshape(-1, *coords.shape[-2:]), marks.reshape(-1, marks.shape[-1])
    return coords, marks


def _read_labels(labels: ArrayLike) -> NDArray[np.int32]:
    try:
        marks = np.asarray(labels)
    except ValueError:
        marks = np.asarray(None)
    known = ", ".join(f"{number} {name.replace('_', ' ')}" for number, name in LABELS.items())
    if marks.dtype.kind not in "iubf":
        raise PromptError("labels must be numbers", got=_briefly(labels), expected=known)
    unknown = ~np.isin(marks, list(LABELS))
    if unknown.any():
        raise PromptError("unknown label", got=f"{marks[unknown].flat[0]!s}", expected=known)
    return marks.astype(np.int32)


def _read_boxes(boxes: ArrayLike | None) -> Float32Array | None:
    if boxes is None:
        return None
    corners = _read_floats("boxes", boxes)
    if corners.ndim not in (1, 2) or corners.shape[-1] != 4:
        _wrong_shape("boxes", corners, "(4,) or (P, 4) as x0 y0 x1 y1")
    corners = corners.reshape(-1, 4)
    crossed = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    for index in np.flatnonzero(crossed)[:1]:
        x0, y0, x1, y1 = corners[index]
        raise PromptError(
            f"the corners of box {index} are crossed",
            got=_listed(corners[index]),
            expected="x0 <= x1 and y0 <= y1",
            fix=f"swap them: {_listed(np.array([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]))}",
        )
    return corners


def _read_masks(masks: ArrayLike | None) -> Float32Array | None:
    if masks is None:
        return None
    given = np.asarray(masks) if isinstance(masks, np.ndarray) else None
    if given is not None and given.dtype == np.bool_:
        raise PromptError(
            "a mask prompt holds logits, not bool", got=f"bool array of shape {given.shape}", fix="pass result.logits"
        )
    logits = _read_floats("masks", masks)
    if logits.ndim == 4 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.ndim == 2:
        logits = logits[None]
    if logits.ndim != 3:
        fix = "one candidate per prompt: result.best().logits" if logits.ndim == 4 else None
        _wrong_shape("masks", logits, "(h, w), (P, h, w) or (P, 1, h, w)", fix)
    return logits


def _read_floats(name: str, values: ArrayLike) -> Float32Array:
    """A fresh float32 array of finite numbers."""
    try:
        with np.errstate(over="ignore"):  # a double too large for a float becomes infinite and is refused below
            array = np.array(values, np.float32)
    except (ValueError, TypeError, OverflowError):
        raise PromptError(f"{name} must be numbers", got=_briefly(values), expected="an array of numbers") from None
    finite = np.isfinite(array)
    if not finite.all():
        raise PromptError(f"{name} must be finite", got=f"{array[~finite].flat[0]} among them")
    return array


def _wrong_shape(name: str, array: NDArray[Any], expected: str, fix: str | None = None) -> NoReturn:
    raise PromptError(f"{name} have the wrong shape", got=f"{array.shape}", expected=expected, fix=fix)


def _listed(values: NDArray[np.floating]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _briefly(values: object) -> str:
    try:
        text = ascii(values)
    except Exception:  # a foreign object's __repr__ may do anything
        text = type(values).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
