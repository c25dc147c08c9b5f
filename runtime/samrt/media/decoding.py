"""Decoding a video with PyAV: packets in, upright RGB pictures out, and what a damaged file did in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from samrt.media.frames import Uint8Array
from samrt.media.pyav import import_av, reason
from samrt_engines.errors import ImageError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Damaged = Literal["error", "skip"]
"""What a damaged frame is: the end, with an error that names it, or left out and counted."""

Matrix = tuple[int, int, int, int]
"""How a picture is turned and mirrored: the signs (a, b, c, d) of [x' y'] = [x y] [[a, b], [c, d]], y downwards."""

_MATRIX = "DISPLAYMATRIX"


class Decoder:
    """One pass through the first video stream of an open container."""

    def __init__(self, container: InputContainer, name: str, damaged: Damaged):
        self.name = name
        self.damaged = damaged
        self.delivered = 0
        self.left_out = 0
        """Packets that could not be decoded, where damaged ones are skipped."""
        self.container = container
        self.stream = video_stream(container, name)
        self.ended_s = 0.0
        """Where the last frame ended, in seconds of the stream."""
        self._shown_from: int | None = None
        self._matrix: Matrix | None = None
        self._matrix_known = False
        self._frames = self._decode()

    def __iter__(self) -> Iterator[VideoFrame]:
        return self._frames

    def rgb(self, frame: VideoFrame) -> Uint8Array:
        """A decoded frame as uint8 (H, W, 3) RGB, upright. Colours by the frame's tags.

        The first frame's display matrix holds for all: asking a frame for its side data ties it into a reference cycle,
        and frames would stay in memory until the garbage collector comes by (PyAV 18).
        """
        if not self._matrix_known:
            self._matrix, self._matrix_known = display_matrix(frame), True
        image: Uint8Array = frame.to_ndarray(format="rgb24")  # type: ignore[assignment]
        return np.ascontiguousarray(upright(image, self._matrix))

    def seek(self, timestamp: int, shown_from: int) -> None:
        """Go on from the last key frame that is not behind `timestamp`, in the stream's ticks.

        shown_from: frames shown before are passed over. What is shown before a key frame and stored after it lacks here
            what it is made from.
        """
        self.container.seek(timestamp, stream=self.stream, backward=True)
        self._shown_from = shown_from
        self._frames = self._decode()

    def _decode(self) -> Iterator[VideoFrame]:
        """Frames as they come. Raises ImageError at a damaged one, where those are errors."""
        av = import_av(f"to read {self.name}")
        packets = self.container.demux(self.stream)
        while True:
            problem = None
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except av.error.EOFError:
                return
            except av.FFmpegError as error:
                if self.damaged == "skip" and isinstance(error, av.error.InvalidDataError):
                    self.left_out += 1
                    continue
                problem, frames = error, self._held_back()
            for frame in frames:
                if self._shown_from is not None and frame.pts is not None and frame.pts < self._shown_from:
                    continue
                if frame.is_corrupt and self.damaged == "error":
                    self._refuse("a picture that is damaged or lacks what it is made from")
                yield frame
                self.delivered += 1
                self._note_end(frame)
            if problem is not None:
                self._refuse(reason(problem), problem)
            if packet is None:
                return

    def _held_back(self) -> list[VideoFrame]:
        """Frames from before the damage that the decoder kept to put them in order."""
        av = import_av(f"to read {self.name}")
        try:
            return self.stream.decode(None)
        except av.FFmpegError:
            return []

    def _note_end(self, frame: VideoFrame) -> None:
        if frame.pts is not None and frame.time_base is not None:
            self.ended_s = max(self.ended_s, float((frame.pts + (frame.duration or 0)) * frame.time_base))

    def _refuse(self, got: str, error: Exception | None = None) -> NoReturn:
        raise ImageError(
            f"cannot read frame {self.delivered} of {self.name}",
            got=got,
            expected="a whole video",
            fix=f"use the {self.delivered} frames before it, or leave damaged frames out: damaged='skip', --skip-damaged",
        ) from error


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first video stream. Raises ImageError where there is none."""
    if not container.streams.video:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ImageError(f"there is no video in {name}", got=held, expected="a video stream")
    return container.streams.video[0]


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """A frame's display matrix; None where it has none."""
    data: Any = frame.side_data.get(_MATRIX)
    if data is None:
        return None
    numbers = np.frombuffer(bytes(data), np.int32)
    if len(numbers) < 5:
        return None
    a, b, c, d = (int(number) for number in np.sign(np.rint(numbers[[0, 1, 3, 4]] / 65536)))
    return a, b, c, d


def upright(image: Uint8Array, matrix: Matrix | None) -> Uint8Array:
    """Turn and mirror a picture in quarter turns; any other matrix leaves it as it is, as players do.

    matrix: as `display_matrix` returns it. x points right and y down, so (0, 1, -1, 0) is a quarter turn clockwise.
    """
    if matrix is None:
        return image
    a, b, c, d = matrix
    if a and d and not b and not c:
        return image[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    if b and c and not a and not d:
        # x' comes from y with sign c, y' from x with sign b
        return image.transpose(1, 0, 2)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]
    return image
