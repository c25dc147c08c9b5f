import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samrt import PromptError, Prompts
from samrt.numbers import ImageNumbers, PromptNumbers
from samrt.prompts import to_tensors
from samrt.transforms import Frame

NUMBERS = PromptNumbers(0, 1, 2, 3, -1, "always", 8, (16, 16))
IMAGE = ImageNumbers((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "stretch", True)
FRAME = Frame((48, 64), IMAGE)
POINT, LABEL, BOX = [[16, 24]], [1], [8, 12, 32, 48]
MASK = np.arange(256, dtype=np.float32).reshape(16, 16)


def feeds(prompts: Prompts, **changes: Any) -> dict[str, np.ndarray]:
    return to_tensors(prompts, [FRAME], dataclasses.replace(NUMBERS, **changes))


def test_fields_are_brought_into_one_form() -> None:
    prompts = Prompts(points=POINT, labels=LABEL, boxes=BOX, masks=MASK)
    assert (prompts.points.shape, prompts.points.dtype) == ((1, 1, 2), np.float32)
    assert (prompts.labels.shape, prompts.labels.dtype) == ((1, 1), np.int32)
    assert (prompts.boxes.shape, prompts.boxes.dtype) == ((1, 4), np.float32)
    assert (prompts.masks.shape, prompts.masks.dtype) == ((1, 16, 16), np.float32)
    assert len(prompts) == 1
    assert len(Prompts(masks=np.zeros((5, 1, 16, 16)))) == 5
    assert len(Prompts(points=np.zeros((3, 2, 2)), labels=np.zeros((3, 2)))) == 3


def test_the_callers_arrays_are_not_kept() -> None:
    points = np.array([[1.0, 2.0]], np.float32)
    prompts = Prompts(points=points, labels=[1])
    points[:] = 7
    assert prompts.points.tolist() == [[[1, 2]]]


def test_points_become_input_pixels_with_a_padding_point() -> None:
    tensors = feeds(Prompts(points=[[16, 24], [64, 48]], labels=[1, 0]))
    assert tensors["point_coords"].tolist() == [[[8, 16], [32, 32], [0, 0]]]
    assert tensors["point_labels"].tolist() == [[1, 0, -1]]
    assert tensors["mask_input"].shape == (1, 1, 16, 16)
    assert not tensors["mask_input"].any()
    assert tensors["has_mask_input"].tolist() == [0]
    assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
        "point_coords": "float32",
        "point_labels": "int32",
        "mask_input": "float32",
        "has_mask_input": "float32",
    }


def test_a_box_is_two_points_before_the_others() -> None:
    tensors = feeds(Prompts(points=POINT, labels=LABEL, boxes=BOX))
    assert tensors["point_coords"].tolist() == [[[4, 8], [16, 32], [8, 16], [0, 0]]]
    assert tensors["point_labels"].tolist() == [[2, 3, 1, -1]]


def test_padding_without_box() -> None:
    assert feeds(Prompts(boxes=BOX), padding_point="without_box")["point_labels"].tolist() == [[2, 3]]
    assert feeds(Prompts(boxes=BOX))["point_labels"].tolist() == [[2, 3, -1]]
    points = Prompts(points=POINT, labels=LABEL)
    assert feeds(points, padding_point="without_box")["point_labels"].tolist() == [[1, -1]]


def test_padding_fills_up_to_the_most_points() -> None:
    points = Prompts(points=POINT, labels=LABEL, boxes=BOX)
    tensors = feeds(points, padding_point="fill", max_points=6)
    assert tensors["point_labels"].tolist() == [[2, 3, 1, -1, -1, -1]]
    assert tensors["point_coords"][0, 3:].tolist() == [[0, 0]] * 3
    full = Prompts(points=np.zeros((6, 2)), labels=np.ones(6))
    numbers = dataclasses.replace(NUMBERS, padding_point="fill", max_points=6)
    assert to_tensors(full, [FRAME], numbers, 6)["point_labels"].tolist() == [[1] * 6]
    with pytest.raises(PromptError, match="expected: at most 6 in all"):
        to_tensors(Prompts(points=np.zeros((7, 2)), labels=np.ones(7)), [FRAME], numbers, 6)


