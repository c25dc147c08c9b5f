"""Non-maximum suppression against a loop over pairs."""

from __future__ import annotations

import numpy as np
import pytest

from samrt.nms import nms
from samrt_engines.errors import InputError


def slow_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """The definition, one pair at a time, in the boxes' float type."""
    zero = boxes.dtype.type(0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    kept: list[int] = []
    for one in sorted(range(len(boxes)), key=lambda index: -float(scores[index])):  # stable
        for other in kept:
            width = max(zero, min(boxes[one][2], boxes[other][2]) - max(boxes[one][0], boxes[other][0]))
            height = max(zero, min(boxes[one][3], boxes[other][3]) - max(boxes[one][1], boxes[other][1]))
            shared = width * height
            union = areas[other] + areas[one] - shared
            if union != 0 and float(shared / union) > threshold:
                break
        else:
            kept.append(one)
    return kept


def random_boxes(count: int, seed: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 100, (count, 2))
    size = random.uniform(1, 60, (count, 2)) * (random.random((count, 1)) > 0.1)  # a tenth has no area
    scores = np.round(random.random(count), 2)  # many are equal
    return np.concatenate((corner, corner + size), axis=1).astype(dtype), scores.astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("count", "dtype"), [(1, np.float32), (90, np.float64), (600, np.float32)])
def test_it_is_the_definition(count: int, dtype: type, threshold: float) -> None:
    boxes, scores = random_boxes(count, count, dtype)
    expected = slow_nms(boxes, scores, threshold)
    assert nms(boxes, scores, threshold).tolist() == expected
    if count > 1 and threshold < 1:
        assert 1 < len(expected) < count


def test_chains_over_the_edges_of_blocks() -> None:
    # Each box overlaps the next one: every second one stays, however the work is cut into parts.
    left = np.arange(1001, dtype=np.float32) * 4
    boxes = np.stack((left, np.zeros(1001), left + 10, np.ones(1001)), axis=1).astype(np.float32)
    assert nms(boxes, -left, 0.4).tolist() == list(range(0, 1001, 2))
    assert nms(boxes, left, 0.4).tolist() == list(range(1000, -1, -2))
    assert nms(boxes, left, 0.43).tolist() == list(range(1000, -1, -1))  # 6 / 14


def test_the_threshold_is_compared_as_a_double() -> None:
    # 3 / 10 in float32 is 0.30000001192...: above the double 0.3, equal to its float32.
    boxes = np.array([[0, 0, 10, 1], [0, 0, 3, 1]], np.float32)
    assert float(np.float32(3) / np.float32(10)) > 0.3
    assert nms(boxes, np.array([1, 0.5], np.float32), 0.3).tolist() == [0]
    assert nms(boxes, np.array([1, 0.5], np.float32), float(np.float32(0.3))).tolist() == [0, 1]


def test_equal_scores_go_in_the_order_given() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], np.float32)
    assert nms(boxes, np.ones(3, np.float32), 0.5).tolist() == [0, 2]
    assert nms(boxes[::-1], np.ones(3, np.float32), 0.5).tolist() == [0, 1]


def test_no_boxes() -> None:
    assert nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5).shape == (0,)


@pytest.mark.parametrize(("boxes", "scores"), [((3, 4), (2,)), ((3, 5), (3,)), ((4,), (4,))])
def test_arrays_that_do_not_belong_together(boxes: tuple[int, ...], scores: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"boxes and scores do not belong together .*expected: boxes \(M, 4\)"):
        nms(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), 0.5)
