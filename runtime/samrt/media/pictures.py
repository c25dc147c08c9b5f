"""Frames that are pictures already: a folder or a list of files, arrays in memory, an iterator."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.images import Image, as_rgb_uint8, read_image
from samrt.media.frames import Frames, RawFrame, Span, Uint8Array
from samrt_engines.errors import ImageError, InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Files of a folder that are frames; others, and hidden ones, are not looked at."""


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts names as people count: 2.jpg before 10.jpg. For names that are numbers, as upstream sorts them."""
    parts = re.split(r"([0-9]+)", name)
    numbered = tuple((0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in parts if part)
    return (*numbered, (2, name))


class PictureFiles(Frames):
    """Files, each a frame, in the order given. Read when asked for."""

    def __init__(self, files: Sequence[Path], span: Span, *, name: str, fps: float | None = None):
        if not files:
            raise ImageError(f"there is no frame in {name}", got="no picture", expected=f"files {', '.join(SUFFIXES)}")
        super().__init__(name, span, fps=fps)
        self.files = tuple(files)

    @classmethod
    def of_folder(cls, folder: Path, span: Span, *, fps: float | None = None) -> PictureFiles:
        """The pictures of a folder, in natural order. Raises ImageError where there is none."""
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        except OSError as error:
            raise ImageError(f"cannot read the folder {folder}", got=error.strerror, expected="pictures") from None
        kept = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        return cls([folder / name for name in sorted(kept, key=natural_key)], span, name=str(folder), fps=fps)

    def _read(self, first: int) -> Generator[RawFrame, None, None]:
        for index in range(first, len(self.files)):
            time_s = None if self.fps is None else index / self.fps
            yield RawFrame(index, time_s, partial(self._read_at, index))

    def _read_at(self, index: int) -> Uint8Array:
        try:
            return read_image(self.files[index])
        except ImageError as error:
            raise ImageError(
                f"frame {index} of {self.name}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
            ) from error

    def _quick_count(self) -> int:
        return len(self.files)

    def _exact_count(self) -> int:
        return len(self.files)


class PictureList(Frames):
    """Pictures in memory: a list, or an array (N, H, W, 3)."""

    def __init__(self, pictures: Sequence[Image] | NDArray[Any], span: Span, *, fps: float | None = None):
        super().__init__("the list of frames", span, fps=fps)
        if not len(pictures):
            raise ImageError("there is no frame in the list of frames", got="an empty list", expected="at least one")
        if isinstance(pictures, np.ndarray) and pictures.ndim < 3:
            raise ImageError(
                "not a list of frames", got=f"an array of shape {pictures.shape}", expected="(N, H, W, 3), or a list"
            )
        self._pictures = pictures

    def _read(self, first: int) -> Generator[RawFrame, None, None]:
        for index in range(first, len(self._pictures)):
            yield RawFrame(index, None if self.fps is None else index / self.fps, partial(self._read_at, index))

    def _read_at(self, index: int) -> Uint8Array:
        return _read_array(self._pictures[index], index, self.name)

    def _quick_count(self) -> int:
        return len(self._pictures)

    def _exact_count(self) -> int:
        return len(self._pictures)


class PictureIterator(Frames):
    """Whatever yields pictures, read once and one at a time: a generator, another library's video reader."""

    def __init__(self, pictures: Iterable[Image], span: Span, *, fps: float | None = None):
        super().__init__("the iterator of frames", span, fps=fps)
        self._pictures: Iterator[Image] | None = iter(pictures)

    def _read(self, first: int) -> Generator[RawFrame, None, None]:
        pictures, self._pictures = self._pictures, None
        if pictures is None:
            raise InputError(
                f"{self.name} was read before", got="a second reading", fix="open_frames(list(iterator)), or a new one"
            )
        for index, picture in enumerate(pictures):
            if index >= first:
                time_s = None if self.fps is None else index / self.fps
                yield RawFrame(index, time_s, partial(_read_array, picture, index, self.name))


def _read_array(picture: Image, index: int, name: str) -> Uint8Array:
    try:
        return as_rgb_uint8(picture)
    except ImageError as error:
        raise ImageError(
            f"frame {index} of {name}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
        ) from error
