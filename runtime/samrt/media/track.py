"""`track_video`: a source of frames and prompts in, an output with the tracked objects out."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from samrt.graphs import MASK_DECODER
from samrt.media.frame_prompts import FramePrompt, PromptTaker
from samrt.media.frames import Frames, TimedFrame, Uint8Array
from samrt.media.objects import check_ids
from samrt.media.opening import open_frames
from samrt.media.prefetch import Prefetched
from samrt.media.results import MaskFolder, ResultWriter, Tracked, open_results
from samrt.resident import resident_mib
from samrt_engines.errors import PromptError

if TYPE_CHECKING:
    from samrt.model import Model

_WINDOW = 30  # frames that the shown rate is the mean of


class Tracker(PromptTaker, Protocol):
    """What `track_frames` needs of `samrt.VideoTracker`."""

    def step(self, frame: Uint8Array) -> Tracked: ...


@dataclass(frozen=True, slots=True)
class TrackProgress:
    """How far tracking is."""

    frames: int
    total: int | None
    """Frames that will come; None where that is not known."""
    objects: int
    fps: float
    """Frames a second, the mean of the last 30."""
    rss_mib: float | None
    """Resident memory of this process; None where this machine cannot tell."""


@dataclass(frozen=True, slots=True)
class TrackReport:
    """What `track_video` did."""

    out: str
    frames: int
    """Frames written."""
    obj_ids: tuple[int, ...]
    """All objects there were at any time."""
    seconds: float
    fps: float
    rss_peak_mib: float | None
    dropped: int
    """Frames of a live source that came while the tracker was busy, and were not looked at."""
    left_out: int
    """Damaged frames that were left out."""
    codec: str | None
    """What a video was encoded with."""
    stopped: bool
    """Whether `until` ended it."""
    provider: str | None = None
    """What the mask decoder ran on, and in which precision."""
    precision: str | None = None


def track_video(
    model: Model,
    source: str | os.PathLike[str] | Iterable[Any] | Frames,
    out: str | os.PathLike[str],
    prompts: Sequence[FramePrompt],
    *,
    max_frames: int | None = None,
    non_overlap: bool | None = None,
    codec: str | None = None,
    progress: Callable[[TrackProgress], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> TrackReport:
    """Track objects through a video, and write what was found.

    source: what `samrt.media.open_frames` takes, or what it returned: give start, stop and every there
    out: .mp4, .mkv or .mov for a video with the objects drawn on it; .jsonl for COCO-RLE lines; no suffix for a folder
        with a mask picture for each frame, and masks.jsonl
    prompts: at least one; each about a frame by its number in the source, or the first that is read. On live sources,
        where frames may be dropped, about the first frame from that number on
    max_frames: end after so many frames
    non_overlap: give each pixel to one object at most, the one with the highest logit; None does so for a folder
    codec: of a video; None takes the first of `samrt.media.overlay_video.CODECS` that works
    progress: called after each frame
    until: asked before each frame and while waiting for one; True ends the tracking as the end of the source does

    However it ends, also by an error or KeyboardInterrupt, the output holds the frames until then and is whole.
    Raises PromptError for no prompt, a prompt about a frame that is not read, or, after all is written, that never came;
    ImageError for the source; InputError for the output; BundleError for a model that cannot track.
    """
    from samrt.video import VideoTracker

    frames = open_frames(source)
    with frames, open_results(Path(out), fps=_rate(frames), codec=codec) as results:
        if non_overlap is None:
            non_overlap = isinstance(results, MaskFolder)
        tracker = VideoTracker(model, non_overlap=non_overlap)
        report = track_frames(tracker, frames, results, prompts, max_frames=max_frames, progress=progress, until=until)
    return replace(report, provider=model.providers[MASK_DECODER], precision=model.precisions[MASK_DECODER])


def track_frames(
    tracker: Tracker,
    frames: Frames,
    results: ResultWriter,
    prompts: Sequence[FramePrompt],
    *,
    max_frames: int | None = None,
    progress: Callable[[TrackProgress], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> TrackReport:
    """`track_video` with a tracker and a writer of one's own. The writer is closed."""
    schedule = _Schedule(prompts, frames)
    if isinstance(results, MaskFolder):
        check_ids([prompt.obj_id for prompt in prompts])
    pace = _Pace(_total(frames, max_frames))
    stopped = False
    ahead = Prefetched(frames, drop="oldest" if frames.live else None, until=until)
    with ahead, results:
        for frame in ahead.timed():
            schedule.give(frame, tracker)
            tracked = tracker.step(frame.image)
            results.write(frame, tracked)
            now = pace.note(tracked.obj_ids)
            if progress is not None:
                progress(now)
            if max_frames is not None and now.frames >= max_frames:
                break
            if until is not None and until():
                break
        stopped = until is not None and until()
    if not stopped:
        schedule.check_all_given(pace.frames)
    return TrackReport(
        out=str(results.path),
        frames=pace.frames,
        obj_ids=tuple(sorted(pace.seen)),
        seconds=round(pace.seconds, 3),
        fps=round(pace.frames / pace.seconds, 3) if pace.seconds else 0.0,
        rss_peak_mib=pace.rss_peak_mib,
        dropped=ahead.dropped,
        left_out=getattr(frames, "left_out", 0),
        codec=getattr(results, "codec", None),
        stopped=stopped,
    )


