"""Frames of a video file: in order, or any one by its number.

A frame's number is its place in the order of showing, counted from 0. To find frame i without decoding all before it, the
file's packets are listed once (read, not decoded): each says when its picture is shown and whether decoding may begin
there. Frame i is decoded from the last such place at or before it, and taken only where its time is the one in the list.
Files whose packets do not tell (no or equal times) are decoded from the start, which is slow and equally exact.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from samrt.media.decoding import Damaged, Decoder, video_stream
from samrt.media.frames import Frames, RawFrame, Span, Uint8Array
from samrt.media.pyav import import_av, reason
from samrt_engines.errors import ImageError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

CACHE_BYTES = 96 * 2**20
"""Most memory for pictures kept for random access: reading backwards would decode every group of pictures anew."""
_LOCAL = {"protocol_whitelist": "file,crypto,data"}  # a playlist must not make us fetch what it names
_SHORT_S = 1.0  # a file that ends so much before its header says has been cut


@dataclass(frozen=True, slots=True)
class _Listing:
    """When each frame is shown, rising, and where decoding may begin: times of key frames and what to seek to."""

    times: list[int]
    keys: list[int]
    seek_to: list[int]


class VideoFile(Frames):
    """A video file. Each iteration opens it anew; ``frames[i]`` keeps one decoder and the last pictures."""

    def __init__(self, path: Path, span: Span, *, fps: float | None = None, damaged: Damaged = "error"):
        self.path = path
        self.damaged = damaged
        self.left_out = 0
        """Damaged packets left out by the last iteration."""
        super().__init__(str(path), span, fps=fps)
        self._lock = threading.Lock()
        self._listing: _Listing | None = None
        self._listed = False
        self._decoded_count: int | None = None
        self._decoder: Decoder | None = None
        self._next = 0  # number of the frame that the decoder of `frames[i]` gives next
        self._wanted = -1
        self._kept: OrderedDict[int, Uint8Array] = OrderedDict()
        self._look()

    def _look(self) -> None:
        """Read what the header says, and the first frame. Raises ImageError."""
        with self._open() as container:
            stream = video_stream(container, self.name)
            rate = stream.average_rate or stream.guessed_rate
            if self.fps is None and rate:
                self.fps = float(rate)
            self._header_count = stream.frames or None
            self._start = stream.start_time or 0
            self._seconds = _header_seconds(container)
            decoder = Decoder(container, self.name, self.damaged)
            first = next(iter(decoder), None)
            if first is None:
                raise ImageError(f"there is no frame in {self.name}", got="no frame", expected="at least one")
            self.size_hw = decoder.rgb(first).shape[:2]

    def _open(self) -> InputContainer:
        av = import_av(f"to read {self.path.name}")
        try:
            if not self.path.is_file():
                got = "a folder" if self.path.is_dir() else "no file of that name"
                raise ImageError(f"cannot read {self.path}", got=got, expected="a video file")
            if not self.path.stat().st_size:
                raise ImageError(f"cannot read {self.path}", got="an empty file", expected="a video file")
            container: InputContainer = av.open(
                str(self.path.absolute()), mode="r", container_options=_LOCAL, metadata_errors="replace"
            )
        except (OSError, av.FFmpegError) as error:
            raise ImageError(
                f"cannot read {self.path}",
                got=reason(error),
                expected="a whole video; one whose writing was cut off may lack its table of contents",
                fix="write it again, or repair it with a video tool",
            ) from error
        return container

    def _read(self, first: int) -> Generator[RawFrame, None, None]:
        number = 0
        with self._open() as container:
            decoder = Decoder(container, self.name, self.damaged)
            self.left_out = 0
            listing = self._list() if first else None
            if listing is not None and first < len(listing.times):
                begun = self._begin(decoder, listing, first)
                if begun is None:
                    container.close()
                    with closing(self._read_through(first)) as frames:
                        yield from frames
                    return
                number, frame = begun
                decoder.delivered = number
                yield self._raw(number, frame, decoder)
                number += 1
            yield from self._numbered(decoder, number, first)
            self._check_end(decoder)

    def _read_through(self, first: int) -> Generator[RawFrame, None, None]:
        with self._open() as container:
            decoder = Decoder(container, self.name, self.damaged)
            yield from self._numbered(decoder, 0, first)
            self._check_end(decoder)

    def _numbered(self, decoder: Decoder, number: int, first: int) -> Generator[RawFrame, None, None]:
        for frame in decoder:
            self.left_out = decoder.left_out
            if number >= first:
                yield self._raw(number, frame, decoder)
            number += 1
        self.left_out = decoder.left_out

    def _raw(self, number: int, frame: VideoFrame, decoder: Decoder) -> RawFrame:
        time_s = None if self.fps is None else number / self.fps
        if frame.pts is not None and frame.time_base is not None:
            time_s = float((frame.pts - self._start) * frame.time_base)
        return RawFrame(number, time_s, partial(decoder.rgb, frame))

    def _check_end(self, decoder: Decoder) -> None:
        """Refuse a file that ends before its header says, which a container cut short does without a word."""
        if self.damaged == "skip" or self._seconds is None:
            return
        frame_s = 0.0 if self.fps is None else 1 / self.fps
        fewer = self._header_count is not None and decoder.delivered < self._header_count
        tolerance = 1.5 * frame_s if fewer else max(_SHORT_S, 3 * frame_s)
        if self._seconds - decoder.ended_s > tolerance:
            raise ImageError(
                f"{self.name} ends early",
                got=f"{decoder.delivered} frames, up to {decoder.ended_s:.2f} s",
                expected=f"{self._seconds:.2f} s, says its header",
                fix="use the frames that came, get the whole file, or read it with damaged='skip', --skip-damaged",
            )

    # Random access

    def _read_at(self, index: int) -> Uint8Array:
        with self._lock:
            if index not in self._kept:
                self._decode_to(index)
            return self._kept[index]

    def _decode_to(self, index: int) -> None:
        """Decode up to a frame and keep it; reading backwards, those before it too, as they are wanted next."""
        kept = self._most_kept() if index < self._wanted else 1
        self._wanted = index
        frame = self._go_near(index)
        while frame is not None:
            number = self._next
            self._next += 1
            if self._listing is not None and frame.pts != self._listing.times[number]:
                self._listing = None  # the packets promised another frame: count from the start
                self._stop_decoder()
                frame = self._go_near(index)
                continue
            if number > index - kept:
                self._keep(number, self._open_decoder().rgb(frame))
            if number == index:
                return
            frame = next(iter(self._open_decoder()), None)
        self._stop_decoder()
        raise ImageError(
            f"cannot read frame {index} of {self.name}", got=f"the end after {self._next} frames", expected="one more"
        )

    def _go_near(self, index: int) -> VideoFrame | None:
        """A frame at or before number `index`, whose number `_next` becomes: the decoder's next, or one after a seek."""
        listing = self._list()
        if self._decoder is not None and self._next <= index:
            near = listing is None or bisect_right(listing.keys, listing.times[index]) == bisect_right(
                listing.keys, listing.times[max(self._next - 1, 0)]
            )
            if near or index - self._next < 2:
                return next(iter(self._decoder), None)
        if listing is not None:
            self._stop_decoder()
            begun = self._begin(self._open_decoder(), listing, index)
            if begun is not None:
                self._next, frame = begun
                return frame
        self._stop_decoder()
        return next(iter(self._open_decoder()), None)

    def _begin(self, decoder: Decoder, listing: _Listing, index: int) -> tuple[int, VideoFrame] | None:
        """Seek so that frame `index` is still to come. Returns the first frame met and its number.

        None, and the listing is not used again, where the file does not hold what its packets promise.
        """
        av = import_av(f"to read {self.name}")
        time = listing.times[index]
        for key in range(bisect_right(listing.keys, time) - 1, -1, -1):
            try:
                decoder.seek(listing.seek_to[key], shown_from=listing.keys[key])
            except av.FFmpegError:
                break
            frame = next(iter(decoder), None)
            if frame is None or frame.pts is None:
                break
            if frame.pts <= time:
                number = bisect_left(listing.times, frame.pts)
                if listing.times[number] == frame.pts:
                    return number, frame
                break
        self._listing = None
        return None

    def _list(self) -> _Listing | None:
        """The file's packets, listed once; None where they do not tell, and where damaged frames are left out."""
        if not self._listed:
            self._listed = True
            self._listing = None if self.damaged == "skip" else self._list_packets()
        return self._listing

    def _list_packets(self) -> _Listing | None:
        av = import_av(f"to read {self.name}")
        times: list[int] = []
        keys: list[tuple[int, int]] = []
        with self._open() as container:
            try:
                for packet in container.demux(video_stream(container, self.name)):
                    if not packet.size or packet.is_discard:
                        continue
                    shown = packet.pts if packet.pts is not None else packet.dts
                    if shown is None:
                        return None
                    times.append(shown)
                    if packet.is_keyframe:
                        keys.append((shown, shown if packet.dts is None else min(shown, packet.dts)))
            except av.FFmpegError:
                pass  # cut short: what could be listed is what can be read
        times.sort()
        keys.sort()
        if not keys or keys[0][0] != times[0] or any(a == b for a, b in pairwise(times)):
            return None
        return _Listing(times, [key for key, _ in keys], [seek for _, seek in keys])

    def _quick_count(self) -> int | None:
        if self._listing is not None:
            return len(self._listing.times)
        if self._decoded_count is not None:
            return self._decoded_count
        if self._header_count is not None:
            return self._header_count
        return None if self._seconds is None or self.fps is None else round(self._seconds * self.fps)

    def _exact_count(self) -> int:
        with self._lock:
            listing = self._list()
            if listing is not None:
                return len(listing.times)
            if self._decoded_count is None:
                with self._open() as container:
                    self._decoded_count = sum(1 for _ in Decoder(container, self.name, self.damaged))
            return self._decoded_count

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            self._decoder = Decoder(self._open(), self.name, self.damaged)
            self._next = 0
        return self._decoder

    def _stop_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.container.close()
        self._decoder = None
        self._next = 0

    def _most_kept(self) -> int:
        assert self.size_hw is not None
        return max(2, min(64, CACHE_BYTES // (3 * self.size_hw[0] * self.size_hw[1])))

    def _keep(self, number: int, image: Uint8Array) -> None:
        self._kept[number] = image
        self._kept.move_to_end(number)
        while len(self._kept) > self._most_kept():
            self._kept.popitem(last=False)

    def close(self) -> None:
        with self._lock:
            self._stop_decoder()
            self._kept.clear()


def _header_seconds(container: InputContainer) -> float | None:
    """Where the video ends by the header, in seconds of its stream; None where the header speaks of other streams too."""
    stream = container.streams.video[0]
    begin = float((stream.start_time or 0) * (stream.time_base or 0))
    if stream.duration and stream.time_base:
        return begin + float(stream.duration * stream.time_base)
    tag = next((text for key, text in stream.metadata.items() if key.upper().startswith("DURATION")), None)
    if tag is not None:  # Matroska: 00:00:06.000000000
        try:
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return None
    alone = len(container.streams) == 1 and container.duration
    return begin + container.duration / 1e6 if alone and container.duration else None
