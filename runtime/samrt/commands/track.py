"""``samrt track``: a video and prompts in, the tracked objects out."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from samrt.commands.output import print_json
from samrt.commands.segment import read_click, read_numbers
from samrt.media import (
    FramePrompt,
    TrackProgress,
    TrackReport,
    open_frames,
    open_results,
    read_prompts_file,
    track_video,
)
from samrt.media.decoding import Damaged
from samrt.media.frame_prompts import read_mask_file
from samrt.model import load
from samrt_engines.errors import PromptError, SamrtError

POINT, BOX, MASK = "X,Y[,LABEL][@FRAME][:OBJ]", "X0,Y0,X1,Y1[@FRAME][:OBJ]", "FILE[@FRAME][:OBJ]"
_NUMBER = r"([0-9]{1,9})"
_PLACED = re.compile(
    rf"(?P<what>.*?)(?:@(?P<frame>{_NUMBER})(?::(?P<obj>{_NUMBER}))?|:(?P<obj2>{_NUMBER})(?:@(?P<frame2>{_NUMBER}))?)?",
    re.DOTALL,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("track")(track)


def track(
    video: Annotated[str, typer.Argument(help="A video, a folder of pictures, camera:0, or a URL.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="A bundle folder of a model that tracks.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="OUT.mp4 or .mkv: overlay; OUT.jsonl: RLE; OUT: masks.")],
    point: Annotated[list[str] | None, typer.Option(help=escape(f"{POINT}; label 1 (on it) or 0."))] = None,
    box: Annotated[list[str] | None, typer.Option(help=escape(BOX))] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help=escape(f"{MASK}: a picture or .npy, as large as the video."))
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A prompts.json; see samrt.media.frame_prompts.")] = None,
    start: Annotated[int, typer.Option(min=0, help="First frame.")] = 0,
    stop: Annotated[int | None, typer.Option(min=1, help="The frame to stop before.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every N-th frame.")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames; for cameras.")] = None,
    fps: Annotated[float | None, typer.Option(help="Rate of a folder of pictures; 25 where it matters.")] = None,
    non_overlap: Annotated[
        bool, typer.Option("--non-overlap", help="One object a pixel, as folders of masks always have.")
    ] = False,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged frames out.")] = False,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Track objects through a video, from points, boxes and masks on any of its frames.

    FRAME counts from 0 and is the first one that is read where left out. OBJ is the object's number, 1 where left out;
    several boxes on one frame without numbers are objects 1, 2, and so on. An indexed mask picture holds its own numbers.
    Points of one object on one frame belong together, with its box. Later prompts correct. Ctrl-C finishes the output.

    samrt track clip.mp4 -b bundles/nano --point 320,200 --box 10,10,80,90:2 --point 300,180,0@40 -o out.mp4
    """
    asked = read_prompts(point or [], box or [], mask or []) + (read_prompts_file(prompts) if prompts else [])
    if not asked:
        raise PromptError("there is no prompt", got="nothing to track", expected="--point, --box, --mask or --prompts")
    open_results(out).close()  # a place that cannot be written to is refused before the model is loaded
    damaged: Damaged | None = "skip" if skip_damaged else None
    try:
        with (
            open_frames(video, start=start, stop=stop, every=every, fps=fps, damaged=damaged) as frames,
            _progress(out) as progress,
            load(bundle, backend=backend, device=device, threads=threads) as model,
            interrupts() as interrupt,  # not before: loading may be broken off anywhere
        ):
            report = track_video(
                model,
                frames,
                out,
                asked,
                max_frames=max_frames,
                non_overlap=True if non_overlap else None,
                progress=progress,
                until=interrupt.came,
            )
    except KeyboardInterrupt:  # while loading, or the second one
        raise typer.Exit(128 + signal.SIGINT) from None
    _print(report, json_output)
    if interrupt.signal:
        raise typer.Exit(128 + interrupt.signal)


def read_prompts(points: list[str], boxes: list[str], masks: list[str]) -> list[FramePrompt]:
    """Prompts from command-line texts. Raises PromptError."""
    asked: dict[tuple[int | None, int], _Asked] = {}
    clicks = [_place(text, "--point", POINT) for text in points]
    for placed in clicks:
        asked.setdefault((placed.frame, placed.obj_id or 1), _Asked([], [])).clicks.append(read_click(placed.what))
    for placed in _number_boxes([_place(text, "--box", BOX) for text in boxes], clicks):
        corners = read_numbers(placed.what, "--box", (4,), "X0,Y0,X1,Y1")
        asked.setdefault((placed.frame, placed.obj_id or 1), _Asked([], [])).boxes.append(corners)
    result = []
    for (frame, obj_id), one in asked.items():
        if len(one.boxes) > 1:
            raise PromptError(
                f"{len(one.boxes)} boxes for object {obj_id} on one frame", got=f"{one.boxes}", expected="one at most"
            )
        xy, labels = [point for point, _ in one.clicks], [label for _, label in one.clicks]
        result.append(FramePrompt(obj_id, frame, xy or None, labels or None, one.boxes[0] if one.boxes else None))
    return result + [prompt for text in masks for prompt in _read_masks(text)]


