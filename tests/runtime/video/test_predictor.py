"""The drop-in predictor: against the official one told again in `official`, and as a script written for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samrt import ImageError, PromptError, VideoPredictor
from samrt.masks import upscale_logits

from .doubles import SIZE, Model, clip
from .official import Official

RED, BLUE = [10.0, 12.0], [32.0, 30.0]


def pair(frames: int = 14, hw: tuple[int, int] = (SIZE, SIZE)) -> tuple[VideoPredictor, Any, Official]:
    """The same clip in both."""
    model, pictures = Model(), clip(frames, hw)
    predictor = VideoPredictor(model)
    return predictor, predictor.init_state(pictures), Official(Model(), pictures)


def compare(video_res: np.ndarray, low_res: list[np.ndarray], hw: tuple[int, int]) -> None:
    """float32 (K, 1, H, W) against low-res logits in double precision."""
    expected = upscale_logits(np.stack(low_res).astype(np.float32)[:, None], hw)
    assert video_res.dtype == np.float32
    np.testing.assert_allclose(video_res, expected, atol=2e-3)


def run(predictor: VideoPredictor, state: Any, official: Official, hw: tuple[int, int], **options: Any) -> list[int]:
    """Propagate in both and compare every frame. Returns the frames."""
    official.preflight()
    seen = []
    for frame, obj_ids, masks in predictor.propagate_in_video(state, **options):
        found = official.track(frame, options.get("reverse", False))
        assert obj_ids == list(found)
        compare(masks, list(found.values()), hw)
        seen.append(frame)
    return seen


@pytest.mark.parametrize("hw", [(SIZE, SIZE), (40, 48)])
def test_everything_as_the_official_predictor(hw: tuple[int, int]) -> None:
    """Several objects by click and box, a corrective click on a tracked frame, backwards, from the middle, in parts."""
    predictor, state, official = pair(14, hw)
    frame, obj_ids, masks = predictor.add_new_points_or_box(state, 3, 1, points=[RED], labels=[1])
    assert (frame, obj_ids) == (3, [1])
    compare(masks, [official.add(3, 1, [RED], [1])], hw)
    _, obj_ids, masks = predictor.add_new_points_or_box(state, 3, 7, box=[20, 18, 30, 30])
    assert obj_ids == [1, 7]
    compare(masks[1:], [official.add(3, 7, box=[20, 18, 30, 30])], hw)
    # A second click before anything is tracked: the first one's logits go in, without memory.
    _, _, masks = predictor.add_new_points_or_box(state, 3, 1, points=[[2, 2]], labels=[0], clear_old_points=False)
    compare(masks[:1], [official.add(3, 1, [RED, [2, 2]], [1, 0])], hw)
    assert run(predictor, state, official, hw) == list(range(3, 14))

    # Corrections on tracked frames, of one object each, one of them twice: they become conditioning frames.
    _, _, masks = predictor.add_new_points_or_box(state, 8, 1, points=[[5, 25]], labels=[0])
    compare(masks[:1], [official.add(8, 1, [[5, 25]], [0])], hw)
    _, _, masks = predictor.add_new_points_or_box(state, 8, 1, points=[RED, [5, 25]], labels=[1, 0])
    compare(masks[:1], [official.add(8, 1, [RED, [5, 25]], [1, 0])], hw)
    predictor.add_new_points_or_box(state, 10, 7, points=[BLUE], labels=[1])
    official.add(10, 7, [BLUE], [1])
    assert run(predictor, state, official, hw, start_frame_idx=8) == list(range(8, 14))
    assert run(predictor, state, official, hw, start_frame_idx=9, reverse=True) == list(range(9, -1, -1))
    # A correction on a frame that was tracked backwards looks forwards for its memory.
    _, _, masks = predictor.add_new_points_or_box(state, 1, 7, points=[[8, 8]], labels=[0])
    compare(masks[1:], [official.add(1, 7, [[8, 8]], [0])], hw)
    assert run(predictor, state, official, hw, start_frame_idx=2, max_frame_num_to_track=3) == [2, 3, 4, 5]
    assert run(predictor, state, official, hw, start_frame_idx=6, max_frame_num_to_track=2, reverse=True) == [6, 5, 4]


def test_a_click_ahead_of_what_was_tracked_uses_no_memory() -> None:
    """As upstream: a frame that no propagation has passed is answered by the click alone, whatever is remembered."""
    predictor, state, official = pair(10)
    predictor.add_new_points_or_box(state, 0, 1, points=[RED], labels=[1])
    official.add(0, 1, [RED], [1])
    assert run(predictor, state, official, (SIZE, SIZE), max_frame_num_to_track=3) == [0, 1, 2, 3]
    _, _, masks = predictor.add_new_points_or_box(state, 8, 1, points=[[20, 10]], labels=[1])
    compare(masks, [official.add(8, 1, [[20, 10]], [1])], (SIZE, SIZE))
    fresh = VideoPredictor(Model())
    _, _, alone = fresh.add_new_points_or_box(
        fresh.init_state(clip(10, (SIZE, SIZE))), 8, 1, points=[[20, 10]], labels=[1]
    )
    np.testing.assert_array_equal(masks, alone)
    run(predictor, state, official, (SIZE, SIZE), start_frame_idx=2)


def test_masks_as_prompts() -> None:
    """At the model's size; one mask where the decoder sees no object, one without any pixel."""
    predictor, state, official = pair(8)
    square = np.zeros((SIZE, SIZE), bool)
    square[6:17, 3:15] = True
    nothing, dot = np.zeros_like(square), np.zeros_like(square)
    dot[31:, 31:] = True
    for obj_id, mask in enumerate((square, nothing, dot)):
        _, _, masks = predictor.add_new_mask(state, 0, obj_id, mask)
        compare(masks[obj_id:], [official.add(0, obj_id, mask=mask)], (SIZE, SIZE))
    assert (official.objects[2]["temp"][0]["pointer_score"] > 0) != (
        official.objects[0]["temp"][0]["pointer_score"] > 0
    )
    run(predictor, state, official, (SIZE, SIZE))
    # A click on top of a mask, and a mask on a frame that was tracked.
    _, _, masks = predictor.add_new_points_or_box(state, 0, 0, points=[[20, 20]], labels=[0])
    compare(masks[:1], [official.add(0, 0, [[20, 20]], [0])], (SIZE, SIZE))
    predictor.add_new_mask(state, 4, 2, square)
    official.add(4, 2, mask=square)
    run(predictor, state, official, (SIZE, SIZE), start_frame_idx=0)