def test_what_a_model_does_not_have() -> None:
    with pytest.raises(
        PromptError, match=r"has no negative points \| got: label 0 \| expected: -1 padding, 1 positive, 2"
    ):
        feeds(Prompts(points=[[1, 1], [2, 2]], labels=[1, 0]), negative=None)
    assert feeds(Prompts(points=[[1, 1]], labels=[1]), negative=None)["point_labels"].tolist() == [[1, -1]]
    assert list(feeds(Prompts(points=POINT, labels=LABEL), mask_size_hw=None)) == ["point_coords", "point_labels"]
    with pytest.raises(PromptError, match=r"takes no mask prompts \| got: 1 masks"):
        feeds(Prompts(masks=MASK), mask_size_hw=None)


def test_a_mask_alone_has_no_points() -> None:
    tensors = feeds(Prompts(masks=MASK))
    assert tensors["point_coords"].shape == (1, 0, 2)
    assert tensors["point_labels"].shape == (1, 0)
    np.testing.assert_array_equal(tensors["mask_input"][0, 0], MASK)
    assert tensors["has_mask_input"].tolist() == [1]


def test_the_models_own_numbers_for_labels() -> None:
    prompts = Prompts(points=[[1, 1]] * 5, labels=[-1, 0, 1, 2, 3])
    numbers = {"negative": 5, "positive": 6, "box_top_left": 7, "box_bottom_right": 8, "padding": 9}
    assert feeds(prompts, **numbers)["point_labels"].tolist() == [[9, 5, 6, 7, 8, 9]]


def test_as_many_points_as_the_model_takes() -> None:
    prompts = Prompts(points=np.zeros((8, 2)), labels=np.ones(8))
    assert feeds(prompts)["point_labels"].shape == (1, 9)  # the padding point is not counted
    assert to_tensors(prompts, [FRAME], NUMBERS, 9)["point_labels"].shape == (1, 9)
    with pytest.raises(PromptError, match="expected: at most 7 in all"):
        to_tensors(prompts, [FRAME], NUMBERS, 8)


def test_each_prompt_in_its_own_picture() -> None:
    frames = [FRAME, Frame((480, 640), IMAGE)]
    tensors = to_tensors(Prompts(points=[[[16, 24]], [[160, 240]]], labels=[[1], [1]]), frames, NUMBERS)
    assert tensors["point_coords"][:, 0].tolist() == [[8, 16], [8, 16]]
    with pytest.raises(PromptError, match=r"point 0 of prompt 0 lies .* x in 0..64, y in 0..48"):
        to_tensors(Prompts(points=[[[160, 24]], [[160, 240]]], labels=[[1], [1]]), frames, NUMBERS)


def test_relative_coordinates() -> None:
    scaled = Prompts(points=[[0.5, 0.25]], labels=[1], boxes=[0, 0, 1, 1]).scaled(640, 480)
    assert scaled.points.tolist() == [[[320, 120]]]
    assert scaled.boxes.tolist() == [[0, 0, 640, 480]]


