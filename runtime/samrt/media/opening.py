"""`open_frames`: one door for every source of frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samrt.media.decoding import Damaged
from samrt.media.frames import Frames, Span
from samrt.media.live import CAMERA, URL, LiveStream
from samrt.media.pictures import PictureFiles, PictureIterator, PictureList
from samrt.media.video_file import VideoFile
from samrt_engines.errors import InputError

_EXPECTED = "a video file, a folder of pictures, camera:0, a URL, or pictures: a list, an array, an iterator"


def open_frames(
    source: str | os.PathLike[str] | Iterable[Any],
    *,
    start: int = 0,
    stop: int | None = None,
    every: int = 1,
    fps: float | None = None,
    damaged: Damaged | None = None,
    options: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> Frames:
    """Open a source of frames: uint8 (H, W, 3) RGB, upright, one at a time, never all in memory.

    source: a video file; a folder of pictures, in natural order (2.jpg before 10.jpg); "camera:0" or "/dev/video0"; an
        rtsp, http, rtmp, srt or udp URL; a list of pictures or of picture files; an array (N, H, W, 3); any iterator of
        pictures. Pictures are what `samrt.as_rgb_uint8` takes.
    start, stop, every: which frames, as in ``range(count)[start:stop:every]``
    fps: the rate of sources without a clock of their own, for times and for videos made of them
    damaged: "error" ends at a damaged frame with an error that names it, after the frames before it were given; "skip"
        leaves it out and counts it in `.left_out`. Live sources skip where nothing is said. What a decoder conceals
        without a word is given as a player would show it
    options: FFmpeg's options for cameras and streams: ``{"video_size": "1280x720", "framerate": "30"}``
    timeout_s: how long a live source may be silent
    Files and live sources need PyAV (MissingExtraError without); pictures do not.
    Raises ImageError for a source that cannot be read or has no frame, InputError for anything else than a source.
    """
    span = Span(start, stop, every)
    if isinstance(source, Frames):
        if span != Span() or fps is not None:
            raise InputError("these frames are open already", got="start, stop, every or fps", fix="give them first")
        return source
    if isinstance(source, str | os.PathLike):
        return _open_named(os.fspath(source), span, fps, damaged, options, timeout_s)
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InputError("not a source of frames", got=type(source).__name__, expected=_EXPECTED)
    if isinstance(source, Sequence | np.ndarray):
        if len(source) and all(isinstance(one, str | os.PathLike) for one in source):
            files = [Path(one) for one in source]
            return PictureFiles(files, span, name="the list of files", fps=fps)
        return PictureList(source, span, fps=fps)
    return PictureIterator(source, span, fps=fps)


def _open_named(
    name: str,
    span: Span,
    fps: float | None,
    damaged: Damaged | None,
    options: Mapping[str, str] | None,
    timeout_s: float,
) -> Frames:
    if CAMERA.fullmatch(name) or URL.fullmatch(name):
        return LiveStream(name, span, fps=fps, damaged=damaged or "skip", options=options, timeout_s=timeout_s)
    path = Path(name)
    if path.is_dir():
        return PictureFiles.of_folder(path, span, fps=fps)
    return VideoFile(path, span, fps=fps, damaged=damaged or "error")
