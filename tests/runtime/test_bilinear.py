import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from samrt import bilinear
from samrt.bilinear import plan_axis, resize_planes, threshold_planes

SIZES = [(1, 1), (40, 300), (300, 40), (16, 16), (17, 200), (200, 17), (45, 80), (7, 5), (64, 128), (15, 16)]
RNG = np.random.default_rng(0)


def blobs(height: int = 64, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centres = [(20, 30, 15), (40, 10, 8), (32, 32, 40)]
    return np.stack([r - np.hypot(y - cy, x - cx) for cy, cx, r in centres]).astype(np.float32)


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("source", [(16, 16), (1, 1), (9, 31)])
def test_resize_is_torchs(source: tuple[int, int], hw: tuple[int, int]) -> None:
    planes = RNG.standard_normal((3, *source)).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(planes)[None], size=hw, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resize_planes(planes, hw), expected.numpy(), atol=1e-5, rtol=0)


def test_crop_is_the_top_left_part() -> None:
    planes = RNG.standard_normal((2, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(
        resize_planes(planes, (40, 40), (31, 23)), resize_planes(planes, (40, 40))[:, :31, :23]
    )


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("kind", ["blobs", "noise", "flat", "steps"])
def test_threshold_is_the_threshold_of_the_resize(kind: str, hw: tuple[int, int]) -> None:
    planes = {
        "blobs": blobs(),
        "noise": RNG.standard_normal((2, 64, 64)).astype(np.float32),
        "flat": np.zeros((2, 64, 64), np.float32),
        "steps": np.where(blobs() > 0, np.float32(32), np.float32(-32)),
    }[kind]
    for threshold in (0.0, 0.3, -7.5):
        np.testing.assert_array_equal(threshold_planes(planes, hw, threshold), resize_planes(planes, hw) > threshold)


# Values that make ties, near ties, cancellation and specials likely.
awkward = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1.0, np.float32(1.0000001), 3.4e38, -3.4e38, np.inf, -np.inf, np.nan]),
    st.floats(-32, 32, width=32),
)


@settings(max_examples=300, deadline=None)
@given(
    planes=hnp.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)), elements=awkward),
    hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    threshold=st.sampled_from([0.0, 1.0, -1.0, 1e-30, 31.9]),
    dense_fraction=st.sampled_from([-1.0, 0.06, 0.999]),
    many_runs=st.sampled_from([0, 2000]),
)
def test_threshold_is_exact_whatever_the_values(
    planes: np.ndarray, hw: tuple[int, int], threshold: float, dense_fraction: float, many_runs: int
) -> None:
    """Bit for bit, through each of the ways a plane may take: cell by cell, densely, painted by runs or by rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bilinear, "_DENSE_FRACTION", dense_fraction)
        patch.setattr(bilinear, "_MANY_RUNS", many_runs)
        result = threshold_planes(planes, hw, threshold)
    np.testing.assert_array_equal(result, resize_planes(planes, hw) > np.float32(threshold))


@settings(max_examples=200, deadline=None)
@given(
    level=st.floats(-32, 32, width=32),
    steps=hnp.arrays(np.int8, (4, 4), elements=st.integers(-3, 3)),
    hw=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_threshold_is_exact_within_an_ulp_of_it(level: float, steps: np.ndarray, hw: tuple[int, int]) -> None:
    """Samples a few units in the last place around the threshold, where rounding decides."""
    planes = (np.float32(level) + steps * np.spacing(np.float32(level)))[None].astype(np.float32)
    np.testing.assert_array_equal(threshold_planes(planes, hw, level), resize_planes(planes, hw) > np.float32(level))


@settings(max_examples=150, deadline=None)
@given(source=st.tuples(*[st.integers(8, 48)] * 2), hw=st.tuples(*[st.integers(1, 120)] * 2), seed=st.integers(0, 9))
def test_threshold_of_objects_at_any_pair_of_sizes(source: tuple[int, int], hw: tuple[int, int], seed: int) -> None:
    """Enlarged one way and reduced the other: cells with many pixels, with one, with none."""
    planes = blobs(*source) + np.random.default_rng(seed).normal(0, 0.3, source).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bilinear, "_DENSE_FRACTION", 0.999)
        result = threshold_planes(planes, hw, 0.0)
    np.testing.assert_array_equal(result, resize_planes(planes, hw) > 0)


def test_object_masks_touch_few_cells() -> None:
    """What makes it quick: on an object, nearly all cells have one answer."""
    _, mixed = bilinear.classify_cells(blobs(256, 256), 0.0)
    assert mixed.mean() < 0.02


def test_no_plane_and_shared_tables() -> None:
    assert threshold_planes(np.zeros((0, 4, 4), np.float32), (8, 8), 0.0).shape == (0, 8, 8)
    axis = plan_axis(4, 9)
    assert axis is plan_axis(4, 9)
    with pytest.raises(ValueError, match="read-only"):
        axis.weight[0] = 1
