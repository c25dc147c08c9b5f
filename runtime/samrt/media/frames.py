"""Frames: where pictures come from, whatever the source. One after the other, numbered, in memory one at a time."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import ImageError, InputError

Uint8Array = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class TimedFrame:
    """A frame and where it stands in its source."""

    image: Uint8Array
    """uint8 (H, W, 3) RGB."""
    index: int
    """Its number in the source: 0 is the source's first frame, whatever `start` is."""
    time_s: float | None
    """Seconds after the source's first frame; None where the source has no clock."""


@dataclass(frozen=True, slots=True, eq=False)
class RawFrame:
    """A frame that is not made into a picture yet: skipped ones never are. `load` may be called until the next is read."""

    index: int
    time_s: float | None
    load: Callable[[], Uint8Array]


@dataclass(frozen=True, slots=True)
class Span:
    """Which frames of a source are wanted: as ``range(count)[start:stop:every]``. Raises InputError."""

    start: int = 0
    stop: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("stop", 0), ("every", 1)):
            value = getattr(self, name)
            if value is None and name == "stop":
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is not usable", got=repr(value), expected=f"a whole number from {least} on")
        if self.stop is not None and self.stop <= self.start:
            raise InputError("no frame is wanted", got=f"start={self.start}, stop={self.stop}", expected="start < stop")

    def __contains__(self, index: int) -> bool:
        """Whether the frame of that number is wanted, if the source has so many."""
        before_stop = self.stop is None or index < self.stop
        return index >= self.start and before_stop and (index - self.start) % self.every == 0

    def of(self, count: int) -> range:
        """The numbers of the wanted frames in a source of `count`."""
        return range(count)[self.start : self.stop : self.every]

    def __str__(self) -> str:
        stop = "the end" if self.stop is None else f"frame {self.stop}, exclusive"
        return f"frame {self.start} to {stop}" + (f", every {self.every}" if self.every > 1 else "")


class FrameIndexError(InputError, IndexError):
    """There is no frame of that number."""


class NoLengthError(InputError, TypeError):
    """A source cannot say how many frames it has. A TypeError as for a generator, so that list(frames) just reads."""


class Frames(ABC):
    """A source of frames: iterate for pictures, uint8 (H, W, 3) RGB; `timed()` for pictures with number and time.

    Files, folders and lists can be read again and again and in any order, ``frames[i]``; iterators, cameras and streams
    once. All frames of a source have one size: a source that changes it raises ImageError at the frame that does.
    """

    live = False
    """Whether frames arrive on a clock of their own and are lost when nobody takes them."""

    def __init__(self, name: str, span: Span, *, fps: float | None = None, size_hw: tuple[int, int] | None = None):
        if fps is not None and not 0 < fps < 1e6:
            raise InputError("fps is not usable", got=repr(fps), expected="frames per second, above 0")
        self.name = name
        self.span = span
        self.fps = fps
        """Frames per second of the source, where it has a rate; the mean where that varies."""
        self.size_hw = size_hw
        """Height and width, upright; None until the first frame, where the source cannot say before."""

    @abstractmethod
    def _read(self, first: int) -> Generator[RawFrame, None, None]:
        """The source's frames from number `first` on, in order. Raises ImageError."""

    def _quick_count(self) -> int | None:
        """The source's frames as far as it says without being read; may be off for damaged or odd files."""
        return None

    def _exact_count(self) -> int:
        """The source's frames, exactly. Raises NoLengthError."""
        raise NoLengthError(
            f"the number of frames of {self.name} is not known",
            got="a source that is read once",
            fix="iterate over it, or use a file, a folder or a list",
        )

    def _read_at(self, index: int) -> Uint8Array:
        raise InputError(
            f"{self.name} has no random access",
            got="a source that is read once",
            fix="iterate over it, or use a file, a folder or a list",
        )

    @property
    def count(self) -> int | None:
        """How many frames will come, for a progress bar; None where that is not known before the end.

        Files say so in their header, which may be off: ``len(frames)`` is exact, and may have to go through the file.
        """
        count = self._quick_count()
        if count is None:
            return None if self.span.stop is None else len(self.span.of(self.span.stop))
        return len(self.span.of(count))

    def __len__(self) -> int:
        return len(self.span.of(self._exact_count()))

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, position: int) -> Uint8Array:
        """The frame at a position among the wanted ones: with start=10, ``frames[0]`` is the source's frame 10."""
        position = operator.index(position)
        numbers = self.span.of(self._exact_count())
        if not -len(numbers) <= position < len(numbers):
            raise FrameIndexError(f"{self.name} has no frame {position}", got=f"{len(numbers)} frames")
        image = self._read_at(numbers[position])
        self._check_size(numbers[position], image)
        return image

    def __iter__(self) -> Iterator[Uint8Array]:
        for frame in self.timed():
            yield frame.image

    def timed(self) -> Generator[TimedFrame, None, None]:
        """The wanted frames in order. Raises ImageError for a source without frames, and at a frame that is damaged."""
        span, count = self.span, 0
        last = None if span.stop is None else span.of(span.stop)[-1]
        seen = -1
        with closing(self._read(span.start)) as source:
            for raw in source:
                seen = raw.index
                if raw.index not in span:
                    continue
                image = raw.load()
                self._check_size(raw.index, image)
                yield TimedFrame(image, raw.index, raw.time_s)
                count += 1
                if raw.index == last:  # a live source would have to be waited for
                    return
        if not count:
            self._refuse_empty(seen)

    def close(self) -> None:  # noqa: B027
        """Give back what the source holds open; most hold nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_size(self, index: int, image: Uint8Array) -> None:
        height, width = image.shape[:2]
        if self.size_hw is None:
            self.size_hw = (height, width)
        if (height, width) != self.size_hw:
            raise ImageError(
                f"frame {index} of {self.name} has another size",
                got=f"{width} x {height}",
                expected=f"{self.size_hw[1]} x {self.size_hw[0]}, as the frames before",
                fix=f"read the parts by themselves: stop={index}, and start={index} for the rest",
            )

    def _refuse_empty(self, seen: int) -> NoReturn:
        if self.span.start and seen < self.span.start:
            count = self._quick_count() or seen + 1
            raise ImageError(
                f"{self.name} has no frame {self.span.start}",
                got=f"{count} frames" if count else "no frame",
                expected="a start before the end",
            )
        raise ImageError(f"there is no frame in {self.name}", got="no frame", expected="at least one")
