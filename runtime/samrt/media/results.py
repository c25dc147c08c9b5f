"""Writers of tracked masks: an overlay video, a folder of mask pictures, COCO-RLE lines.

Everything is written under a hidden name beside its place and renamed at the end. The end is also Ctrl-C, an error of the
tracker, a full disk: what was written until then is finished and gets its name. Only where no frame was written is nothing
left.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from samrt.media.frames import TimedFrame
from samrt.media.objects import check_ids, davis_palette, id_plane
from samrt.media.pyav import reason
from samrt.rle import box_of, encode_mask
from samrt_engines.errors import InputError

if TYPE_CHECKING:
    from samrt.media.overlay_video import OverlayVideo

LINES = (".jsonl",)
VIDEOS = (".mp4", ".mkv", ".mov")
LINES_NAME = "masks.jsonl"


class Tracked(Protocol):
    """What a writer needs of a tracker's answer for one frame, K objects."""

    @property
    def obj_ids(self) -> Sequence[int]: ...
    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool (K, H, W)."""

    @property
    def object_scores(self) -> NDArray[np.float32]:
        """float32 (K,), logits."""


class ResultWriter(ABC):
    """Takes a result for each frame and makes one output of them. A context manager: leaving it finishes the output."""

    def __init__(self, path: Path):
        self.path = path
        self.frames_written = 0
        self._partial = partial_path(path)
        self._closed = False
        self._failed = False

    def write(self, frame: TimedFrame, tracked: Tracked) -> None:
        """Add a frame. Raises InputError where it cannot be written: the disk is full, an id does not fit."""
        try:
            self._write(frame, tracked)
        except OSError as error:  # PyAV's are OSErrors too where the system said no
            self._failed = True
            raise InputError(
                f"cannot write frame {frame.index} to {self.path}",
                got=reason(error),
                expected="space for the whole output",
                fix=f"free some; the {self.frames_written} frames before are in {self.path}",
            ) from error
        self.frames_written += 1

    def close(self) -> None:
        """Finish the output and give it its name. Raises InputError where it cannot be finished."""
        if self._closed:
            return
        self._closed = True
        problem: OSError | None = None
        try:
            self._finish()
        except OSError as error:
            problem = error
        if not self.frames_written:
            self._discard()
            return
        try:
            os.replace(self._partial, self.path)
        except OSError as error:
            raise InputError(
                f"cannot rename the output to {self.path}", got=reason(error), fix=f"it is in {self._partial}"
            ) from error
        if problem is not None and not self._failed:
            raise InputError(f"cannot finish {self.path}", got=reason(problem), expected="space for it") from problem

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _write(self, frame: TimedFrame, tracked: Tracked) -> None: ...

    @abstractmethod
    def _finish(self) -> None:
        """Close what is open, so that the partial output is whole."""

    def _discard(self) -> None:
        """Remove what is left under the hidden name."""
        self._partial.unlink(missing_ok=True)


class MaskLines(ResultWriter):
    """JSON lines, one for each object on each frame: frame, time_s, obj_id, score, bbox, area, segmentation.

    segmentation: COCO's compressed RLE, as pycocotools reads it; bbox: x, y, width, height; score: 0..1, how sure the
    tracker is that the object is in sight (the sigmoid of its object score). An object that is not has an empty mask.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._file: FileIO | None = None

    def _write(self, frame: TimedFrame, tracked: Tracked) -> None:
        """Without a buffer: a full disk is met here, and a killed process leaves what it had."""
        if self._file is None:
            self._file = FileIO(self._partial, "w")
        begin, rest = self._file.tell(), memoryview(lines_of(frame, tracked).encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(begin)  # no half line
            raise

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()


class MaskFolder(ResultWriter):
    """A folder of indexed pictures, 00000.png and on, and masks.jsonl with the same masks, overlaps kept.

    A pixel's value is its object's id, shown in the palette of DAVIS. Where masks overlap, the lower id wins, as upstream.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        if path.is_dir() and any(path.iterdir()):
            raise InputError(
                f"cannot write to {path}",
                got="a folder that holds files",
                expected="a new or an empty folder",
                fix="name another, or remove it",
            )
        self._lines = MaskLines(self._partial / LINES_NAME)
        self._palette = davis_palette().tobytes()

    def _write(self, frame: TimedFrame, tracked: Tracked) -> None:
        import PIL.Image

        check_ids(tracked.obj_ids)
        self._partial.mkdir(exist_ok=True)
        picture = PIL.Image.fromarray(id_plane(tracked.masks, tracked.obj_ids))
        picture.putpalette(self._palette)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        file = self._partial / f"{frame.index:05d}.png"
        try:
            file.write_bytes(buffer.getvalue())
            self._lines._write(frame, tracked)
        except OSError:
            file.unlink(missing_ok=True)
            self._lines._failed = True
            raise
        self._lines.frames_written += 1

    def _finish(self) -> None:
        self._lines.close()
        if self.frames_written and self.path.is_dir():
            self.path.rmdir()  # empty, or it would have been refused

    def _discard(self) -> None:
        if self._partial.is_dir():
            for file in self._partial.iterdir():
                file.unlink()
            self._partial.rmdir()


def lines_of(frame: TimedFrame, tracked: Tracked) -> str:
    """The JSON lines of one frame."""
    lines = []
    for index, obj_id in enumerate(tracked.obj_ids):
        mask = tracked.masks[index]
        line = {
            "frame": frame.index,
            "time_s": None if frame.time_s is None else round(frame.time_s, 6),
            "obj_id": int(obj_id),
            "score": round(_probability(float(tracked.object_scores[index])), 6),
            "bbox": box_of(mask),
            "area": int(np.count_nonzero(mask)),
            "segmentation": encode_mask(mask),
        }
        lines.append(json.dumps(line, allow_nan=False) + "\n")
    return "".join(lines)


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def open_results(out: Path, *, fps: float | None = None, codec: str | None = None) -> ResultWriter | OverlayVideo:
    """The writer for an output, by its name: .mp4, .mkv and .mov are overlay videos, .jsonl lines, no suffix a folder.

    fps: rate of frames without times; codec: see `samrt.media.overlay_video`
    Raises InputError for another name or a place that cannot be written to, MissingExtraError for a video without PyAV.
    """
    suffix = out.suffix.lower()
    if suffix in LINES + VIDEOS and out.is_dir():
        raise InputError(f"cannot write {out}", got="a folder of that name", expected="a file")
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write {out}", got=f"no folder {out.parent}", expected="a folder that exists")
    if suffix in VIDEOS:
        from samrt.media.overlay_video import OverlayVideo

        return OverlayVideo(out, fps=fps, codec=codec)
    if suffix in LINES:
        return MaskLines(out)
    if suffix and not out.is_dir():
        names = ", ".join(VIDEOS + LINES)
        raise InputError(
            "unknown kind of output", got=repr(out.name), expected=f"a name ending in {names}, or a folder"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write to {out}", got="a file", expected="a folder")
    return MaskFolder(out)


def partial_path(path: Path) -> Path:
    """A hidden name beside a path, with its suffix."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
