"""Frames that arrive on a clock of their own: a camera, a network stream."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from samrt.media.decoding import Damaged, Decoder
from samrt.media.frames import Frames, RawFrame, Span
from samrt.media.pyav import import_av, reason
from samrt_engines.errors import ImageError, InputError

if TYPE_CHECKING:
    from av.container import InputContainer

CAMERA = re.compile(r"camera:(.+)|(/dev/video\d+)")
URL = re.compile(r"(rtsps?|rtmps?|https?|srt|udp|rtp|tcp)://.+", re.IGNORECASE)
CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""What FFmpeg reads cameras with, by ``sys.platform``."""
_TIMEOUT_S = 10.0


class LiveStream(Frames):
    """A camera or a stream, read once. It opens at once, so that a wrong name is an error here and not later.

    Frames carry the seconds since the first. Damaged packets, which networks make, are left out and counted in
    `left_out` unless damaged='error'; numbers count the frames that came. Read it through `Prefetched(drop="oldest")`
    where the reader may be slower than the source. A URL that says how long its video is is a file elsewhere, not live.
    """

    def __init__(
        self,
        source: str,
        span: Span,
        *,
        fps: float | None = None,
        damaged: Damaged = "skip",
        options: Mapping[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ):
        super().__init__(source, span, fps=fps)
        self.timeout_s = timeout_s
        self.damaged = damaged
        self.left_out = 0
        self._is_camera = CAMERA.fullmatch(source) is not None
        self._container: InputContainer | None = self._open(source, dict(options or {}))
        stream = next(iter(self._container.streams.video), None)
        if stream is None:
            self.close()
            raise ImageError(f"there is no video in {source}", got="no video stream", expected="a video stream")
        rate = stream.average_rate or stream.guessed_rate
        if self.fps is None and rate and 0 < rate < 1000:
            self.fps = float(rate)
        self._seconds = (self._container.duration or 0) / 1e6
        self._header_count = stream.frames or None
        self.live = self._is_camera or self._seconds <= 0

    def _open(self, source: str, options: dict[str, str]) -> InputContainer:
        av = import_av(f"to read {source}")
        file, kind = (source, None) if not self._is_camera else camera_address(source, sys.platform)
        if source.lower().startswith("rtsp"):
            options = {"rtsp_transport": "tcp"} | options  # over UDP, lost packets make torn pictures
        try:
            container: InputContainer = av.open(
                file, mode="r", format=kind, options=options, timeout=(self.timeout_s, self.timeout_s)
            )
        except (OSError, ValueError, av.FFmpegError) as error:
            raise ImageError(
                f"cannot open {source}",
                got=reason(error),
                expected="a camera that is connected and free" if self._is_camera else "a stream that is running",
                fix="check the name, and that no other program holds it" if self._is_camera else "check the address",
            ) from error
        return container

    def _read(self, first: int) -> Generator[RawFrame, None, None]:
        container, self._container = self._container, None
        if container is None:
            raise InputError(f"{self.name} was read before", got="a second reading", fix="open_frames(...) again")
        av = import_av(f"to read {self.name}")
        with container:
            decoder = Decoder(container, self.name, self.damaged)
            frames, number, began = iter(decoder), -1, None
            try:
                for number, frame in enumerate(frames):
                    self.left_out = decoder.left_out
                    time_s = None
                    if frame.pts is not None and frame.time_base is not None:
                        began = frame.pts if began is None else began
                        time_s = float((frame.pts - began) * frame.time_base)
                    if number >= first:
                        yield RawFrame(number, time_s, partial(decoder.rgb, frame))
            except ImageError as error:
                if isinstance(error.__cause__, av.FFmpegError | OSError):
                    raise self._stopped(number, error.got or "") from error
                raise
        if self._is_camera:
            raise self._stopped(number, "the end of its data")

    def _quick_count(self) -> int | None:
        if self.live:
            return None
        return self._header_count or (None if self.fps is None else round(self._seconds * self.fps))

    def _stopped(self, number: int, got: str) -> ImageError:
        return ImageError(
            f"{self.name} stopped delivering",
            got=f"{got}, after {number + 1} frames",
            expected=f"a frame within {self.timeout_s:g} s",
            fix="check the camera or the network, and open it again",
        )

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None


def camera_address(source: str, platform: str) -> tuple[str, str]:
    """What FFmpeg calls a camera, and the format to read it with. Raises InputError.

    source: "camera:0", "camera:NAME" or "/dev/video0"
    platform: as ``sys.platform``
    """
    kind = CAMERA_FORMATS.get(platform)
    match: Any = CAMERA.fullmatch(source)
    if kind is None or match is None:
        raise InputError(f"cannot open {source}", got=f"the platform {platform}", expected=", ".join(CAMERA_FORMATS))
    name = match.group(1) or match.group(2)
    if platform == "linux":
        return (f"/dev/video{name}" if name.isdecimal() else name), kind
    return (f"video={name}" if platform == "win32" else name), kind
