"""Prompts with the frames they are about, and the file they are read from.

``prompts.json``::

    {"prompts": [
        {"frame": 0, "obj_id": 1, "points": [[320, 200], [10, 10]], "labels": [1, 0]},
        {"frame": 0, "obj_id": 2, "box": [16, 12, 47, 35]},
        {"frame": 30, "obj_id": 2, "mask": "mask.png"},
        {"frame": 40, "obj_id": 3, "mask": {"size": [48, 64], "counts": "..."}},
        {"frame": 90, "obj_id": 1, "remove": true}
    ]}

frame: number in the source, counted from 0; left out, the first frame that is read. obj_id: a whole number; left out, 1.
points: x and y in pixels, with a label each: 1 on the object, 0 not on it; without labels, all are on it. box: x0 y0 x1 y1,
alone or with points. mask: a picture of the frame's size beside the file, not black on the object, or a .npy array; or COCO's
RLE, as ``samrt track -o OUT.jsonl`` writes it under "segmentation". remove: the object is forgotten from that frame on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from samrt.images import read_image
from samrt.rle import decode_mask
from samrt_engines.errors import ImageError, InputError, PromptError

BoolArray = NDArray[np.bool_]

_KEYS = ("frame", "obj_id", "points", "labels", "box", "mask", "remove")
_MOST = 2**31 - 1
_MOST_OBJECTS = 255


class PromptTaker(Protocol):
    """The part of a tracker that prompts are given to."""

    def add_points(self, obj_id: int, points: Any = None, labels: Any = None, *, box: Any = None) -> object: ...
    def add_box(self, obj_id: int, box: Any) -> object: ...
    def add_mask(self, obj_id: int, mask: Any) -> object: ...
    def remove_object(self, obj_id: int) -> object: ...


@dataclass(frozen=True, slots=True, eq=False)
class FramePrompt:
    """What is said about one object on one frame: points, a box, both, a mask, or that it goes."""

    obj_id: int = 1
    frame: int | None = None
    """Its number in the source; None is the first frame that is read."""
    points: Sequence[Sequence[float]] | None = None
    labels: Sequence[int] | None = None
    box: Sequence[float] | None = None
    mask: BoolArray | None = None
    remove: bool = False

    def __post_init__(self) -> None:
        kinds = [name for name in ("points", "box", "mask") if getattr(self, name) is not None]
        kinds += ["remove"] if self.remove else []
        if not kinds or (len(kinds) > 1 and kinds != ["points", "box"]):
            raise PromptError(
                f"the prompt for {self} says too {'much' if kinds else 'little'}",
                got=", ".join(kinds) or "nothing",
                expected="points, a box, both, a mask, or remove",
            )

    def apply(self, tracker: PromptTaker) -> None:
        """Give it to a tracker, about the frame that comes next. Raises PromptError."""
        if self.remove:
            tracker.remove_object(self.obj_id)
        elif self.mask is not None:
            tracker.add_mask(self.obj_id, self.mask)
        elif self.points is not None:
            labels = [1] * len(self.points) if self.labels is None else self.labels
            tracker.add_points(self.obj_id, self.points, labels, box=self.box)
        else:
            tracker.add_box(self.obj_id, self.box)

    def __str__(self) -> str:
        return f"object {self.obj_id} " + ("on the first frame" if self.frame is None else f"on frame {self.frame}")


def read_prompts_file(path: Path) -> list[FramePrompt]:
    """Read and check a prompts file. Raises PromptError, which names the entry."""
    try:
        document = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise PromptError(f"cannot read {path}", got=error.strerror, expected="a file of prompts") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"cannot read {path}", got=str(error), expected='{"prompts": [...]}') from None
    entries = document.get("prompts") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(document) > 1:
        got = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise PromptError(f"cannot read {path}", got=got or "nothing", expected='{"prompts": [...]} and no other key')
    if not entries:
        raise PromptError(f"there is no prompt in {path}", got="an empty list", expected="at least one")
    return [_Entry(entry, f"{path.name}: prompts[{index}]", path.parent).read() for index, entry in enumerate(entries)]


def read_mask_file(path: Path) -> dict[int, BoolArray]:
    """Read masks, bool (H, W), by object id.

    Several where the file says so: an indexed picture, whose values are the ids, as DAVIS' and ours; or a .npy array of
    whole numbers. Any other picture, and a .npy array of bool, is object 1 where it is not black.
    Raises PromptError.
    """
    values = _read_values(path)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        got = f"{values.dtype} array of shape {values.shape}"
        raise PromptError(f"there is no mask in {path}", got=got, expected="(H, W) of bool or whole numbers")
    ids = [int(value) for value in np.unique(values) if value]
    if not ids:
        raise PromptError(f"there is no mask in {path}", got="only background", expected="an object")
    if len(ids) > _MOST_OBJECTS:
        got = f"{len(ids)} different values"
        raise PromptError(f"too many objects in {path}", got=got, expected=f"at most {_MOST_OBJECTS}, or a bool mask")
    return {obj_id: values == obj_id for obj_id in ids}


def _read_values(path: Path) -> NDArray[Any]:
    """A mask file's object ids, or bool. Raises PromptError."""
    import PIL.Image

    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        inside = np.asarray(read_image(path).any(axis=2))  # checks the file; an index of 0 need not be black
        with PIL.Image.open(path) as picture:
            return np.asarray(picture) if picture.mode == "P" else inside
    except ImageError as error:
        raise PromptError(f"cannot read the mask {path}", got=error.got, expected="a picture or .npy") from error
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise PromptError(f"cannot read the mask {path}", got=got, expected="a picture or .npy") from error


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a prompts file, and where it stands."""

    value: Any
    where: str
    folder: Path

    def read(self) -> FramePrompt:
        if not isinstance(self.value, Mapping):
            self._fail("", type(self.value).__name__, "an object")
        for key in self.value:
            if key not in _KEYS:
                self._fail("", f"the key {key!a}", f"no others than {', '.join(_KEYS)}")
        points = self._points()
        try:
            return FramePrompt(
                obj_id=self._whole("obj_id", 1, least=-_MOST),
                frame=self._whole("frame", None),
                points=points,
                labels=self._labels(points),
                box=self._box(),
                mask=self._mask(),
                remove=self._remove(),
            )
        except PromptError as error:
            if error.what.startswith(self.where):
                raise
            raise PromptError(
                f"{self.where}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
            ) from error

    def _whole(self, key: str, missing: Any, least: int = 0) -> Any:
        value = self.value.get(key)
        if value is None:
            return missing
        if type(value) is not int or not least <= value <= _MOST:
            self._fail(key, ascii(value)[:60], f"a whole number from {least} on")
        return value

    def _points(self) -> list[list[float]] | None:
        points = self.value.get("points")
        if points is None:
            return None
        if not isinstance(points, list) or not points or not all(_numbers(point, 2) for point in points):
            self._fail("points", ascii(points)[:60], "[[x, y], ...] in pixels")
        return points

    def _labels(self, points: list[list[float]] | None) -> list[int] | None:
        labels = self.value.get("labels")
        if labels is None:
            return None
        whole = isinstance(labels, list) and all(type(label) is int for label in labels)
        if points is None or not whole or len(labels) != len(points):
            self._fail("labels", ascii(labels)[:60], "1 or 0 for each point")
        return list(labels)

    def _box(self) -> list[float] | None:
        box = self.value.get("box")
        if box is not None and not _numbers(box, 4):
            self._fail("box", ascii(box)[:60], "[x0, y0, x1, y1] in pixels")
        return None if box is None else list(box)

    def _mask(self) -> BoolArray | None:
        mask = self.value.get("mask")
        if mask is None:
            return None
        if isinstance(mask, str):
            parts = read_mask_file(self.folder / mask)
            return np.asarray(np.any(list(parts.values()), axis=0))
        try:
            return decode_mask(mask)
        except InputError as error:
            self._fail("mask", f"{error.what}: {error.got}", error.expected or "a file's name or COCO's RLE")

    def _remove(self) -> bool:
        remove = self.value.get("remove", False)
        if not isinstance(remove, bool):
            self._fail("remove", ascii(remove)[:60], "true or false")
        return remove

    def _fail(self, key: str, got: str, expected: str) -> NoReturn:
        raise PromptError(f"{self.where}{'.' if key else ''}{key}", got=got, expected=expected)


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(one) in (int, float) for one in value)
