"""Prompts that choose among masks, against masks as pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samrt.proposals import select_box, select_boxes, select_by, select_hit, select_points
from samrt.segments import Segments
from samrt_engines.errors import ImageError, InputError, PromptError

HEIGHT, WIDTH = 30, 41


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """A whole, a part of it, a part of that, something apart, a ragged one over all, and the last column."""
    random = np.random.default_rng(0)
    made = np.zeros((6, HEIGHT, WIDTH), bool)
    made[0, 2:28, 3:30] = True
    made[1, 5:20, 5:20] = True
    made[2, 8:12, 8:14] = True
    made[3, 10:25, 32:40] = True
    made[4] = random.random((HEIGHT, WIDTH)) > 0.5
    made[5, :, -1] = True
    return made


@pytest.fixture(scope="module")
def segments(masks: np.ndarray) -> Segments:
    """The same masks."""
    return Segments.from_masks(masks, np.linspace(0.9, 0.4, len(masks)))


def test_a_part_is_cut_out_of_the_whole_and_put_back(segments: Segments, masks: np.ndarray) -> None:
    some = segments[np.array([2, 0, 1])]  # any order: areas decide
    np.testing.assert_array_equal(select_points(some, [[4, 3]]), masks[0])
    # The whole is under both points, and the last of them decides about it.
    np.testing.assert_array_equal(select_points(some, [[6, 6], [4, 3]], [0, 1]), masks[0] & ~masks[1])
    assert not select_points(some, [[4, 3], [6, 6]], [1, 0]).any()
    np.testing.assert_array_equal(
        select_points(some, [[9, 9], [6, 6], [4, 3]], [1, 0, 1]), masks[0] & ~masks[1] | masks[2]
    )
    assert not select_points(some, [[0, 0]]).any()


def test_points_lie_in_the_pixels_that_masks_say(segments: Segments, masks: np.ndarray) -> None:
    for y in range(HEIGHT):
        for x in range(0, WIDTH, 3):
            hit = select_hit(segments, [x + 0.9, y])
            np.testing.assert_array_equal(hit.scores, segments.scores[masks[:, y, x]])
    edge = select_hit(segments[5], [WIDTH - 1, HEIGHT - 1])
    assert len(edge) == 1


def test_each_hit_is_kept_for_itself(segments: Segments) -> None:
    some = segments[:4]
    np.testing.assert_array_equal(select_hit(some, [[9, 9], [35, 15]]).scores, some.scores)
    np.testing.assert_array_equal(select_hit(some, [[9, 9], [6, 6]], [1, 0]).scores, some.scores[2:3])
    assert len(select_hit(some, [[0, 0]])) == 0
    assert len(select_hit(some, [[9, 9]], [0])) == 0


@pytest.mark.parametrize(
    "box", [[0, 0, 41, 30], [4, 4, 21, 21], [8, 8, 14, 12], [30, 8, 41, 26], [39.6, -5, 90, 80], [17, 3, 18, 29]]
)
def test_the_box_decides_by_iou(segments: Segments, masks: np.ndarray, box: list[float]) -> None:
    x0, y0, x1, y1 = np.clip(np.rint(box), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(int)
    area = np.zeros((HEIGHT, WIDTH), bool)
    area[y0:y1, x0:x1] = True
    iou = (masks & area).sum(axis=(1, 2)) / (masks | area).sum(axis=(1, 2))
    np.testing.assert_array_equal(select_box(segments, box), masks[iou.argmax()])
    found = select_boxes(segments, [box])
    assert found.prompt_boxes is not None
    np.testing.assert_array_equal(found.prompt_boxes, [[x0, y0, x1, y1]])


def test_a_box_within_a_pixel_is_that_pixel(segments: Segments) -> None:
    found = select_boxes(segments, [[8.1, 9.2, 8.3, 9.4], [40.6, 2.6, 40.9, 3.4], [40.6, 28.9, 60, 70]])
    assert found.prompt_boxes is not None
    np.testing.assert_array_equal(found.prompt_boxes, [[8, 9, 9, 10], [40, 2, 41, 3], [40, 29, 41, 30]])


def test_boxes_that_touch_nothing_have_no_answer(segments: Segments, masks: np.ndarray) -> None:
    some = segments[:3]
    found = select_boxes(some, [[8, 8, 14, 12], [31, 0, 41, 30], [3, 2, 30, 28]])
    assert found.prompt_boxes is not None
    np.testing.assert_array_equal(found.prompt_boxes, [[8, 8, 14, 12], [3, 2, 30, 28]])
    np.testing.assert_array_equal(found.masks(), masks[[2, 0]])
    assert not select_box(some, [31, 0, 41, 30]).any()
    assert not select_box(segments[:0], [1, 1, 5, 5]).any()
    assert len(select_hit(segments[:0], [1, 1])) == 0
    assert not select_points(segments[:0], [1, 1]).any()


def test_a_function_of_pictures_orders_masks(segments: Segments, masks: np.ndarray) -> None:
    picture = np.random.default_rng(1).integers(1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    seen: list[np.ndarray] = []

    def score(crops: list[np.ndarray]) -> list[float]:
        seen.extend(crops)
        return [-float((crop > 0).any(axis=2).sum()) for crop in crops]  # the smallest is best

    ordered = select_by(segments, picture, score, least_px=25)
    large = [index for index in range(6) if masks[index].sum() >= 25]
    assert large == [0, 1, 3, 4, 5]
    assert masks[2].sum() == 24
    np.testing.assert_array_equal(ordered.areas, sorted(masks[index].sum() for index in large))
    np.testing.assert_array_equal(seen[1], picture[5:20, 5:20])
    np.testing.assert_array_equal(seen[3], picture * masks[4][..., None])


def test_pictures_come_in_parts(masks: np.ndarray) -> None:
    many = Segments.from_masks(np.repeat(masks[:1], 35, axis=0), np.arange(35))
    sizes: list[int] = []

    def score(crops: list[np.ndarray]) -> np.ndarray:
        sizes.append(len(crops))
        return np.arange(len(crops)) + 100 * len(sizes)

    ordered = select_by(many, np.zeros((HEIGHT, WIDTH, 3), np.uint8), score)
    assert sizes == [16, 16, 3]
    np.testing.assert_array_equal(ordered.scores, [34, 33, 32, *range(31, 15, -1), *range(15, -1, -1)])
    assert len(select_by(many[:0], np.zeros((HEIGHT, WIDTH, 3), np.uint8), score)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: select_points(s, [[41, 3]]), r"a point outside the picture .*expected: 0 <= x < 41, 0 <= y < 30"),
        (lambda s: select_points(s, [[np.nan, 3]]), "a point outside the picture"),
        (lambda s: select_points(s, [[1, 3]], [2]), r"unknown label .*got: \[2\]"),
        (lambda s: select_hit(s, [[1, 3]], [1, 1]), r"do not belong together .*labels \(2,\)"),
        (lambda s: select_hit(s, np.zeros((0, 2))), "do not belong together"),
        (lambda s: select_box(s, [[1, 1, 3, 3]]), r"not a box .*got: an array of shape \(1, 4\)"),
        (lambda s: select_boxes(s, [5, 5, 5, 9]), r"a box has no area in the picture .*got: box 0"),
        (lambda s: select_boxes(s, [50, 5, 60, 9]), "a box has no area"),
        (lambda s: select_boxes(s, [np.inf, 5, 60, 9]), r"not boxes .*expected: finite \(P, 4\)"),
    ],
)
def test_prompts_that_are_none(segments: Segments, call: Callable[[Segments], object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        call(segments)


def test_scores_that_are_none(segments: Segments) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ImageError, match=r"the masks are of another picture .*got: 41 x 29 pixels"):
        select_by(segments, picture[1:], lambda crops: np.zeros(len(crops)))
    with pytest.raises(InputError, match=r"no score for each picture .*expected: \(5,\) finite"):
        select_by(segments, picture, lambda crops: np.zeros(2), least_px=25)
    with pytest.raises(InputError, match="numbers not finite"):
        select_by(segments, picture, lambda crops: np.full(len(crops), np.nan), least_px=25)
