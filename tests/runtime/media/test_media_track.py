"""`track_frames`: prompts reach the tracker before their frames, results are whole however it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from samrt import ImageError, InputError, PromptError
from samrt.media import FramePrompt, TrackProgress, open_frames, open_results, track_frames
from samrt.resident import resident_mib

from .clips import ColourTracker, cut, numbers, paint, write_clip

RED = FramePrompt(points=[[3, 2]])


def run(tmp_path: Path, source: Any, prompts: list[FramePrompt], name: str = "out.jsonl", **options: Any) -> Any:
    tracker = ColourTracker()
    report = track_frames(tracker, source, open_results(tmp_path / name), prompts, **options)
    return report, tracker


def frames_of(path: Path) -> list[int]:
    return sorted({json.loads(line)["frame"] for line in path.read_text().splitlines()})


def test_prompts_come_before_the_frames_they_are_about(tmp_path: Path) -> None:
    inside = np.zeros((32, 128), bool)
    inside[20, 1] = True
    prompts = [
        FramePrompt(2, 6, mask=inside),
        FramePrompt(1, box=[0, 0, 10, 6]),
        FramePrompt(1, 4, points=[[1, 1], [9, 30]], labels=[1, 0]),
        FramePrompt(1, 10, remove=True),
    ]
    source = open_frames([paint(index) for index in range(14)], start=2, every=2)
    report, tracker = run(tmp_path, source, prompts)
    assert tracker.calls == [
        (0, "box", 1, [0, 0, 10, 6]),
        (1, "points", 1, [[1, 1], [9, 30]], [1, 0], None),
        (2, "mask", 2, 1),
        (4, "remove", 1),
    ]
    assert (report.frames, report.obj_ids, report.stopped, report.dropped) == (6, (1, 2), False, 0)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = [(2, 1), (4, 1), (6, 1), (6, 2), (8, 1), (8, 2), (10, 2), (12, 2)]
    assert [(line["frame"], line["obj_id"]) for line in lines] == expected


def test_the_same_results_from_a_file_a_folder_a_list_and_an_iterator(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 12)
    pictures = list(open_frames(clip))
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        PIL.Image.fromarray(picture).save(folder / f"{index}.png")
    written = []
    for source in (clip, folder, pictures, iter(pictures), np.stack(pictures)):
        run(tmp_path, open_frames(source, fps=10, start=1), [RED, FramePrompt(2, 3, [[1, 30]])])
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [line.pop("time_s") for line in lines] == pytest.approx([line["frame"] / 10 for line in lines])
        written.append(lines)
    assert len(written[0]) == 2 + 2 * 9
    assert all(lines == written[0] for lines in written)


def test_frames_before_the_first_prompt_are_there_without_objects(tmp_path: Path) -> None:
    report, _ = run(
        tmp_path, open_frames([paint(index) for index in range(8)]), [FramePrompt(1, 5, [[3, 2]])], "out.mp4"
    )
    assert report.frames == 8
    assert report.codec == "libx264"
    assert numbers(open_frames(tmp_path / "out.mp4")) == list(range(8))


def test_a_prompt_for_a_frame_that_never_comes(tmp_path: Path) -> None:
    """All that came is kept."""
    prompts = [RED, FramePrompt(4, 99, [[1, 1]]), FramePrompt(2, 7, [[1, 1]])]
    with pytest.raises(
        PromptError,
        match=r"its frame did not come \| got: object 2 on frame 7; object 4 on frame 99; 5 frames of the list of frames",
    ):
        run(tmp_path, open_frames([paint(index) for index in range(5)]), prompts)
    assert frames_of(tmp_path / "out.jsonl") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there is no prompt"),
        (
            [FramePrompt(1, 1, [[1, 1]])],
            "the prompt for object 1 on frame 1 is about a frame that is not read | got: frame 1",
        ),
        ([FramePrompt(1, 5, [[1, 1]])], "the prompt for object 1 on frame 5 is about"),
        ([FramePrompt(1, 20, [[1, 1]])], "the prompt for object 1 on frame 20 is about"),
    ],
)
def test_prompts_that_cannot_come_are_refused_at_once(tmp_path: Path, prompts: list[FramePrompt], message: str) -> None:
    source = open_frames((paint(index) for index in range(30)), start=2, stop=20, every=2)
    with pytest.raises(PromptError) as caught:
        run(tmp_path, source, prompts)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
    assert numbers(source)[0] == 2  # nothing was read


def test_a_truncated_video_keeps_its_frames(tmp_path: Path) -> None:
    clip = cut(write_clip(tmp_path / "clip.mkv", 60), 0.6)
    with pytest.raises(ImageError, match=r"ends early|cannot read frame"):
        run(tmp_path, open_frames(clip), [RED])
    kept = frames_of(tmp_path / "out.jsonl")
    assert kept == list(range(len(kept)))
    assert len(kept) > 5


def test_an_error_of_the_tracker_keeps_the_frames_before(tmp_path: Path) -> None:
    class Broken(ColourTracker):
        def step(self, frame: np.ndarray) -> Any:
            if self.steps == 6:
                raise RuntimeError("out of memory")
            return super().step(frame)

    source = open_frames([paint(index) for index in range(30)])
    with pytest.raises(RuntimeError, match="out of memory"):
        track_frames(Broken(), source, open_results(tmp_path / "out.mp4"), [RED])
    assert numbers(open_frames(tmp_path / "out.mp4")) == list(range(6))


def test_it_ends_where_it_is_told_to(tmp_path: Path) -> None:
    seen: list[TrackProgress] = []
    source = open_frames([paint(index) for index in range(200)])
    report, _ = run(
        tmp_path,
        source,
        [RED, FramePrompt(3, 150, [[1, 1]])],
        progress=seen.append,
        until=lambda: len(seen) >= 7,
    )
    assert report.stopped
    assert report.frames == 7
    assert frames_of(tmp_path / "out.jsonl") == list(range(7))
    assert [(now.frames, now.total, now.objects) for now in seen] == [(index + 1, 200, 1) for index in range(7)]
    assert all(now.fps > 0 for now in seen)


def test_max_frames(tmp_path: Path) -> None:
    seen: list[TrackProgress] = []
    report, _ = run(
        tmp_path, open_frames(paint(index % 256) for index in range(10**9)), [RED], max_frames=4, progress=seen.append
    )
    assert (report.frames, report.stopped) == (4, False)
    assert seen[-1].total == 4


def test_ids_are_checked_before_the_work(tmp_path: Path) -> None:
    source = open_frames([paint(0)])
    with pytest.raises(InputError, match="object id 300 does not fit"):
        run(tmp_path, source, [FramePrompt(300, points=[[1, 1]])], "masks")
    run(tmp_path, source, [FramePrompt(300, points=[[1, 1]])], "out.jsonl")


def test_live_prompts_take_the_first_frame_from_theirs_on(tmp_path: Path) -> None:
    """On a live source the frame itself may have been dropped."""
    frames = open_frames([paint(index) for index in range(9)], every=4)
    frames.live = True  # type: ignore[misc]
    frames.span = open_frames([paint(0)]).span
    real = frames._read
    frames._read = lambda first: (raw for raw in real(first) if raw.index % 4 == 0)  # type: ignore[method-assign]
    tracker = ColourTracker()
    source: Any = frames
    source.timeout_s = 30.0
    report = track_frames(tracker, source, open_results(tmp_path / "out.jsonl"), [RED, FramePrompt(2, 8, [[3, 30]])])
    given = dict.fromkeys(call[2] for call in tracker.calls)
    assert list(given) == [1, 2]
    assert report.frames + report.dropped == 3


def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    if resident_mib() is None:
        pytest.skip("no /proc")
    rss: list[float] = []
    source = open_frames(paint(index % 256, (240, 320)) for index in range(300))
    run(tmp_path, source, [RED], progress=lambda now: rss.append(now.rss_mib or 0.0))
    assert max(rss[100:]) - rss[99] < 15  # 200 frames of 0.23 MB passed