class _Schedule:
    """Prompts, waiting for their frames."""

    def __init__(self, prompts: Sequence[FramePrompt], frames: Frames):
        if not prompts:
            raise PromptError("there is no prompt", got="nothing to track", expected="a point, box or mask")
        self._first = frames.span.start
        for prompt in prompts:
            if prompt.frame is not None and prompt.frame not in frames.span:
                raise PromptError(
                    f"the prompt for {prompt} is about a frame that is not read",
                    got=f"frame {prompt.frame}",
                    expected=str(frames.span),
                )
        self._live = frames.live
        self._name = frames.name
        self._waiting = sorted(prompts, key=self._frame_of)  # stable: of one frame, in the order given

    def _frame_of(self, prompt: FramePrompt) -> int:
        return self._first if prompt.frame is None else prompt.frame

    def give(self, frame: TimedFrame, tracker: Tracker) -> None:
        """Give the tracker the prompts about a frame."""
        while self._waiting:
            wanted = self._frame_of(self._waiting[0])
            if wanted > frame.index or (wanted < frame.index and not self._live):
                return
            self._waiting.pop(0).apply(tracker)

    def check_all_given(self, frames: int) -> None:
        """Raise PromptError where a prompt's frame never came."""
        if self._waiting:
            raise PromptError(
                "a prompt was never used: its frame did not come",
                got=f"{'; '.join(str(prompt) for prompt in self._waiting[:5])}; {frames} frames of {self._name} were read",
                expected="prompts about frames that come",
                fix="frames are counted from 0 in the source; what was tracked is kept",
            )


class _Pace:
    """Counts frames, seconds and memory."""

    def __init__(self, total: int | None):
        self.frames = 0
        self.seen: set[int] = set()
        self.rss_peak_mib: float | None = None
        self._total = total
        self._began = time.perf_counter()
        self._times: deque[float] = deque([self._began], maxlen=_WINDOW + 1)

    @property
    def seconds(self) -> float:
        return self._times[-1] - self._began

    def note(self, obj_ids: Sequence[int]) -> TrackProgress:
        self.frames += 1
        self.seen.update(obj_ids)
        self._times.append(time.perf_counter())
        rss = resident_mib()
        if rss is not None:
            self.rss_peak_mib = round(max(rss, self.rss_peak_mib or 0.0), 1)
        spent = self._times[-1] - self._times[0]
        rate = (len(self._times) - 1) / spent if spent > 0 else 0.0
        return TrackProgress(self.frames, self._total, len(obj_ids), rate, rss)


def _rate(frames: Frames) -> float | None:
    """Frames a second of the output where frames carry no times."""
    return None if frames.fps is None else frames.fps / (1 if frames.live else frames.span.every)


def _total(frames: Frames, max_frames: int | None) -> int | None:
    if frames.count is None or max_frames is None:
        return max_frames if frames.count is None else frames.count
    return min(frames.count, max_frames)
