import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torch.nn import functional

from samrt.masks import (
    binary_masks,
    choose_candidates,
    clean_masks,
    fill_holes,
    hq_candidates,
    remove_sprinkles,
    stability_scores,
    upscale_logits,
)
from samrt.numbers import ImageNumbers, MaskNumbers, Stability
from samrt.transforms import Frame

NUMBERS = MaskNumbers(0.0, 32.0, (8, 8), (0,), (1, 2, 3), Stability(0.05, 0.98))
PADDED = ImageNumbers((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "longest_side", True)
RNG = np.random.default_rng(0)


def candidates(prompts: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Stable logits; candidate k of prompt p is filled with 10 p + k + 1."""
    values = np.arange(prompts)[:, None] * 10 + np.arange(4) + 1
    logits = np.broadcast_to(values[..., None, None], (prompts, 4, 8, 8)).astype(np.float32)
    return logits, np.array([[0.1, 0.5, 0.9, 0.7]] * prompts, np.float32)


def test_multimask_takes_the_three() -> None:
    logits, scores = candidates()
    chosen = choose_candidates(logits, scores, NUMBERS, multimask=True)
    np.testing.assert_array_equal(chosen.logits, logits[:, 1:])
    np.testing.assert_array_equal(chosen.scores, scores[:, 1:])


def test_candidates_need_not_be_neighbours() -> None:
    logits, scores = candidates()
    numbers = dataclasses.replace(NUMBERS, multi=(3, 1))
    np.testing.assert_array_equal(choose_candidates(logits, scores, numbers, multimask=True).scores, scores[:, [3, 1]])


def test_a_stable_single_mask_stays() -> None:
    logits, scores = candidates()
    chosen = choose_candidates(logits, scores, NUMBERS, multimask=False)
    np.testing.assert_array_equal(chosen.logits, logits[:, :1])
    np.testing.assert_array_equal(chosen.scores, scores[:, :1])


def test_a_single_request_may_get_the_best_of_several() -> None:
    logits, scores = candidates(3)
    scores[1] = [0.1, 0.8, 0.2, 0.9]
    scores[2, 0] = 0.99
    numbers = dataclasses.replace(NUMBERS, single=(1, 2, 3), stability=None)
    chosen = choose_candidates(logits, scores, numbers, multimask=False)
    np.testing.assert_array_equal(chosen.logits, np.stack([logits[0, 2], logits[1, 3], logits[2, 2]])[:, None])
    np.testing.assert_array_equal(chosen.scores, np.float32([[0.9], [0.9], [0.9]]))


def test_an_unstable_single_mask_gives_way_to_the_best() -> None:
    logits, scores = candidates()
    logits = logits.copy()
    logits[1, 0] = -0.01  # above -delta everywhere, above +delta nowhere: stability 0
    before = logits.copy()
    chosen = choose_candidates(logits, scores, NUMBERS, multimask=False)
    np.testing.assert_array_equal(chosen.logits[0], logits[0, :1])
    np.testing.assert_array_equal(chosen.logits[1], logits[1, 2:3])
    np.testing.assert_allclose(chosen.scores, [[0.1], [0.9]])
    np.testing.assert_array_equal(logits, before)  # the caller's array is not touched


def test_without_a_rule_an_unstable_mask_stays() -> None:
    logits, scores = candidates()
    numbers = dataclasses.replace(NUMBERS, stability=None)
    chosen = choose_candidates(logits * np.float32(0), scores, numbers, multimask=False)
    assert chosen.scores.tolist() == scores[:, :1].tolist()


@pytest.mark.parametrize(
    ("multimask", "single", "wanted"),
    [(True, (0,), [0.9, 0.8]), (False, (0,), [0.1, 0.95]), (False, (1, 2), [0.9, 0.8])],
)
def test_the_hq_mask_has_the_score_of_what_was_asked_for(
    multimask: bool, single: tuple[int, ...], wanted: list[float]
) -> None:
    planes = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 1, 8, 8) / 1000  # unstable: no rule gives way here
    scores = np.array([[0.1, 0.5, 0.9, 0.7], [0.95, 0.8, 0.3, 0.7]], np.float32)
    numbers = dataclasses.replace(NUMBERS, single=single)
    chosen = hq_candidates(planes, scores, numbers, multimask=multimask)
    np.testing.assert_array_equal(chosen.logits, planes)
    np.testing.assert_array_equal(chosen.scores, np.array(wanted, np.float32)[:, None])


def test_stability_scores() -> None:
    logits = np.full((1, 3, 2, 5), -1, np.float32)
    logits[0, 0, 0] = 1  # 5 of 5
    logits[0, 1, 0] = [1, 1, 1, 0, 0]  # 3 of 5
    np.testing.assert_allclose(stability_scores(logits, 0.05), [[1.0, 0.6, 1.0]])  # nothing at all counts as stable
    np.testing.assert_allclose(stability_scores(logits, 0.05, threshold=5), [[1, 1, 1]])


def clean_one(mask_logits: np.ndarray, holes: float, sprinkles: float, threshold: float) -> np.ndarray:
    """The official semantics, spelled out with scipy."""
    result = mask_logits.copy()
    for region, most, value in (
        (mask_logits <= threshold, holes, threshold + 10),
        (mask_logits > threshold, sprinkles, threshold - 10),
    ):
        labels, count = ndimage.label(region, np.ones((3, 3)))
        for k in range(1, count + 1):
            if most > 0 and (labels == k).sum() <= most:
                result[labels == k] = value
    return result


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 1, 7, 7), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])),
    st.sampled_from([0, 1, 4, 100]),
    st.sampled_from([0, 1, 4, 100]),
    st.sampled_from([0.0, 1.0]),
)
def test_cleaning_is_the_official_one(logits: np.ndarray, holes: int, sprinkles: int, threshold: float) -> None:
    cleaned = clean_masks(logits, fill_hole_area=holes, remove_sprinkle_area=sprinkles, threshold=threshold)
    for one, expected in zip(cleaned[:, 0], logits[:, 0], strict=True):
        np.testing.assert_array_equal(one, clean_one(expected, holes, sprinkles, threshold))


def test_fill_and_remove() -> None:
    logits = np.full((1, 1, 6, 6), -1, np.float32)
    logits[0, 0, 1:4, 1:4] = 1
    logits[0, 0, 2, 2] = -1  # a hole
    logits[0, 0, 5, 5] = 1  # a speck
    assert fill_holes(logits, 1)[0, 0, 2, 2] == 10
    assert remove_sprinkles(logits, 1)[0, 0, 5, 5] == -10
    assert (fill_holes(logits, 1) != logits).sum() == (remove_sprinkles(logits, 1) != logits).sum() == 1
    assert clean_masks(logits) is logits


@pytest.mark.parametrize("hw", [(1, 1), (17, 200), (45, 80)])
def test_upscaling_is_torchs(hw: tuple[int, int]) -> None:
    logits = RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(logits), size=hw, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upscale_logits(logits, hw), expected.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(binary_masks(logits, hw), upscale_logits(logits, hw) > 0)


@pytest.mark.parametrize("hw", [(48, 64), (64, 20), (3, 100)])
def test_padded_frames_are_cropped_first(hw: tuple[int, int]) -> None:
    """SAM: low-res -> input size -> crop the padding -> picture."""
    logits = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    frame = Frame(hw, PADDED)
    square = functional.interpolate(torch.from_numpy(logits), size=(32, 32), mode="bilinear", align_corners=False)
    content = square[..., : frame.content_hw[0], : frame.content_hw[1]]
    expected = functional.interpolate(content, size=hw, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upscale_logits(logits, hw, frame), expected.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(binary_masks(logits, hw, 0.2, frame), upscale_logits(logits, hw, frame) > 0.2)


def test_slices_of_the_decoders_output_are_taken_as_they_are() -> None:
    logits = RNG.standard_normal((3, 4, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(binary_masks(logits[:, 1:], (40, 40)), binary_masks(logits[:, 1:].copy(), (40, 40)))