class _Placed(NamedTuple):
    """A prompt's text, and which frame and object it is about; None where the text does not say."""

    what: str
    frame: int | None
    obj_id: int | None


class _Asked(NamedTuple):
    """What is said about one object on one frame."""

    clicks: list[tuple[list[float], int]]
    boxes: list[list[float]]


def _place(text: str, option: str, form: str) -> _Placed:
    """Take @FRAME and :OBJ, in either order, off the end of a text."""
    match = _PLACED.fullmatch(text)
    if match is None or not match["what"]:
        raise PromptError(f"cannot read {option}", got=repr(text), expected=form, fix=f"{option} {form}")
    frame, obj_id = match["frame"] or match["frame2"], match["obj"] or match["obj2"]
    return _Placed(match["what"], None if frame is None else int(frame), None if obj_id is None else int(obj_id))


def _number_boxes(boxes: list[_Placed], clicks: list[_Placed]) -> list[_Placed]:
    """Give boxes without a number theirs: several on one frame are objects 1, 2, and so on; one alone is object 1."""
    taken = {placed.obj_id for placed in boxes + clicks if placed.obj_id is not None}
    for frame in {placed.frame for placed in boxes}:
        bare = [placed for placed in boxes if placed.frame == frame and placed.obj_id is None]
        if len(bare) < 2:
            continue
        if any(placed.frame == frame and placed.obj_id is None for placed in clicks):
            raise PromptError(
                "it is not clear which box the points belong to",
                got=f"{len(bare)} boxes and points without object numbers, on one frame",
                expected="numbers: X,Y:OBJ and X0,Y0,X1,Y1:OBJ",
            )
        free = (number for number in range(1, len(boxes) + len(taken) + 1) if number not in taken)
        numbers = dict(zip(map(id, bare), free, strict=False))
        boxes = [placed._replace(obj_id=numbers.get(id(placed), placed.obj_id)) for placed in boxes]
    return boxes


def _read_masks(text: str) -> list[FramePrompt]:
    """The objects of a mask file; with a number, all of them are that one object."""
    placed = _place(text, "--mask", MASK)
    parts = read_mask_file(Path(placed.what))
    if placed.obj_id is not None:
        parts = {placed.obj_id: np.any(list(parts.values()), axis=0)}
    return [FramePrompt(obj_id=obj_id, frame=placed.frame, mask=mask) for obj_id, mask in parts.items()]


class Interrupt:
    """The first Ctrl-C, or request to terminate, taken note of; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0

    def came(self) -> bool:
        return self.signal != 0

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Takes note of Ctrl-C while the block runs, so that a frame is never left half written."""
    interrupt = Interrupt()
    before = {number: signal.signal(number, interrupt.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(out: Path) -> Iterator[Callable[[TrackProgress], None]]:
    """A bar on stderr: frames, frames a second, objects, memory. After an error it says what is kept."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    console, last = Console(stderr=True), TrackProgress(0, None, 0, 0.0, None)
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("track: loading", total=None)

            def report(now: TrackProgress) -> None:
                nonlocal last
                last = now
                bar.update(task, description=_progress_text(now), completed=now.frames, total=now.total)

            yield report
    except SamrtError:
        if last.frames:
            console.print(Text(f"kept: {last.frames} frames in {out}"), soft_wrap=True)
        raise


def _progress_text(now: TrackProgress) -> str:
    frames = f"{now.frames}/{now.total}" if now.total else f"{now.frames}"
    memory = "" if now.rss_mib is None else f", {now.rss_mib:.0f} MiB"
    objects = "1 object" if now.objects == 1 else f"{now.objects} objects"
    return f"track: frame {frames}, {now.fps:.1f} frames/s, {objects}{memory}"


def _print(report: TrackReport, json_output: bool) -> None:
    if json_output:
        print_json(asdict(report))
        return
    memory = "" if report.rss_peak_mib is None else f", peak memory {report.rss_peak_mib:.0f} MiB"
    objects = ", ".join(map(str, report.obj_ids)) or "none"
    print(f"{report.frames} frames in {report.seconds:.1f} s, {report.fps:.1f} frames/s; objects: {objects}{memory}")
    for count, what in (
        (report.dropped, "frames came too fast and were dropped"),
        (report.left_out, "damaged packets were left out"),
    ):
        if count:
            print(f"{count} {what}")
    if not report.frames:
        print("nothing was written: it was stopped before the first frame")
        return
    print(
        f"written{' until it was stopped' if report.stopped else ''}: {report.out}"
        + (f" ({report.codec})" if report.codec else "")
    )
