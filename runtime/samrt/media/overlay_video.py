"""A video with the tracked objects drawn on it, encoded with PyAV.

The codec is the first of `CODECS` that this build of PyAV can really open: H.264 by libx264, H.264 by libopenh264, MPEG-4
part 2. Which it was stands in `codec` and in reports. Pictures of odd width or height get their last column or row twice,
as 4:2:0 chroma needs even sizes. Times are those of the frames, to 1/60000 s; frames without get `fps`, or 25. Colours are
BT.709, and tagged so.

An MP4 is written in fragments, each whole by itself, and made into an ordinary one at the end: what a full disk or a killed
process leaves plays as well.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from samrt.media.frames import TimedFrame, Uint8Array
from samrt.media.objects import draw_objects
from samrt.media.pyav import import_av, reason
from samrt.media.results import ResultWriter, Tracked
from samrt_engines.errors import BackendError, ImageError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

CODECS = ("libx264", "libopenh264", "mpeg4")
TICKS_PER_S = 60_000
"""A whole number of ticks for 24, 25, 30, 50, 60 and 30000/1001 frames a second; MPEG-4 takes at most 65535."""
DEFAULT_FPS = 25.0
_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}
_BT709, _LIMITED = 1, 1  # AVCOL_SPC_BT709 and its transfer and primaries; AVCOL_RANGE_MPEG


class OverlayVideo(ResultWriter):
    """An overlay video. `codec` None takes the first that works; a named one is taken or refused."""

    def __init__(self, path: Path, *, fps: float | None = None, codec: str | None = None):
        super().__init__(path)
        self._av = import_av(f"to write {path.name}")
        self.fps = DEFAULT_FPS if fps is None else fps
        self.codec = choose_codec(codec)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._hw: tuple[int, int] | None = None
        self._first_s: float | None = None
        self._last_tick = -1

    def _write(self, frame: TimedFrame, tracked: Tracked) -> None:
        if self._hw not in (None, frame.image.shape[:2]):
            raise ImageError(
                f"frame {frame.index} has another size than the video {self.path}",
                got=f"{frame.image.shape[1]} x {frame.image.shape[0]}",
                expected=f"{self._hw[1]} x {self._hw[0]}" if self._hw else None,
            )
        picture = _even(draw_objects(frame.image, tracked.masks, tracked.obj_ids))
        try:
            if self._container is None:
                self._open(frame.image.shape[0], frame.image.shape[1])
            assert self._stream is not None
            video_frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            video_frame.pts, video_frame.time_base = self._tick(frame), Fraction(1, TICKS_PER_S)
            video_frame.duration = round(TICKS_PER_S / self.fps)
            self._mux(self._stream.encode(video_frame))
        except self._av.FFmpegError as error:
            raise _as_os_error(error) from error

    def _open(self, height: int, width: int) -> None:
        self._hw = (height, width)
        options = {"flush_packets": "1"}  # a full disk is then met at the frame that fills it
        if self.path.suffix.lower() in (".mp4", ".mov"):
            options["movflags"] = "+hybrid_fragmented"
        self._container = self._av.open(str(self._partial), mode="w", options=options)
        rate = Fraction(self.fps).limit_denominator(1001)
        options = _OPTIONS.get(self.codec, {})
        stream = cast("VideoStream", self._container.add_stream(self.codec, rate=rate, options=options))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base, context.framerate = Fraction(1, TICKS_PER_S), rate
        context.gop_size = max(1, round(2 * self.fps))
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._stream = stream

    def _tick(self, frame: TimedFrame) -> int:
        """When a frame is shown: later than the one before, whatever its source says."""
        following = self._last_tick + (1 if self._last_tick < 0 else round(TICKS_PER_S / self.fps))
        tick = following
        if frame.time_s is not None:
            self._first_s = frame.time_s if self._first_s is None else self._first_s
            tick = max(self._last_tick + 1, round((frame.time_s - self._first_s) * TICKS_PER_S))
        self._last_tick = tick
        return tick

    def _mux(self, packets: list[Packet[Any]]) -> None:
        assert self._container is not None
        self._container.mux(packets)

    def _finish(self) -> None:
        if self._container is None:
            return
        try:
            try:
                if not self._failed:
                    assert self._stream is not None
                    self._mux(self._stream.encode(None))
            finally:
                self._container.close()
        except self._av.FFmpegError as error:
            raise _as_os_error(error) from error


def choose_codec(codec: str | None = None) -> str:
    """The encoder that videos are made with: the one named, or the first of `CODECS` that opens. Raises BackendError."""
    av = import_av("to write a video")
    problems = {}
    for name in CODECS if codec is None else (codec,):
        try:
            context = av.CodecContext.create(name, "w")
            context.width, context.height, context.pix_fmt = 64, 64, "yuv420p"
            context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
            context.open()
        except (av.FFmpegError, ValueError, OSError) as error:
            problems[name] = reason(error)
            continue
        return name
    raise BackendError(
        "no codec to write a video with",
        got="; ".join(f"{name}: {problem}" for name, problem in problems.items()),
        expected=f"one of {', '.join(CODECS)} in PyAV's FFmpeg",
        fix="write mask pictures or .jsonl, or install PyAV's own build: pip install --force-reinstall av",
    )


def _even(image: Uint8Array) -> Uint8Array:
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(image)


def _as_os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(0, reason(error))
