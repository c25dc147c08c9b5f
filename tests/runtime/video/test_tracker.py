"""The tracker on a stream: against the official rules, its memory, its prompts, its files."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samrt
from samrt import BackendError, BundleError, ImageError, InputError, PromptError, VideoTracker
from samrt.video import TrackedFrame

from .doubles import MASK, SIZE, VIDEO, Model, clip
from .official import Official

RED, BLUE = [10.0, 12.0], [32.0, 30.0]


def streamed(frames: list[np.ndarray], **options: Any) -> tuple[VideoTracker, Official]:
    """A tracker, and the official predictor as if the video had no end."""
    official = Official(Model(), frames)
    official.num_frames = None
    return VideoTracker(Model(), **options), official


def compare(out: TrackedFrame | None, expected: dict[int, np.ndarray]) -> None:
    assert out is not None
    assert out.obj_ids == tuple(expected)
    np.testing.assert_allclose(out.logits, np.stack(list(expected.values())), atol=2e-3)


def test_a_stream_as_the_official_rules_have_it() -> None:
    """40 frames: prompts before and between frames, corrections of the frame on the screen, objects that come and go."""
    frames = clip(40)
    tracker, official = streamed(frames)
    for number, frame in enumerate(frames):
        after: Callable[[], TrackedFrame | None] | None = None
        if number == 0:
            tracker.add_points(1, [RED], [1])
            official.add(0, 1, [RED], [1])
        elif number == 4:
            tracker.add_box(5, [20, 18, 30, 30])
            official.add(4, 5, box=[20, 18, 30, 30])
        elif number in (9, 10, 22):
            after = lambda: tracker.add_points(1, [[5, 25]], [0], frame="last")  # noqa: E731
        elif number == 15:
            after = lambda: tracker.add_points(9, [BLUE], [1], frame="last")  # noqa: E731
        elif number == 25:
            tracker.remove_object(5)
            del official.objects[5]
        out = tracker.step(frame)
        official.preflight()
        compare(out, official.track(number))
        assert out.frame_index == number
        if after is not None:
            corrected = after()
            obj_id, points, labels = (9, [BLUE], [1]) if number == 15 else (1, [[5, 25]], [0])
            official.add(number, obj_id, points, labels)
            shown = {
                one: (known["temp"].get(number) or known["cond"].get(number) or known["non_cond"][number])["logits"]
                for one, known in official.objects.items()
            }
            compare(corrected, shown)
            if number != 15:
                assert np.abs(corrected.logits[0] - out.logits[0]).max() > 0.1  # type: ignore[union-attr]
    assert tracker.obj_ids == (1, 9)


def test_a_prompt_before_a_frame_is_one_after_it() -> None:
    """For an object that is tracked already: found by its memory, then corrected, whichever way it is written."""
    frames = clip(12)
    before, after = VideoTracker(Model()), VideoTracker(Model())
    for number, frame in enumerate(frames):
        for tracker in (before, after):
            if number == 0:
                tracker.add_points(1, [RED], [1])
        if number == 5:
            before.add_points(1, [[5, 25]], [0])
            before.add_points(1, [RED], [1])
            before.add_points(2, [BLUE], [1])
        one, other = before.step(frame), after.step(frame)
        if number == 5:
            after.add_points(1, [[5, 25], RED], [0, 1], frame="last")
            corrected = after.add_points(2, [BLUE], [1], frame="last")
            assert corrected is not None
            other = corrected
        assert one.obj_ids == other.obj_ids
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


def test_points_add_up_and_can_be_replaced() -> None:
    """Two calls are one call of both; a mask and points replace each other; a box comes first."""
    frame = clip(1)[0]

    def asked(*calls: dict[str, Any]) -> np.ndarray:
        tracker = VideoTracker(Model())
        for call in calls:
            tracker.add_mask(1, **call) if "mask" in call else tracker.add_points(1, **call)
        return tracker.step(frame).logits

    red, far = {"points": [RED], "labels": [1]}, {"points": [[40, 35]], "labels": [0]}
    both = {"points": [RED, [40, 35]], "labels": [1, 0]}
    box = {"box": [4, 6, 16, 18]}
    mask = {"mask": np.arange(40 * 48).reshape(40, 48) < 900}
    np.testing.assert_array_equal(asked(red, far), asked(both))
    np.testing.assert_array_equal(asked(far, {**red, "clear_old": True}), asked(red))
    np.testing.assert_array_equal(asked(red, box), asked({**box, **red}))
    np.testing.assert_array_equal(asked(red, mask), asked(mask))
    np.testing.assert_array_equal(asked(mask, red), asked(red))
    np.testing.assert_array_equal(asked({"points": RED, "labels": 1}), asked(red))
    assert np.abs(asked(red) - asked(both)).max() > 0.1
    assert np.abs(asked(red) - asked({**box, **red})).max() > 0.1


def test_prompts_of_many_kinds_in_one_frame() -> None:
    """Decoded in groups, answered in the order of the calls, each as if it were alone."""
    frame = clip(1)[0]
    calls: list[dict[str, Any]] = [
        {"points": [RED], "labels": [1]},
        {"box": [20, 18, 30, 30]},
        {"points": [RED, BLUE], "labels": [1, 0]},
        {"mask": frame[..., 0] > 200},
        {"points": [BLUE], "labels": [1]},
        {"box": [4, 6, 16, 18], "points": [RED], "labels": [1]},
    ]
    model = Model()
    together = VideoTracker(model)
    for obj_id, call in enumerate(calls):
        together.add_mask(obj_id, **call) if "mask" in call else together.add_points(obj_id, **call)
    out = together.step(frame)
    assert out.obj_ids == tuple(range(6))
    assert model.calls["mask_decoder"] == 5  # the two single clicks share a run
    for obj_id, call in enumerate(calls):
        alone = VideoTracker(Model())
        alone.add_mask(3, **call) if "mask" in call else alone.add_points(3, **call)
        one = alone.step(frame)
        np.testing.assert_allclose(out.logits[obj_id], one.logits[0], atol=1e-5)
        np.testing.assert_allclose(out.scores[obj_id], one.scores[0], atol=1e-6)


def test_one_pass_of_the_encoder_for_a_frame() -> None:
    model = Model()
    tracker = VideoTracker(model)
    frames = clip(10)
    assert tracker.step(frames[0]).obj_ids == ()
    assert tracker.step(frames[1]).masks.shape == (0, 40, 48)
    assert model.calls["image_encoder"] == 0  # nobody asked for anything yet
    tracker.add_points(1, [RED], [1], frame="last")
    tracker.add_points(1, [[2, 2]], [0], frame="last")
    assert model.calls["image_encoder"] == 1
    for obj_id in range(2, 8):
        tracker.add_points(obj_id, [BLUE], [1])
    for frame in frames[2:]:
        tracker.step(frame)
        tracker.add_points(1, [RED], [1], frame="last")
    assert model.calls["image_encoder"] == 1 + 8
    assert model.calls["memory_encoder"] == 8  # one batch for all objects, once a frame is left behind
    assert len(tracker.obj_ids) == 7


def test_the_last_frame_is_a_copy_where_nothing_was_tracked() -> None:
    """A camera may fill the same buffer again before somebody clicks."""
    buffer = clip(1)[0].copy()
    tracker, other = VideoTracker(Model()), VideoTracker(Model())
    tracker.step(buffer)
    buffer[:] = 0
    other.step(clip(1)[0])
    one, two = (each.add_points(1, [RED], [1], frame="last") for each in (tracker, other))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.logits, two.logits)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_more_objects_than_a_graph_takes_run_in_parts(most: int) -> None:
    parts, whole = Model(most_objects=most), Model()
    outs = []
    for model in (parts, whole):
        tracker = VideoTracker(model)
        for obj_id in range(5):
            tracker.add_points(obj_id, [[4.0 + 8 * obj_id, 10]], [1])
        tracker.add_mask(5, clip(1)[0][..., 0] > 200)
        outs.append([tracker.step(frame).logits for frame in clip(9)])
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)
    assert parts.calls["memory_attention"] == 8 * -(-6 // most)
    assert whole.calls["memory_attention"] == 8


def test_a_long_stream_does_not_grow() -> None:
    """2,400 frames with prompts, objects that come and go: as many bytes and live objects at the end as early on."""
    tracker = VideoTracker(Model())
    frames = clip(60)
    tracker.add_points(0, [RED], [1])
    counts = []
    for number in range(2400):
        if number % 100 == 40:
            tracker.add_points(1, [BLUE], [1])
        if number % 100 == 60:
            tracker.add_points(0, [RED], [1], frame="last")
        if number % 100 == 90:
            tracker.remove_object(1)
        out = tracker.step(frames[number % 60])
        if number % 300 == 299:
            del out
            gc.collect()
            counts.append((tracker.nbytes, len(gc.get_objects())))
    assert len({nbytes for nbytes, _ in counts[1:]}) == 1
    assert max(live for _, live in counts[2:]) <= counts[1][1] + 20
    assert tracker.frame_index == 2400


def test_masks_are_made_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = VideoTracker(Model(), non_overlap=True)
    tracker.add_points(1, [RED], [1])
    tracker.add_points(2, [[14, 14]], [1])
    made = []
    real = samrt.video.output.video_masks
    monkeypatch.setattr("samrt.video.output.video_masks", lambda *a, **k: made.append(1) or real(*a, **k))
    out = tracker.step(clip(1)[0])
    assert not made
    masks = out.masks
    assert out.masks is masks
    assert made == [1]
    assert masks.dtype == np.bool_
    assert masks.shape == (2, 40, 48)
    assert masks.any(axis=(1, 2)).all()
    assert not masks.all(axis=0).any()
    np.testing.assert_array_equal(masks, out.upscaled_logits() > 0)


def test_holes_are_filled_in_what_is_shown_and_where_somebody_pointed() -> None:
    """The memory of a frame that was only tracked is made of its raw logits."""
    model = Model()
    tracker = VideoTracker(model, fill_hole_area=3)
    mask = np.zeros((40, 48), bool)
    mask[5:30, 5:30] = True
    holed = np.zeros((MASK, MASK), np.float32)
    decode = model.executors["mask_decoder"].run

    def with_hole(feeds: Any, outputs: Any = None) -> Any:
        made = decode(feeds, outputs)
        made["low_res_masks"][:] = 5.0
        made["low_res_masks"][:, :, 4:6, 4] = -3.0
        made["object_score_logits"][:] = 4.0
        return made

    model.executors["mask_decoder"].run = with_hole
    holed[:], holed[4:6, 4] = 5.0, -3.0
    filled = np.where(holed < 0, np.float32(0.1), holed)
    tracker.add_points(1, [RED], [1])
    frames = clip(3)
    np.testing.assert_array_equal(tracker.step(frames[0]).logits[0], filled)
    np.testing.assert_array_equal(tracker.step(frames[1]).logits[0], filled)
    feeds = model.executors["memory_encoder"].feeds
    np.testing.assert_array_equal(feeds["mask_logits"][0, 0], filled)
    assert feeds["binarize"].tolist() == [1]
    tracker.step(frames[2])
    feeds = model.executors["memory_encoder"].feeds
    np.testing.assert_array_equal(feeds["mask_logits"][0, 0], holed)
    assert feeds["binarize"].tolist() == [0]


def test_conditioning_frames_are_capped() -> None:
    model = Model(VIDEO, slots=9)
    tracker = VideoTracker(model, max_conditioning_frames=2)
    for number, frame in enumerate(clip(30)):
        if number % 5 == 0:
            tracker.add_points(1, [RED], [1])
        tracker.step(frame)
        if number:
            assert model.executors["memory_attention"].feeds["memory"].shape[1] <= 8
    feeds = model.executors["memory_attention"].feeds
    assert (feeds["memory_valid"] * (feeds["memory_time"] == 6)).sum() == 2
    with pytest.raises(PromptError, match=r"max_conditioning_frames is out of range \| got: 4 \| expected: 1 to 3"):
        VideoTracker(model, max_conditioning_frames=4)
    few = Model(replace(VIDEO, max_conditioning_frames=1))
    tracker = VideoTracker(few)
    for number, frame in enumerate(clip(12)):
        if number in (0, 3):
            tracker.add_points(1, [RED], [1])
        tracker.step(frame)
    feeds = few.executors["memory_attention"].feeds
    assert (feeds["memory_valid"] * (feeds["memory_time"] == 6)).sum() == 1


@pytest.mark.parametrize("when", [0, 1, 7])
def test_save_and_restore(when: int, tmp_path: Path) -> None:
    """After no frame, one, several; with prompts waiting: the same masks from there on, bit by bit."""
    path = tmp_path / "tracker.npz"
    frames = clip(20)
    tracker = VideoTracker(Model(), non_overlap=True, fill_hole_area=2, max_conditioning_frames=3)
    for frame in frames[:when]:
        if tracker.frame_index == 0:
            tracker.add_points(1, [RED], [1])
            tracker.add_mask(4, frame[..., 2] > 200)
        tracker.step(frame)
    tracker.add_box(8, [20, 18, 30, 30])
    tracker.add_points(8, [RED], [0])
    tracker.add_mask(9, frames[0][..., 0] > 200)
    tracker.save(path)
    restored = VideoTracker.restore(Model(), path)
    assert [one.name for one in tmp_path.iterdir()] == ["tracker.npz"]
    assert restored.frame_index == when
    assert restored.pending == (8, 9)
    for number, frame in enumerate(frames[when:]):
        if number or when:
            one, other = (each.add_points(1, [RED], [1], frame="last") for each in (tracker, restored))
            assert one is not None
            assert other is not None
            np.testing.assert_array_equal(one.logits, other.logits)
        one, other = tracker.step(frame), restored.step(frame)
        assert one.obj_ids == other.obj_ids
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_array_equal(one.masks, other.masks)
        np.testing.assert_array_equal(one.object_scores, other.object_scores)


def test_a_frame_without_objects_is_saved_too(tmp_path: Path) -> None:
    tracker = VideoTracker(Model())
    tracker.step(clip(1)[0])
    tracker.save(tmp_path / "t.npz")
    restored = VideoTracker.restore(Model(), tmp_path / "t.npz")
    one, other = (each.add_points(1, [RED], [1], frame="last") for each in (tracker, restored))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.logits, other.logits)


def test_files_that_are_no_state(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    tracker = VideoTracker(Model())
    tracker.add_points(1, [RED], [1])
    for frame in clip(3):
        tracker.step(frame)
    tracker.save(path)
    with pytest.raises(InputError, match=r"it is of another model \| got: bundle aaaa.*expected: bundle bbbb"):
        VideoTracker.restore(Model(digest="b"), path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cannot restore .* got: .*expected: a file that VideoTracker.save wrote"):
            VideoTracker.restore(Model(), path)
    with pytest.raises(InputError, match="No such file"):
        VideoTracker.restore(Model(), tmp_path / "absent.npz")
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match="damaged file: KeyError"):
        VideoTracker.restore(Model(), path)
    np.savez(path, state=np.array([{}], object))
    with pytest.raises(InputError, match=r"damaged file: ValueError.*pickle"):
        VideoTracker.restore(Model(), path)


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = VideoTracker(Model())
    tracker.add_points(1, [RED], [1])
    tracker.step(clip(1)[0])
    path = tmp_path / "t.npz"
    tracker.save(path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samrt.video.saving.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tracker.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["t.npz"]


@pytest.mark.parametrize("graph", ["image_encoder", "memory_encoder", "memory_attention", "mask_decoder"])
def test_a_failing_backend_leaves_a_tracker_that_goes_on(graph: str) -> None:
    """Whatever fails in the middle of a step: the frame can be given again, the waiting prompts still wait."""
    steady, shaken = VideoTracker(Model()), VideoTracker(Model())
    model: Any = shaken.model
    part = model if graph == "image_encoder" else model.executors[graph]
    for number, frame in enumerate(clip(9)):
        if number in (0, 4):
            for tracker in (steady, shaken):
                tracker.add_points(number, [RED], [1])
        if number in (4, 7):
            part.fails = True
            with pytest.raises(BackendError, match="out of memory"):
                shaken.step(frame)
            part.fails = False
        one, other = steady.step(frame), shaken.step(frame)
        assert one.obj_ids == other.obj_ids
        np.testing.assert_array_equal(one.logits, other.logits)


def test_mistakes() -> None:
    tracker = VideoTracker(Model())
    with pytest.raises(PromptError, match=r"no last frame to point at \| got: no frame so far"):
        tracker.add_points(1, [RED], [1], frame="last")
    with pytest.raises(PromptError, match=r"unknown frame \| got: 'now' \| expected: 'next' or 'last'"):
        tracker.add_points(1, [RED], [1], frame="now")  # type: ignore[arg-type]
    for odd in ("1", 1.0, True, None):
        with pytest.raises(PromptError, match="an object id must be a whole number"):
            tracker.add_points(odd, [RED], [1])  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="there is no prompt"):
        tracker.add_points(1)
    with pytest.raises(PromptError, match="corners of box 0 are crossed"):
        tracker.add_box(1, [10, 10, 5, 5])
    with pytest.raises(PromptError, match="a mask must be an array of bool or numbers"):
        tracker.add_mask(1, "mask.png")
    with pytest.raises(PromptError, match="a mask must be finite"):
        tracker.add_mask(1, np.full((4, 4), np.nan))
    with pytest.raises(PromptError, match=r"there is no object 1 \| .*none: there are no objects"):
        tracker.remove_object(1)
    with pytest.raises(ImageError, match="not a picture"):
        tracker.step(np.zeros((2, 2, 2, 3), np.uint8))
    assert tracker.frame_index == 0
    frames = clip(4)
    tracker.add_points(1, [[60, 10]], [1])
    tracker.add_mask(2, np.zeros((48, 40), bool))
    tracker.add_points(3, [RED], [1])
    with pytest.raises(PromptError, match="lies outside the picture"):
        tracker.step(frames[0])
    with pytest.raises(PromptError, match=r"the mask of object 2 has the wrong size \| got: \(48, 40\)"):
        tracker.step(frames[0])
    assert tracker.step(frames[0]).obj_ids == (3,)  # the bad ones were dropped
    with pytest.raises(PromptError, match=r"the mask has the wrong size \| got: \(48, 40\) \| expected: \(40, 48\)"):
        tracker.add_mask(2, np.zeros((48, 40), bool))
    with pytest.raises(PromptError, match="lies outside the picture"):
        tracker.add_points(4, [[60, 10]], [1], frame="last")
    with pytest.raises(
        ImageError, match=r"frame 1 has another size .* got: 40 x 48 \| expected: 48 x 40 \| fix: resize"
    ):
        tracker.step(frames[0].transpose(1, 0, 2))
    assert tracker.step(frames[1]).frame_index == 1
    tracker.remove_object(3)
    with pytest.raises(PromptError, match="there is no object 3"):
        tracker.remove_object(3)
    assert len(tracker.step(frames[2])) == 0
    tracker.add_points(6, [RED], [1])
    tracker.remove_object(6)  # it was only waiting
    tracker.finish()
    tracker.add_points(7, [RED], [1])
    with pytest.raises(PromptError, match=r"got: prompts of object 7 waiting for frame 3 \| .*had 3 frames"):
        tracker.finish()
    tracker.reset()
    assert (tracker.pending, tracker.frame_index) == ((), 0)
    tracker.step(np.zeros((8, 8, 3), np.uint8))  # another size is fine now


def test_models_without_memory_say_so() -> None:
    with pytest.raises(BundleError, match=r"double cannot track in this bundle \| got: no numbers for video"):
        VideoTracker(Model(None))  # type: ignore[arg-type]
    model = Model()
    del model.manifest.graphs["memory_encoder"]  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match=r"got: no graph memory_encoder \| .*fix: export it again"):
        VideoTracker(model)  # type: ignore[arg-type]


def test_an_absent_object_still_leaves_memory() -> None:
    """A frame on which the model sees nothing: masks of -1024, and a memory that says so."""
    model = Model()
    tracker = VideoTracker(model)
    tracker.add_points(1, [[1, 1]], [0])
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    out = tracker.step(black)
    assert out.object_scores[0] <= 0
    assert (out.logits == -1024).all()
    assert not out.masks.any()
    tracker.step(black)
    assert model.executors["memory_encoder"].feeds["object_score_logits"][0, 0] <= 0
    assert model.executors["memory_attention"].feeds["memory_valid"].tolist() == [[1]]
