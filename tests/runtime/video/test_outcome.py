"""Choosing, filling, and freeing of overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samrt.numbers import ImageNumbers, MaskNumbers, Stability
from samrt.transforms import Frame
from samrt.video.mask_prompts import fit_masks, mask_logits
from samrt.video.outcome import choose_masks, fill_small_holes, video_logits, video_masks

MASKS = MaskNumbers(0.0, 32.0, (4, 4), (0,), (1, 2, 3), Stability(0.05, 0.98))


def image_numbers(resize: str) -> ImageNumbers:
    return ImageNumbers((32, 32), (0.5,) * 3, (0.5,) * 3, resize, True)  # type: ignore[arg-type]


def test_the_pointer_goes_with_the_mask_only_where_there_were_several() -> None:
    logits = np.stack([np.full((4, 4, 4), value, np.float32) for value in (1, 2)])
    logits += np.arange(4, dtype=np.float32)[None, :, None, None]
    scores = np.array([[0.9, 0.2, 0.8, 0.3], [0.1, 0.4, 0.3, 0.6]], np.float32)
    chosen, score, token = choose_masks(logits, scores, MASKS, multimask=True)
    assert token.tolist() == [2, 3]
    np.testing.assert_array_equal(chosen[:, 0, 0], [3, 5])
    np.testing.assert_allclose(score, [0.8, 0.6])
    chosen, score, token = choose_masks(logits, scores, MASKS, multimask=False)
    assert token.tolist() == [0, 0]
    np.testing.assert_array_equal(chosen[:, 0, 0], [1, 2])
    # An unstable single mask gives way to the best of the others; its token still makes the pointer.
    logits[1, 0] = np.linspace(-0.06, 0.06, 16).reshape(4, 4)
    chosen, score, token = choose_masks(logits, scores, MASKS, multimask=False)
    assert token.tolist() == [0, 0]
    np.testing.assert_array_equal(chosen[:, 0, 0], [1, 5])
    np.testing.assert_allclose(score, [0.9, 0.6])


def test_small_holes_become_a_tenth() -> None:
    logits = np.full((2, 12, 12), 3.0, np.float32)
    logits[0, 2:4, 2:4] = -1  # 4 pixels
    logits[0, 6:9, 6:9] = -1  # 9
    logits[1, 5, 5] = 0  # 0 is not the object
    filled = fill_small_holes(logits, 8)
    assert (filled[0, 2:4, 2:4] == np.float32(0.1)).all()
    assert (filled[0, 6:9, 6:9] == -1).all()
    assert filled[1, 5, 5] == np.float32(0.1)
    assert fill_small_holes(logits, 0) is logits
    assert (filled != logits).sum() == 5


@pytest.mark.parametrize("resize", ["stretch", "longest_side"])
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    hw=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 1000),
    non_overlap=st.booleans(),
)
def test_masks_are_the_logits_above_the_threshold(
    resize: str, count: int, hw: tuple[int, int], seed: int, non_overlap: bool
) -> None:
    """Pixel for pixel, also where objects overlap, and where they tie."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1, 2, (count, 8, 8)).round(1 if seed % 2 else 6).astype(np.float32)
    if count > 1 and seed % 3 == 0:
        logits[-1] = logits[0]
    frame = Frame(hw, image_numbers(resize))
    large = video_logits(logits, frame, non_overlap=non_overlap)
    masks = video_masks(logits, frame, 0.0, non_overlap=non_overlap)
    np.testing.assert_array_equal(masks, large > 0)
    if non_overlap:
        assert masks.sum(axis=0).max() <= 1
        np.testing.assert_array_equal(masks.any(axis=0), (video_logits(logits, frame, non_overlap=False) > 0).any(0))


def test_a_mask_is_resized_with_antialias_and_cut_at_a_half() -> None:
    """Against weights written down: twice as large, so the filter has half-widths of two pixels."""
    mask = np.zeros((64, 64), bool)
    mask[10:41, 20:51] = True
    frame = Frame((64, 64), image_numbers("stretch"))
    fitted = fit_masks([mask], frame)
    assert set(np.unique(fitted)) == {0, 1}
    axis = np.zeros((32, 64))
    for out in range(32):
        for source in range(64):
            axis[out, source] = max(0.0, 1 - abs(source + 0.5 - 2 * out - 1) / 2)
    axis /= axis.sum(1, keepdims=True)
    expected = axis @ mask @ axis.T
    np.testing.assert_array_equal(fitted[0], expected >= 0.5)
    low = mask_logits(fitted, (16, 16))
    small = axis[:16, :32] / axis[:16, :32].sum(1, keepdims=True)
    np.testing.assert_allclose(low[0], small @ (fitted[0] * 20 - 10) @ small.T, atol=1e-4)


def test_a_mask_lies_where_the_picture_lies() -> None:
    """A wide picture at the top of a padded input: the padding is not the object."""
    fitted = fit_masks([np.ones((20, 40), bool)], Frame((20, 40), image_numbers("longest_side")))
    assert fitted[0, :16].all()
    assert not fitted[0, 16:].any()
