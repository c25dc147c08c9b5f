"""Areas, runs and boxes of masks against the planes they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samrt.automatic import pieces
from samrt.automatic.grid import Grid
from samrt.automatic.outlines import (
    areas_from_turns,
    boxes_from_turns,
    count_above,
    counts_from_turns,
    find_turns,
    stability_scores,
    turns_from_counts,
)
from samrt.masks import upscale_logits
from samrt.numbers import ImageNumbers
from samrt.rle import count_runs
from samrt.transforms import Frame

RNG = np.random.default_rng(0)
INPUT, MASK = 64, 16
SIZES = [(1, 1), (48, 64), (7, 300), (300, 7), (13, 9), (64, 64), (16, 16), (130, 211)]


def frame(hw: tuple[int, int], resize: str = "stretch", side: int = INPUT) -> Frame:
    return Frame(hw, ImageNumbers((side, side), (0.5, 0.5, 0.5), (1, 1, 1), resize, True))  # type: ignore[arg-type]


def blobs(count: int, side: int = MASK) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float32)
    centre, radius = RNG.uniform(0, side, (count, 2)), RNG.uniform(side / 20, side / 2, count)
    return np.stack(
        [r - np.hypot(y - cy, x - cx) + np.sin(x * 25 / side) for (cy, cx), r in zip(centre, radius, strict=True)]
    ).astype(np.float32)


PLANES = {
    "blobs": blobs(9),
    "noise": RNG.standard_normal((3, MASK, MASK)).astype(np.float32),
    "flat": np.zeros((2, MASK, MASK), np.float32),
    "full": np.ones((2, MASK, MASK), np.float32),
    "steps": np.where(blobs(4) > 0, np.float32(20), np.float32(-20)),
    "nearly": blobs(4) * np.float32(1e-6) + np.float32(1),
    "none": np.zeros((0, MASK, MASK), np.float32),
}


def check(planes: np.ndarray, place: Frame, level: float) -> None:
    """Everything that is read from the pieces, against the resized plane; in a picture of its own and as part of one."""
    hw, grid = place.image_hw, Grid.plan(place, planes.shape[1:])
    masks = upscale_logits(planes[None], hw, place)[0] > np.float32(level)
    np.testing.assert_array_equal(count_above(planes, grid, level), masks.sum((1, 2)))
    for origin, image_hw in (((0, 0), hw), ((5, 8), (hw[0] + 13, hw[1] + 9)), ((0, 3), (hw[0] + 3, hw[1]))):
        full = np.zeros((len(planes), *image_hw), np.bool_)
        full[:, origin[1] : origin[1] + hw[0], origin[0] : origin[0] + hw[1]] = masks
        turns = find_turns(planes, grid, level, origin, image_hw)
        boxes, areas = boxes_from_turns(turns, image_hw), areas_from_turns(turns)
        assert len(turns) == len(boxes) == len(areas) == len(planes)
        for mask, one, box, area in zip(full, turns, boxes, areas, strict=True):
            counts = count_runs(mask)
            np.testing.assert_array_equal(counts_from_turns(one, mask.size), counts)
            np.testing.assert_array_equal(turns_from_counts(counts), one)
            rows, columns = np.nonzero(mask)
            around = [columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
            assert box.tolist() == around
            assert area == mask.sum()


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("resize", ["stretch", "longest_side"])
@pytest.mark.parametrize("kind", PLANES)
def test_pieces_are_the_mask(kind: str, resize: str, hw: tuple[int, int]) -> None:
    for level in (0.0, 1.0, -0.7):
        check(PLANES[kind], frame(hw, resize), level)


@pytest.mark.parametrize("side", [16, 40, 50, 200])
def test_an_input_of_any_size(side: int) -> None:
    """Tiles do not have to fit: 1, 2.5, 3.1 and 12.5 lines of the input to a sample."""
    for hw in ((31, 64), (90, 41)):
        check(PLANES["blobs"], frame(hw, "longest_side", side), 0.0)


awkward = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1.0, np.float32(1.0000001), 3.4e38, -3.4e38, np.inf, -np.inf, np.nan]),
    st.floats(-32, 32, width=32),
    st.floats(1 - 2**-17, 1 + 2**-17, width=32),
)


@settings(max_examples=300, deadline=None)
@given(
    planes=hnp.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)), elements=awkward),
    hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from(["stretch", "longest_side"]),
    level=st.sampled_from([0.0, 1.0, -1.0, 1e-30, 31.9]),
    dense_fraction=st.sampled_from([-1.0, 0.3, 0.999]),
)
def test_exact_whatever_the_values(
    planes: np.ndarray, hw: tuple[int, int], resize: str, level: float, dense_fraction: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_DENSE_FRACTION", dense_fraction)
        check(planes, frame(hw, resize, 12), level)


@settings(max_examples=100, deadline=None)
@given(
    start=st.floats(-20, 20, width=32),
    slope=st.floats(-2, 2, width=32),
    tilt=st.floats(-(2**-13), 2**-13, width=32),
    height=st.integers(30, 700),
)
def test_crossings_next_to_pixels(start: float, slope: float, tilt: float, height: int) -> None:
    """Ramps whose crossing falls on a pixel or a hair beside it, between samples that lie far apart in pixels."""
    y, x = np.mgrid[:9, :9].astype(np.float32)
    planes = (np.float32(start) + np.float32(slope) * y + np.float32(tilt) * x)[None]
    on_pixel = float(upscale_logits(planes[None], (height, 17))[0, 0, height // 2, 3])
    check(planes, frame((height, 17)), on_pixel)


def test_many_masks_in_one_go() -> None:
    """More planes, cells and columns than are looked at together, and positions that need 64 bits."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_PLANES_BYTES", 4000), ("_COLUMNS_AT_ONCE", 64)):
            patch.setattr(pieces, name, value)
        check(blobs(9), frame((48, 64)), 0.0)
        check(blobs(9), frame((48, 64), "longest_side"), 0.0)
    grid = Grid.plan(frame((48, 64)), (MASK, MASK))
    near, far = (find_turns(PLANES["blobs"], grid, 0.0, (x0, 0), (48, 50_000_000)) for x0 in (0, 49_999_936))
    for one, other in zip(near, far, strict=True):
        np.testing.assert_array_equal(one + 49_999_936 * 48, other)


def test_stability_is_counted_in_pixels_of_the_picture() -> None:
    place, planes = frame((100, 75)), PLANES["blobs"]
    full = upscale_logits(planes[None], (100, 75), place)[0]
    inner, outer = ((full > level).sum((1, 2)).astype(np.float32) for level in (1.5, -0.5))
    scores = stability_scores(planes, Grid.plan(place, (MASK, MASK)), 0.5, 1.0)
    np.testing.assert_array_equal(scores, inner / outer)
    assert 0 < np.median(scores) < scores.max() < 1


def test_a_mask_with_nothing_above_has_no_stability() -> None:
    planes = np.full((1, MASK, MASK), -5, np.float32)
    assert stability_scores(planes, Grid.plan(frame((9, 9)), (MASK, MASK)), 0.0, 1.0).tolist() == [0.0]
