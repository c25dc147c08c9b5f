"""Tracking through bundle and runtime against transformers' ``Sam2VideoModel``, frame by frame and object by object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from video_oracle import VideoOracle, hf_video_model

import samrt
from samrt_export.export import export_model
from samrt_export.families.sam2 import FAMILY, Sam2
from samrt_export.nano.clicks import corrective_click, innermost_point
from samrt_export.nano.clips import LENGTH, Clip, held_out_clips
from samrt_export.nano.evaluate import iou
from samrt_export.source import load_weights

HW = (180, 240)
LEAST_IOU = 0.995


def live_weights() -> Sam2:
    """nano's architecture with random weights under which memory decides: it is attended to sharply and counts for much,
    and the object score lies near zero, so that objects come and go."""
    module = load_weights(FAMILY, "nano", random_seed=5).module
    assert isinstance(module, Sam2)
    for layer in module.memory_attention.layers:
        layer.cross_attn_image.out_proj.weight.mul_(4)
        layer.cross_attn_image.k_proj.weight.mul_(2)
    module.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(0.47)
    return module


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[samrt.Model, Any]]:
    """The same weights through the bundle, and in transformers."""
    folder = tmp_path_factory.mktemp("live")
    module = live_weights()
    torch.save({"model": module.state_dict()}, folder / "live.pt")
    export_model("nano", folder / "bundle", checkpoint=folder / "live.pt")
    with samrt.load(folder / "bundle", backend="onnxruntime", threads=2) as model:
        yield model, hf_video_model(module, "nano")


def clip(frames: int, seed: int = 0) -> list[np.ndarray]:
    """A disc that crosses the picture, a square that leaves it and returns, over noise."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(40, 120, (*HW, 3)).astype(np.uint8)
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    pictures = []
    for time in range(frames):
        picture = ground.copy()
        picture[(columns - 60 - 6 * time) ** 2 + (rows - 70 - 3 * time) ** 2 < 25**2] = (220, 40, 40)
        left = 150 + 40 * min(time, frames - time)
        picture[40:80, left : left + 40] = (40, 60, 230)
        pictures.append(picture)
    return pictures


class Record:
    """Frames of both, compared as they come."""

    def __init__(self, oracle: VideoOracle) -> None:
        self.oracle = oracle
        self.masks: list[np.ndarray] = []
        self.smallest = 1.0

    def compare(self, masks: np.ndarray, logits: dict[int, np.ndarray]) -> None:
        expected = self.oracle.masks(logits)
        assert masks.shape == expected.shape
        for one, other in zip(masks, expected, strict=True):
            assert one.any() == other.any()
            self.smallest = min(self.smallest, iou(one, other))
        assert self.smallest >= LEAST_IOU
        self.masks.append(masks)

    def check_alive(self) -> None:
        """Neither empty nor full, different from frame to frame and object to object; some absent, some not."""
        masks = np.concatenate(self.masks)
        shares = masks.mean(axis=(1, 2))
        assert (shares == 0).any()
        assert (shares > 0).sum() >= 5
        assert shares.max() < 0.97
        seen = masks[shares > 0]
        similar = [iou(one, other) for index, one in enumerate(seen) for other in seen[:index]]
        assert np.mean(similar) < 0.95


MASK = np.zeros(HW, bool)
MASK[40:80, 150:190] = True


def test_a_stream(live: tuple[samrt.Model, Any]) -> None:
    """A click, a box, a mask; a correction of the frame on the screen; an object that is added, one that is removed."""
    model, hf_model = live
    frames = clip(12)
    oracle = VideoOracle(hf_model, frames, streaming=True)
    record = Record(oracle)
    tracker = samrt.VideoTracker(model, fill_hole_area=0)
    tracker.add_points(1, [[60, 70]], [1])
    tracker.add_box(2, [150, 40, 190, 80])
    tracker.add_mask(3, MASK)
    oracle.add(0, 1, [[60, 70]], [1])
    oracle.add(0, 2, box=[150, 40, 190, 80])
    oracle.add(0, 3, mask=MASK)
    for number, frame in enumerate(frames):
        if number == 5:
            tracker.add_points(4, [[90, 85], [20, 20]], [1, 0])
            oracle.add(5, 4, [[90, 85], [20, 20]], [1, 0])
        out = tracker.step(frame)
        oracle.preflight()
        record.compare(out.masks, oracle.track(number))
        if number == 7:
            corrected = tracker.add_points(1, [[20, 160]], [0], frame="last")
            assert corrected is not None
            expected = oracle.add(7, 1, [[20, 160]], [0])
            record.compare(corrected.masks[:1], {1: expected})
    record.check_alive()