def test_a_script_written_for_the_official_predictor() -> None:
    predictor = VideoPredictor(Model())
    inference_state = predictor.init_state(video_path=clip(6))
    predictor.reset_state(inference_state)
    _, out_obj_ids, out_mask_logits = predictor.add_new_points_or_box(
        inference_state=inference_state,
        frame_idx=0,
        obj_id=1,
        points=np.array([RED], dtype=np.float32),
        labels=np.array([1], np.int32),
    )
    assert out_obj_ids == [1]
    assert out_mask_logits.shape == (1, 1, 40, 48)
    video_segments = {}
    for out_frame_idx, out_obj_ids, out_mask_logits in predictor.propagate_in_video(inference_state):
        video_segments[out_frame_idx] = {
            out_obj_id: out_mask_logits[i] > 0.0 for i, out_obj_id in enumerate(out_obj_ids)
        }
    assert sorted(video_segments) == list(range(6))
    assert all(0.01 < masks[1].mean() < 0.9 for masks in video_segments.values())
    assert inference_state["num_frames"] == 6
    assert (inference_state["video_height"], inference_state["video_width"]) == (40, 48)
    assert inference_state["obj_ids"] == [1]


def test_one_pass_of_the_encoder_for_a_frame() -> None:
    """Five objects, two prompts each: as many passes as frames, and one batch for all objects."""
    model = Model()
    predictor = VideoPredictor(model)
    state = predictor.init_state(clip(6))
    for obj_id in range(5):
        for label in (1, 0):
            predictor.add_new_points_or_box(state, 0, obj_id, points=[RED], labels=[label])
    list(predictor.propagate_in_video(state))
    assert model.calls["image_encoder"] == 6
    assert model.calls["memory_attention"] == 5
    assert model.calls["memory_encoder"] == 6


def test_normalised_coordinates_and_the_old_name() -> None:
    predictor, state, _ = pair(2, (40, 48))
    _, _, pixels = predictor.add_new_points_or_box(state, 0, 1, points=[RED], labels=[1], box=[4, 6, 16, 18])
    relative = {"points": [[RED[0] / 48, RED[1] / 40]], "labels": [1], "box": [4 / 48, 6 / 40, 16 / 48, 18 / 40]}
    _, _, shares = predictor.add_new_points(state, 0, 2, **relative, normalize_coords=False)
    np.testing.assert_allclose(shares[1], pixels[0], atol=1e-4)


def test_clearing_prompts() -> None:
    predictor, state, official = pair(8)
    for frame in (0, 4):
        predictor.add_new_points_or_box(state, frame, 1, points=[RED], labels=[1])
        official.add(frame, 1, [RED], [1])
    run(predictor, state, official, (SIZE, SIZE))
    shown = predictor.clear_all_prompts_in_frame(state, 4, 1)
    assert shown is not None
    compare(shown[2], [official.objects[1]["cond"][4]["logits"]], (SIZE, SIZE))
    known = official.objects[1]
    known["non_cond"][4] = known["cond"].pop(4)
    del known["tracked"][4]
    run(predictor, state, official, (SIZE, SIZE), start_frame_idx=1)
    assert predictor.clear_all_prompts_in_frame(state, 0, 1, need_output=False) is None
    with pytest.raises(PromptError, match=r"object 1 has no prompt left.*fix: point it out again"):
        next(predictor.propagate_in_video(state))


