"""Boxes from a file: whatever a detector left, for `samrt.segment_boxes`.

These are understood, by their form::

    [[x0, y0, x1, y1], ...]                                                  boxes of the one picture that is segmented
    {"dog.jpg": [[x0, y0, x1, y1], ...], "park/cat.jpg": []}                 boxes by file name
    {"dog.jpg": [{"box": [x0, y0, x1, y1], "label": "dog", "score": 0.9}]}   the same, with label (a name or an id) and score
    [{"image_id": 139, "bbox": [x, y, width, height], "category_id": 18, "score": 0.9}, ...]   COCO detections
    {"images": [...], "annotations": [...], "categories": [...]}             a COCO annotation file

All numbers are original pixels. ``box`` is two corners, ``bbox`` is COCO's corner and size; other keys are passed over.
A file name is a picture's path in its folder with forward slashes, or its last part where no other picture has it. An image id
without a table of images is the number that the file's name is (000000000139.jpg is 139), or its name without suffix.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import InputError, PromptError

Float32Array = NDArray[np.float32]

MAX_BYTES = 2**29
"""The largest file that is read; JSON takes about ten times its size in memory."""

_MOST = 2.0**24  # pixels; float32 is whole up to here
_MOST_ID = 2**53  # JSON's whole numbers


@dataclass(frozen=True, eq=False)
class PictureBoxes:
    """The boxes of one picture, in the file's order."""

    boxes: Float32Array
    """(N, 4): x0, y0, x1, y1 in original pixels."""
    labels: NDArray[np.int64] | None = None
    """(N,): category ids; None where no box of the file has one."""
    scores: Float32Array | None = None
    """(N,): the detector's confidence, NaN for a box without; None where no box of the file has one."""

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of many pictures, from `read_boxes`."""

    source: str
    """Where they are from, for messages."""
    by_key: Mapping[str | int | None, PictureBoxes]
    """A file name, an image id, or None (the one picture) -> its boxes."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Category id -> name."""
    file_names: Mapping[str | int, str] = field(default_factory=dict)
    """Image id -> file name, where the file has a table of images."""
    sizes: Mapping[str | int, tuple[int, int]] = field(default_factory=dict)
    """Image id -> height and width of the picture the boxes were made on, where that table says."""

    def of(self, key: str | int | None) -> PictureBoxes:
        """The boxes under a key of `match`; none, of the same make, under another."""
        if key in self.by_key:
            return self.by_key[key]
        labelled = any(boxes.labels is not None for boxes in self.by_key.values())
        return PictureBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64) if labelled else None)

    def match(self, file_names: Sequence[str], *, one: bool = False) -> dict[str, str | int | None]:
        """Which key each picture's boxes are under; pictures without boxes are left out.

        file_names: of all pictures, relative with forward slashes
        one: a single picture was asked for, so that boxes of others are no mistake
        Raises PromptError for boxes of a picture that is not there, or of which there are several, and for two entries
        about one picture.
        """
        if one and (exact := [key for key in self.by_key if key and self.file_names.get(key, key) == file_names[0]]):
            return {file_names[0]: exact[0]}
        found: dict[str, str | int | None] = {}
        whole, known = set(file_names), _last_parts(file_names)
        for key in self.by_key:
            wanted = key if key is None else self.file_names.get(key, key)
            if wanted is None and not len(self.by_key[key]) and not one:
                continue  # an empty list: COCO detections of a detector that found nothing
            if wanted is None:
                matches = list(file_names)
            elif wanted in whole:
                matches = [str(wanted)]
            else:
                matches = known.get(PurePosixPath(wanted).name if isinstance(wanted, str) else wanted, [])
            if one and not matches:
                continue
            if len(matches) != 1:
                self._refuse(key, matches, file_names)
            if matches[0] in found:
                got = f"{found[matches[0]]!r} and {key!r}"
                raise PromptError(f"{self.source}: two entries about {matches[0]}", got=got, expected="one")
            found[matches[0]] = key
        if one and not found:
            self._refuse(next(iter(self.by_key), None), [], file_names)
        return found

    def _refuse(self, key: str | int | None, matches: Sequence[str], file_names: Sequence[str]) -> NoReturn:
        if key is None and len(file_names) > 1:
            raise PromptError(
                f"{self.source} does not say which picture its boxes are of",
                got=f"a list of boxes for {len(file_names)} pictures",
                expected="one picture",
                fix='{"dog.jpg": [[x0, y0, x1, y1]], ...}',
            )
        wanted = "no box at all" if key is None else ascii(self.file_names.get(key, key))
        known = ", ".join(map(ascii, (matches or file_names)[:4])) + (", ..." if len(matches or file_names) > 4 else "")
        raise PromptError(
            f"{self.source}: boxes of {'several pictures' if matches else 'a picture that is not there'}",
            got=wanted,
            expected=f"one of {known}",
            fix="the picture's path in the folder"
            if matches
            else "a COCO file with a table of images says which picture an id is of"
            if isinstance(key, int) and key not in self.file_names
            else None,
        )


