"""The stream of masks does not depend on where frames come from, nor on a pause in the middle. Frames are stored lossless."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest

from samrt import VideoPredictor, VideoTracker
from samrt.media import FramePrompt, decode_mask, open_frames, open_results, track_frames

from ..video.doubles import Model, clip

COUNT = 18
PROMPTS = [
    FramePrompt(1, 0, points=[[10, 12]], labels=[1]),
    FramePrompt(2, 0, box=[26, 24, 38, 36]),
    FramePrompt(1, 7, points=[[5, 25]], labels=[0]),
    FramePrompt(3, 9, mask=clip(COUNT)[9][..., 2] > 200),
    FramePrompt(2, 13, remove=True),
]


def write_lossless(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_folder(folder: Path, frames: list[np.ndarray]) -> Path:
    folder.mkdir()
    for index, image in enumerate(frames):
        PIL.Image.fromarray(image).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture
def frames() -> list[np.ndarray]:
    return clip(COUNT)


@pytest.fixture(params=["file", "folder", "list", "iterator"])
def source(request: pytest.FixtureRequest, frames: list[np.ndarray], tmp_path: Path) -> Any:
    made = {
        "file": lambda: write_lossless(tmp_path / "clip.mkv", frames),
        "folder": lambda: write_folder(tmp_path / "frames", frames),
        "list": lambda: frames,
        "iterator": lambda: iter(frames),
    }
    return made[request.param]()


class Paused:
    """A tracker that is saved and restored between any two frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tracker = VideoTracker(Model(), non_overlap=True)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tracker, name)

    def step(self, frame: np.ndarray) -> Any:
        self.tracker.save(self.path)  # with the prompts that wait for this frame
        self.tracker = VideoTracker.restore(Model(), self.path)  # type: ignore[arg-type]
        return self.tracker.step(frame)


def expected_masks(frames: list[np.ndarray]) -> Iterator[dict[int, np.ndarray]]:
    """Of a tracker that is given the frames themselves."""
    tracker = VideoTracker(Model(), non_overlap=True)  # type: ignore[arg-type]
    for number, frame in enumerate(frames):
        for prompt in PROMPTS:
            if prompt.frame == number:
                prompt.apply(tracker)
        out = tracker.step(frame)
        yield dict(zip(out.obj_ids, out.masks, strict=True))


@pytest.mark.parametrize("paused", [False, True])
def test_a_stream_of_masks_is_the_same_from_any_source(
    source: Any, frames: list[np.ndarray], paused: bool, tmp_path: Path
) -> None:
    """Pixel for pixel, with several objects, a correction, a mask and an object that is removed."""
    tracker: Any = Paused(tmp_path / "state.npz") if paused else VideoTracker(Model(), non_overlap=True)  # type: ignore[arg-type]
    track_frames(tracker, open_frames(source, fps=10), open_results(tmp_path / "out.jsonl"), PROMPTS)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = {(line["frame"], line["obj_id"]): decode_mask(line["segmentation"]) for line in lines}
    expected = {
        (number, obj_id): mask for number, masks in enumerate(expected_masks(frames)) for obj_id, mask in masks.items()
    }
    assert list(found) == list(expected)
    assert len(found) == 2 * 9 + 3 * 4 + 2 * 5
    for key, mask in expected.items():
        np.testing.assert_array_equal(found[key], mask)
    assert len({mask.tobytes() for mask in expected.values()}) > COUNT  # they move


def test_the_predictor_sees_the_same_video_in_any_source(source: Any, frames: list[np.ndarray]) -> None:
    shown = []
    for video in (source, frames):
        predictor = VideoPredictor(Model())  # type: ignore[arg-type]
        state = predictor.init_state(video)
        predictor.add_new_points_or_box(state, 4, 1, [[10, 12]], [1])
        shown.append([masks for _, _, masks in predictor.propagate_in_video(state)])
        shown[-1] += [masks for _, _, masks in predictor.propagate_in_video(state, reverse=True)]
    assert len(shown[0]) == (COUNT - 4) + 5
    np.testing.assert_array_equal(shown[0], shown[1])