def test_a_video(live: tuple[samrt.Model, Any]) -> None:
    """The drop-in predictor: forwards from the middle, a corrective click, backwards, and forwards again."""
    model, hf_model = live
    frames = clip(9, seed=1)
    oracle = VideoOracle(hf_model, frames)
    record = Record(oracle)
    predictor = samrt.VideoPredictor(model, fill_hole_area=0)
    state = predictor.init_state(frames)

    def run(**options: Any) -> None:
        oracle.preflight()
        for frame, obj_ids, masks in predictor.propagate_in_video(state, **options):
            found = oracle.track(frame, reverse=options.get("reverse", False))
            assert obj_ids == list(found)
            record.compare(masks[:, 0] > 0, found)

    _, _, shown = predictor.add_new_points_or_box(state, 3, 1, points=[[78, 79]], labels=[1])
    record.compare(shown[:, 0] > 0, {1: oracle.add(3, 1, [[78, 79]], [1])})
    _, _, shown = predictor.add_new_mask(state, 4, 2, MASK)
    record.compare(shown[1:, 0] > 0, {2: oracle.add(4, 2, mask=MASK)})
    run()
    _, _, shown = predictor.add_new_points_or_box(state, 6, 2, points=[[60, 120]], labels=[0])
    record.compare(shown[1:, 0] > 0, {2: oracle.add(6, 2, [[60, 120]], [0])})
    run(start_frame_idx=7, reverse=True)
    run(start_frame_idx=1, max_frame_num_to_track=3)
    record.check_alive()


@pytest.mark.slow
def test_the_shipped_model_on_held_out_clips(nano_bundle: Path) -> None:
    """Five clips of 60 frames with one to four objects, some of which leave and return: a click each, a correction half way
    through, and back again from the end."""
    module = load_weights(FAMILY, "nano").module
    assert isinstance(module, Sam2)
    hf_model = hf_video_model(module, "nano")
    absent = 0
    with samrt.load(nano_bundle, backend="onnxruntime", threads=2) as model:
        for clip in held_out_clips(5):
            record = follow_both(samrt.VideoPredictor(model, fill_hole_area=0), hf_model, clip)
            print(clip.seed, f"{len(clip.objects)} objects, smallest IoU {record.smallest:.5f}")
            absent += sum(not mask.any() for masks in record.masks for mask in masks)
    assert absent > 0  # somebody did leave


def follow_both(predictor: samrt.VideoPredictor, hf_model: Any, clip: Clip) -> Record:
    """One clip on both sides, compared frame by frame."""
    frames = [clip.frame(index) for index in range(LENGTH)]
    oracle = VideoOracle(hf_model, [frame.image for frame in frames])
    record = Record(oracle)
    state = predictor.init_state([frame.image for frame in frames])
    for obj_id, mask in enumerate(clip.masks(frames[0])):
        point = [float(value) for value in innermost_point(mask)]
        predictor.add_new_points_or_box(state, 0, obj_id, points=[point], labels=[1])
        oracle.add(0, obj_id, [point], [1])

    def run(**options: Any) -> np.ndarray:
        oracle.preflight()
        for index, _, masks in predictor.propagate_in_video(state, **options):
            record.compare(masks[:, 0] > 0, oracle.track(index, reverse=options.get("reverse", False)))
        return record.masks[-1]

    half = LENGTH // 2
    seen = run(start_frame_idx=0, max_frame_num_to_track=half)
    click = corrective_click(seen[0], clip.masks(frames[half])[0])
    if click is not None:
        point = [float(value) for value in click[0]]
        predictor.add_new_points_or_box(state, half, 0, points=[point], labels=[click[1]])
        oracle.add(half, 0, [point], [click[1]])
    run(start_frame_idx=half)
    run(start_frame_idx=LENGTH - 1, reverse=True)
    return record
