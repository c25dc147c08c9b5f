"""Small regions against scipy's components of the plane."""

import numpy as np
import pytest
from scipy import ndimage

from samrt.automatic.outlines import counts_from_turns, turns_from_counts
from samrt.automatic.regions import clean_small_regions
from samrt.rle import count_runs, fill_runs

RNG = np.random.default_rng(0)


def cleaned(mask: np.ndarray, area: float) -> tuple[np.ndarray, bool]:
    turns, changed = clean_small_regions(turns_from_counts(count_runs(mask)), mask.shape, area)
    return fill_runs(counts_from_turns(turns, mask.size), mask.shape), changed


def reference(mask: np.ndarray, area: float) -> tuple[np.ndarray, bool]:
    changed = False
    for holes in (True, False):
        labels, count = ndimage.label(mask ^ holes, np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        small = np.flatnonzero(areas < area) + 1
        if not len(small):
            continue
        changed = True
        if holes:
            mask = mask | np.isin(labels, small)
        else:
            keep = np.setdiff1d(np.arange(1, count + 1), small)
            mask = np.isin(labels, keep if len(keep) else [1 + np.argmax(areas)])
    return mask, changed


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.98])
def test_random_masks(share: float) -> None:
    for _ in range(60):
        mask = RNG.random(tuple(RNG.integers(1, 14, 2))) < share
        area = int(RNG.integers(1, 30))
        ours, changed = cleaned(mask, area)
        theirs, expected = reference(mask, area)
        assert changed == expected
        if not np.array_equal(ours, theirs):  # several islands, all small and equally large: either may stay
            assert ours.sum() == theirs.sum() < area
            assert not (ours & ~(mask | theirs)).any()


def test_hole_and_island() -> None:
    mask = np.zeros((12, 10), np.bool_)
    mask[1:7, 1:7] = True
    mask[3:5, 3:5] = False  # a hole of 4
    mask[9:11, 8] = True  # an island of 2
    expected = np.zeros_like(mask)
    expected[1:7, 1:7] = True
    ours, changed = cleaned(mask, 5)
    np.testing.assert_array_equal(ours, expected)
    assert changed
    same, changed = cleaned(mask, 2)
    np.testing.assert_array_equal(same, mask)
    assert not changed


def test_corners_touch() -> None:
    mask = np.eye(6, dtype=np.bool_)
    ours, changed = cleaned(mask, 6)
    np.testing.assert_array_equal(ours, mask)
    assert not changed


def test_the_largest_of_small_islands_stays() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[2, 2:4] = mask[8, 5:10] = mask[15, 1] = True
    ours, changed = cleaned(mask, 100)
    assert changed
    assert np.argwhere(ours).tolist() == [[8, column] for column in range(5, 10)]


@pytest.mark.parametrize("value", [True, False])
def test_nothing_to_clean(value: bool) -> None:
    mask = np.full((5, 4), value)
    ours, changed = cleaned(mask, 20)
    np.testing.assert_array_equal(ours, mask)
    assert not changed