def read_boxes(path: str | os.PathLike[str]) -> Boxes:
    """Read a file of boxes, in any of the module's forms.

    Raises InputError for a file that cannot be read, is larger than `MAX_BYTES` or not JSON; PromptError, which says where,
    for boxes that are none: other than four numbers, NaN, crossed corners, entries without a box or a picture.
    """
    source = Path(path)
    document = _read_json(source)
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        return _read_coco(str(source), document)
    if isinstance(document, dict) and all(isinstance(value, list) for value in document.values()):
        groups: dict[str | int | None, list[Any]] = dict(document)
        return _boxes(str(source), groups, _where_in_map)
    if isinstance(document, list) and document and all(isinstance(entry, dict) for entry in document):
        if not any("image_id" in entry for entry in document):
            return _boxes(str(source), {None: document}, _where_in_list)
        return _boxes(str(source), _by_image(str(source), "", document), _where_in_list)
    if isinstance(document, list):
        return _boxes(str(source), {None: document}, _where_in_list)
    if isinstance(document, dict) and document:
        key, value = next((key, value) for key, value in document.items() if not isinstance(value, list))
        raise PromptError(
            f"{source} holds no boxes",
            got=f"{type(value).__name__} under {key!a}",
            expected="a list of boxes for each file name, or COCO's detections or annotations",
            fix=f'{{"{key}": [[x0, y0, x1, y1], ...]}}' if key.isprintable() else None,
        )
    raise PromptError(
        f"{source} holds no boxes",
        got=f"an object with the keys {', '.join(map(ascii, list(document)[:4]))}"
        if isinstance(document, dict)
        else type(document).__name__,
        expected="a list of boxes, boxes by file name, or COCO's detections or annotations",
    )


