import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from samrt.components import find_runs, label_components, small_components

EIGHT = np.ones((3, 3), int)


def test_runs_of_a_row() -> None:
    runs = find_runs(np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], bool))
    assert runs.row.tolist() == [0, 0, 2]
    assert runs.start.tolist() == [0, 3, 1]
    assert runs.stop.tolist() == [2, 4, 4]


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_labels_are_those_of_scipy(mask: np.ndarray) -> None:
    labels, areas = label_components(mask)
    expected, count = ndimage.label(mask, EIGHT)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(areas, np.bincount(expected.ravel(), minlength=count + 1))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_labels_of_noise(share: float) -> None:
    mask = np.random.default_rng(0).random((64, 96)) < share
    np.testing.assert_array_equal(label_components(mask)[0], ndimage.label(mask, EIGHT)[0])


def test_labels_of_a_spiral() -> None:
    """The worst case of label propagation: one component that winds through the whole mask."""
    mask = np.zeros((41, 41), bool)
    y = x = 20
    for length in range(1, 40):
        dy, dx = [(0, 1), (1, 0), (0, -1), (-1, 0)][length % 4]
        for _ in range(length // 2 * 2):
            if 0 <= y < 41 and 0 <= x < 41:
                mask[y, x] = True
            y, x = y + dy, x + dx
    np.testing.assert_array_equal(label_components(mask)[0], ndimage.label(mask, EIGHT)[0])


def test_masks_of_a_stack_do_not_touch() -> None:
    masks = np.ones((3, 4, 5), bool)
    labels, areas = label_components(masks)
    assert [np.unique(one).tolist() for one in labels] == [[1], [2], [3]]
    assert areas.tolist() == [0, 20, 20, 20]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (0, 4, 4)])
def test_empty_masks(shape: tuple[int, ...]) -> None:
    labels, areas = label_components(np.zeros(shape, bool))
    assert labels.shape == shape
    assert areas.tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, (2, 9, 9)), st.integers(0, 12))
def test_small_components(masks: np.ndarray, most: int) -> None:
    small = small_components(masks, most)
    for mask, found in zip(masks, small, strict=True):
        labels, count = ndimage.label(mask, EIGHT)
        kept = [k for k in range(1, count + 1) if (labels == k).sum() <= most]
        np.testing.assert_array_equal(found, np.isin(labels, kept))