def test_a_prompt_not_yet_tracked_can_be_cleared() -> None:
    predictor, state, _ = pair(3)
    predictor.add_new_points_or_box(state, 0, 1, points=[RED], labels=[1])
    shown = predictor.clear_all_prompts_in_frame(state, 0, 1)
    assert shown is not None
    assert (shown[2] == -1024).all()


def test_removing_objects() -> None:
    predictor, state, official = pair(6)
    for obj_id, point in ((1, RED), (2, BLUE), (3, [20, 20])):
        predictor.add_new_points_or_box(state, 0, obj_id, points=[np.clip(point, 0, 31)], labels=[1])
        official.add(0, obj_id, [np.clip(point, 0, 31)], [1])
    run(predictor, state, official, (SIZE, SIZE), max_frame_num_to_track=2)
    obj_ids, updated = predictor.remove_object(state, 2)
    assert obj_ids == [1, 3]
    assert [frame for frame, _ in updated] == [0]
    assert updated[0][1].shape == (2, 1, SIZE, SIZE)
    del official.objects[2]
    run(predictor, state, official, (SIZE, SIZE))
    assert predictor.remove_object(state, 2) == ([1, 3], [])
    with pytest.raises(PromptError, match=r"no object 2 \| got: an id .* \| expected: one of 1, 3"):
        predictor.remove_object(state, 2, strict=True)
    predictor.remove_object(state, 1)
    assert predictor.remove_object(state, 3) == ([], [])
    with pytest.raises(PromptError, match="there is nothing to track"):
        next(predictor.propagate_in_video(state))


def test_overlaps_go_to_the_highest_logit() -> None:
    model = Model()
    plain, apart = VideoPredictor(model), VideoPredictor(model, non_overlap_masks=True)
    results = []
    for predictor in (plain, apart):
        state = predictor.init_state(clip(3))
        for obj_id, point in ((1, RED), (2, [14, 14])):
            predictor.add_new_points_or_box(state, 0, obj_id, points=[point], labels=[1])
        results.append([masks[:, 0] for _, _, masks in predictor.propagate_in_video(state)])
    for both, one in zip(*results, strict=True):
        overlap = (both > 0).all(axis=0)
        assert overlap.any()
        wins = both.argmax(axis=0)
        for row in range(2):
            np.testing.assert_array_equal(one[row], np.where(wins == row, both[row], np.minimum(both[row], -10)))


def test_mistakes() -> None:
    predictor, state, _ = pair(3, (40, 48))
    with pytest.raises(ImageError, match="no frame"):
        predictor.init_state([])
    with pytest.raises(PromptError, match=r"no such frame \| got: frame_idx=3 \| expected: 0 to 2"):
        predictor.add_new_points_or_box(state, 3, 1, points=[RED], labels=[1])
    with pytest.raises(PromptError, match="no such frame"):
        next(predictor.propagate_in_video(_prompted(predictor, state), start_frame_idx=-1))
    predictor.reset_state(state)
    with pytest.raises(PromptError, match="outside the picture"):
        predictor.add_new_points_or_box(state, 0, 1, points=[[60, 10]], labels=[1])
    with pytest.raises(PromptError, match="there is no prompt"):
        predictor.add_new_points_or_box(state, 0, 1)
    with pytest.raises(PromptError, match="labels=None"):
        predictor.add_new_points_or_box(state, 0, 1, points=[RED])
    with pytest.raises(PromptError, match="a box cannot be added to old points"):
        predictor.add_new_points_or_box(state, 0, 1, box=[1, 1, 5, 5], clear_old_points=False)
    with pytest.raises(PromptError, match=r"one object takes one prompt \| got: 2 prompts"):
        predictor.add_new_points_or_box(state, 0, 1, points=[[RED], [BLUE]], labels=[[1], [1]])
    with pytest.raises(PromptError, match=r"wrong size \| got: \(48, 40\) \| expected: \(40, 48\)"):
        predictor.add_new_mask(state, 0, 1, np.zeros((48, 40), bool))
    with pytest.raises(PromptError, match="no object 5"):
        predictor.clear_all_prompts_in_frame(state, 0, 5)
    assert state.obj_ids == []  # nothing of this left an object behind
    sizes = predictor.init_state([*clip(1, (40, 48)), *clip(1, (40, 50))])
    with pytest.raises(ImageError, match=r"frame 1 has another size than the first one \| got: 50 x 40"):
        list(predictor.propagate_in_video(_prompted(predictor, sizes)))


def _prompted(predictor: VideoPredictor, state: Any) -> Any:
    predictor.add_new_points_or_box(state, 0, 1, points=[RED], labels=[1])
    return state