def _read_json(source: Path) -> Any:
    try:
        if not source.is_file():
            kind = (
                "a folder" if source.is_dir() else "no such file" if not source.exists() else "a device, pipe or socket"
            )
            raise InputError(f"cannot read {source}", got=kind, expected="a JSON file of boxes")
        size = source.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                f"{source} is too large",
                got=f"{size / 2**20:.0f} MiB",
                expected=f"at most {MAX_BYTES >> 20} MiB",
                fix="leave the segmentations out, or split it",
            )
        return json.loads(source.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {source}", got=error.strerror, expected="a JSON file of boxes") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        got = "nested too deep" if isinstance(error, RecursionError) else str(error)[:120]
        raise InputError(f"{source} is not JSON", got=got, expected="a JSON file of boxes") from error


def _read_coco(source: str, document: Mapping[str, Any]) -> Boxes:
    """A COCO annotation file."""
    file_names: dict[str | int, str] = {}
    sizes: dict[str | int, tuple[int, int]] = {}
    for index, image in enumerate(_objects(source, document, "images")):
        where = f"{source}: images[{index}]"
        name, key = image.get("file_name"), _image_id(image.get("id"), where)
        if not isinstance(name, str) or not name:
            raise PromptError(f"{where}.file_name", got=ascii(name)[:60], expected="a picture's name")
        if key in file_names:
            raise PromptError(f"{where}.id", got=f"{key!a} a second time", expected="an id of its own")
        file_names[key] = name
        size = image.get("height"), image.get("width")
        if all(type(side) is int for side in size):
            sizes[key] = size  # type: ignore[assignment]
    names: dict[int, str] = {}
    for index, category in enumerate(_objects(source, document, "categories")):
        number = category.get("id")
        if type(number) is not int or not 0 <= number <= _MOST_ID:
            got = ascii(number)[:60]
            raise PromptError(f"{source}: categories[{index}].id", got=got, expected="a whole number from 0 on")
        names[number] = str(category.get("name", number))
    groups = _by_image(source, "annotations", document["annotations"])
    for index, entry in enumerate(document["annotations"]):
        if entry["image_id"] not in file_names:
            raise PromptError(
                f"{source}: annotations[{index}].image_id", got=repr(entry["image_id"]), expected="an id of images"
            )
    empty: dict[str | int | None, list[Any]] = {key: [] for key in file_names}
    return replace(_boxes(source, empty | groups, _where_in_annotations, names, file_names), sizes=sizes)


def _objects(source: str, document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects of a COCO file; none where it is left out."""
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise PromptError(f"{source}: {key}", got=type(value).__name__, expected="a list of objects")
    return value


def _by_image(source: str, key: str, entries: Sequence[Any]) -> dict[str | int | None, list[Any]]:
    """COCO's entries by their image_id, each with its place in the file."""
    groups: dict[str | int | None, list[Any]] = {}
    for index, entry in enumerate(entries):
        where = f"{source}: {key}[{index}]"
        if not isinstance(entry, dict):
            raise PromptError(where, got=type(entry).__name__, expected="an object with image_id and bbox")
        groups.setdefault(_image_id(entry.get("image_id"), where), []).append(_Placed(index, entry))
    return groups


@dataclass(frozen=True, slots=True)
class _Placed:
    """An entry of a list that is not in one piece, and where it stands."""

    index: int
    value: Any


def _image_id(value: Any, where: str) -> str | int:
    if (type(value) is int and 0 <= value <= _MOST_ID) or (isinstance(value, str) and value):
        return value
    raise PromptError(f"{where}: no image id", got=ascii(value)[:60], expected="a whole number, or a name")


def _where_in_map(key: str | int | None, index: int) -> str:
    return f"{key!a}[{index}]"


def _where_in_list(key: str | int | None, index: int) -> str:
    return f"[{index}]"


def _where_in_annotations(key: str | int | None, index: int) -> str:
    return f"annotations[{index}]"


def _boxes(
    source: str,
    groups: Mapping[str | int | None, Sequence[Any]],
    where: Callable[[str | int | None, int], str],
    names: Mapping[int, str] | None = None,
    file_names: Mapping[str | int, str] | None = None,
) -> Boxes:
    """Read all entries. Labels that are names get ids from 1 on, in alphabetical order. Raises PromptError."""
    read: dict[str | int | None, list[_Entry]] = {}
    for key, values in groups.items():
        placed = [one if isinstance(one, _Placed) else _Placed(index, one) for index, one in enumerate(values)]
        read[key] = [_read_entry(one.value, f"{source}: {where(key, one.index)}") for one in placed]
    entries = [entry for group in read.values() for entry in group]
    words = sorted({entry.label for entry in entries if isinstance(entry.label, str)})
    numbers = {entry.label for entry in entries if isinstance(entry.label, int)}
    ids = _ids_of(source, words, numbers, names or {})
    labelled, scored = bool(words or numbers), any(entry.score is not None for entry in entries)
    return Boxes(
        source=source,
        by_key={key: _picture_boxes(group, ids, labelled, scored) for key, group in read.items()},
        names={**(names or {}), **{number: word for word, number in ids.items()}},
        file_names=file_names or {},
    )


def _ids_of(source: str, words: Sequence[str], numbers: set[int], names: Mapping[int, str]) -> dict[str, int]:
    """Ids for labels that are names: the file's own where it has categories, else numbers from 1 on."""
    known = {name: number for number, name in names.items()}
    if words and numbers and not known:
        raise PromptError(
            f"{source}: labels of two kinds", got=f"{words[0]!a} and {min(numbers)}", expected="names, or category ids"
        )
    if known and (unknown := [word for word in words if word not in known]):
        raise PromptError(f"{source}: unknown label", got=ascii(unknown[0]), expected="a name of categories")
    return {word: known.get(word, index) for index, word in enumerate(words, start=1)}


def _picture_boxes(entries: Sequence[_Entry], ids: Mapping[str, int], labelled: bool, scored: bool) -> PictureBoxes:
    labels = [ids[entry.label] if isinstance(entry.label, str) else entry.label or 0 for entry in entries]
    scores = [math.nan if entry.score is None else entry.score for entry in entries]
    return PictureBoxes(
        boxes=np.array([entry.box for entry in entries], np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64) if labelled else None,
        scores=np.array(scores, np.float32) if scored else None,
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    box: tuple[float, float, float, float]
    label: str | int | None
    score: float | None


def _read_entry(value: Any, where: str) -> _Entry:
    """A box, alone or with what is said about it. Raises PromptError."""
    if not isinstance(value, dict):
        return _Entry(_corners(value, where, sized=False), None, None)
    if ("box" in value) == ("bbox" in value):
        got = "both" if "box" in value else f"the keys {', '.join(map(ascii, list(value)[:6]))}"
        raise PromptError(f"{where}: which box?", got=got, expected='"box": [x0, y0, x1, y1], or COCO\'s "bbox"')
    key = "box" if "box" in value else "bbox"
    label = value.get("label", value.get("category_id"))
    if label is not None and not (isinstance(label, str) or (type(label) is int and 0 <= label <= _MOST_ID)):
        raise PromptError(f"{where}: no label", got=ascii(label)[:60], expected="a name, or a whole number from 0 on")
    score = value.get("score")
    if score is not None and (type(score) not in (int, float) or not 0 <= score <= 1):
        raise PromptError(f"{where}.score", got=ascii(score)[:60], expected="a number from 0 to 1")
    return _Entry(_corners(value[key], f"{where}.{key}", sized=key == "bbox"), label, score)


def _corners(value: Any, where: str, *, sized: bool) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1. sized: the last two are width and height."""
    expected = "[x, y, width, height]" if sized else "[x0, y0, x1, y1]"
    if not isinstance(value, list) or len(value) != 4 or any(type(one) not in (int, float) for one in value):
        raise PromptError(where, got=ascii(value)[:80], expected=f"{expected}, four numbers")
    if not all(abs(one) <= _MOST for one in value):  # NaN is not either
        raise PromptError(where, got=ascii(value)[:80], expected=f"{expected}, finite and in pixels")
    x0, y0, x1, y1 = map(float, value)
    if sized:
        x1, y1 = x0 + x1, y0 + y1
    if x1 < x0 or y1 < y0:
        rule = "width and height above 0" if sized else "x0 < x1 and y0 < y1"
        raise PromptError(f"{where}: the corners are crossed", got=ascii(value)[:80], expected=rule)
    if x1 == x0 or y1 == y0:
        rule = "width and height above 0" if sized else "x0 < x1 and y0 < y1"
        raise PromptError(f"{where}: a box without area", got=ascii(value)[:80], expected=rule)
    return x0, y0, x1, y1


def _last_parts(file_names: Iterable[str]) -> dict[str | int, list[str]]:
    """The pictures by the last part of their path, that without suffix, and the number it is."""
    known: dict[str | int, list[str]] = {}
    for file_name in file_names:
        place = PurePosixPath(file_name)
        keys: set[str | int] = {place.name, place.stem}
        if place.stem.isdecimal() and len(place.stem) <= 15:
            keys.add(int(place.stem))
        for key in keys:
            known.setdefault(key, []).append(file_name)
    return known