def test_a_pixel_outside_is_allowed() -> None:
    feeds(Prompts(points=[[-1, -1], [65, 49]], labels=[1, 0], boxes=[-1, 0, 65, 49]))
    feeds(Prompts(points=[[5, 5], [-500, 900]], labels=[1, -1]))  # the place of no point does not matter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [[65.5, 3]], "labels": [1]}, "point 0 of prompt 0 lies outside the picture | got: [65.5, 3] | "),
        (
            {"points": [[3, 3], [3, -2]], "labels": [1, 0]},
            "expected: x in 0..64, y in 0..48 (original pixels) | fix: clip it: [3, 0]",
        ),
        ({"boxes": [[0, 0, 5, 5], [0, 0, 90, 48]]}, "box 1 lies outside the picture | got: [0, 0, 90, 48]"),
        ({"points": np.zeros((7, 2)), "labels": np.ones(7), "boxes": BOX}, "got: 7 points and 2 corners of the box | "),
        ({"points": np.zeros((9, 2)), "labels": np.ones(9)}, "got: 9 points | expected: at most 8 in all | fix: give"),
        ({"masks": np.zeros((48, 64))}, "got: 48 x 64 | expected: 16 x 16 low-res logits | fix: pass result.logits"),
    ],
)
def test_prompts_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        feeds(Prompts(**arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "there is no prompt | got: no points, boxes or masks | fix: Prompts(points=[[x, y]], labels=[1])"),
        ({"points": POINT}, "points without labels"),
        ({"labels": LABEL}, "labels without points"),
        ({"points": [], "labels": []}, "points have the wrong shape | got: (0,)"),
        ({"points": np.zeros((0, 2)), "labels": []}, "there is no prompt"),
        ({"points": np.zeros((0, 3, 2)), "labels": np.zeros((0, 3))}, "there is no prompt"),
        ({"points": np.zeros((2, 0, 2)), "labels": np.zeros((2, 0))}, "there is no prompt"),
        ({"boxes": np.zeros((0, 4))}, "there is no prompt | got: an empty array of boxes"),
        ({"points": [5, 5], "labels": [1]}, "fix: points=[[x, y]] for a single point"),
        ({"points": [[5, 5, 5]], "labels": [1]}, "expected: (N, 2) or (P, N, 2)"),
        ({"points": POINT, "labels": [1, 0]}, "labels have the wrong shape | got: (2,) | expected: (1,), one for each"),
        ({"points": POINT, "labels": 1}, "labels have the wrong shape"),
        (
            {"points": POINT, "labels": [4]},
            "unknown label | got: 4 | expected: -1 padding, 0 negative, 1 positive",
        ),
        ({"points": POINT, "labels": [0.5]}, "unknown label | got: 0.5"),
        ({"points": POINT, "labels": [np.nan]}, "unknown label | got: nan"),
        ({"points": POINT, "labels": ["1"]}, "labels must be numbers"),
        ({"points": [[np.nan, 5]], "labels": LABEL}, "points must be finite | got: nan among them"),
        ({"points": [[1e300, 5]], "labels": LABEL}, "points must be finite | got: inf among them"),
        ({"points": [["a", "b"]], "labels": LABEL}, "points must be numbers"),
        ({"points": [[1, 2], [3]], "labels": [1, 1]}, "points must be numbers"),
        ({"points": [[1j, 2]], "labels": [1]}, "points must be numbers"),
        ({"boxes": [1, 2, 3]}, "boxes have the wrong shape | got: (3,) | expected: (4,) or (P, 4) as x0 y0 x1 y1"),
        ({"boxes": [[0, 0, 9, 9], [9, 5, 3, 7]]}, "the corners of box 1 are crossed | got: [9, 5, 3, 7]"),
        ({"boxes": [3, 9, 5, 1]}, "fix: swap them: [3, 1, 5, 9]"),
        ({"boxes": [0, 0, np.inf, 1]}, "boxes must be finite"),
        ({"masks": np.zeros((16, 16), bool)}, "a mask prompt holds logits, not bool"),
        ({"masks": np.zeros((1, 3, 16, 16))}, "fix: one candidate per prompt: result.best().logits"),
        ({"masks": np.zeros(16)}, "masks have the wrong shape"),
        ({"points": POINT, "labels": LABEL, "boxes": [BOX] * 2}, "got: 1 of points, 2 of boxes"),
        (
            {"boxes": [BOX] * 2, "masks": MASK},
            "how many prompts there are | got: 2 of boxes, 1 of masks",
        ),
    ],
)
def test_prompts_that_are_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        Prompts(**arguments)
    assert message in str(caught.value)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


hostile = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just(Unprintable()),
    st.recursive(st.floats() | st.integers(-5, 70), lambda inner: st.lists(inner, max_size=4), max_leaves=12),
    st.lists(st.tuples(st.floats(-3, 70), st.floats(-3, 50)), min_size=1, max_size=9),
    st.lists(st.integers(-1, 3), min_size=1, max_size=9),
    st.lists(st.floats(0, 48), min_size=4, max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(points=hostile, labels=hostile, boxes=hostile, masks=hostile)
def test_anything_at_all_is_a_prompt_or_one_clear_error(points: Any, labels: Any, boxes: Any, masks: Any) -> None:
    try:
        tensors = feeds(Prompts(points, labels, boxes, masks))
    except PromptError:
        return
    assert tensors["point_coords"].shape[:2] == tensors["point_labels"].shape
    assert np.isfinite(tensors["point_coords"]).all()
    assert np.isin(tensors["point_labels"], [-1, 0, 1, 2, 3]).all()
