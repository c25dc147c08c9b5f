"""Compact masks: what goes in comes out, in the forms others read."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import samrt
from samrt import ImageError, InputError, MissingExtraError
from samrt import segments as segments_module
from samrt.draw import PALETTE
from samrt.rle import decode_mask
from samrt.segment_output import draw_segments
from samrt.segments import Segments


@pytest.fixture
def masks() -> np.ndarray:
    """A rectangle, nothing, and one pixel in a corner: bool (3, 6, 9)."""
    planes = np.zeros((3, 6, 9), np.bool_)
    planes[0, 1:4, 2:7] = True
    planes[2, 5, 8] = True
    return planes


@pytest.fixture
def segments(masks: np.ndarray) -> Segments:
    return Segments.from_masks(
        masks,
        [0.5, 0.25, 0.75],
        stability=np.array([1, 0.5, 0.875], np.float32),
        points=np.array([[3, 2], [1, 1], [8.5, 5.5]], np.float32),
        crop_boxes=np.array([[0, 0, 9, 6]] * 3, np.float32),
    )


def test_what_masks_say(segments: Segments, masks: np.ndarray) -> None:
    assert len(segments) == 3
    assert segments.image_hw == (6, 9)
    assert segments.boxes.tolist() == [[2, 1, 6, 3], [0, 0, 0, 0], [8, 5, 8, 5]]
    assert segments.areas.tolist() == [15, 0, 1]
    assert (segments.boxes.dtype, segments.areas.dtype, segments.scores.dtype) == (np.float32, np.int64, np.float32)
    np.testing.assert_array_equal(segments.masks(), masks)
    np.testing.assert_array_equal(segments.mask(2), masks[2])


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        (-1, [2]),
        ([], []),
        (np.zeros(3, bool), []),
    ],
)
def test_some_of_them(segments: Segments, index: Any, rows: list[int]) -> None:
    some = segments[index]
    np.testing.assert_array_equal(some.masks(), segments.masks()[rows])
    for column in ("boxes", "areas", "scores", "stability", "points", "crop_boxes"):
        np.testing.assert_array_equal(getattr(some, column), getattr(segments, column)[rows])
    assert some.labels is None


def test_one_after_the_other(segments: Segments) -> None:
    assert [one.scores.tolist() for one in segments] == [[0.5], [0.25], [0.75]]
    with pytest.raises(IndexError, match="mask 3 of 3"):
        segments[3]


def test_what_is_printed_of_them(segments: Segments) -> None:
    assert repr(segments) == "Segments(3 masks, 9 x 6)"
    with pytest.raises(IndexError, match="mask 3 of 3"):
        segments.mask(3)


def test_order(segments: Segments) -> None:
    assert segments.order().areas.tolist() == [15, 1, 0]
    assert segments.order("score").scores.tolist() == [0.75, 0.5, 0.25]
    with pytest.raises(InputError, match=r"unknown order \| got: 'size' \| expected: area or score"):
        segments.order("size")  # type: ignore[arg-type]


def test_records_are_the_official_ones(segments: Segments, masks: np.ndarray) -> None:
    record = segments.records()[0]
    np.testing.assert_array_equal(record.pop("segmentation"), masks[0])
    assert record == {
        "area": 15,
        "bbox": [2, 1, 4, 2],  # upstream's width is the last column minus the first
        "predicted_iou": 0.5,
        "point_coords": [[3.0, 2.0]],
        "stability_score": 1.0,
        "crop_box": [0, 0, 9, 6],
    }
    assert list(segments.records()[0]) == [
        "segmentation",
        "area",
        "bbox",
        "predicted_iou",
        "point_coords",
        "stability_score",
        "crop_box",
    ]


def test_records_with_run_lengths(segments: Segments) -> None:
    assert segments.records("uncompressed_rle")[0]["segmentation"] == {
        "size": [6, 9],
        "counts": [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 14],
    }
    # pycocotools 2.0.11: encode(numpy.asfortranarray(mask.astype(numpy.uint8)))["counts"]
    assert segments.records("coco_rle")[0]["segmentation"] == {"size": [6, 9], "counts": "=330000000;"}
    with pytest.raises(InputError, match=r"unknown output_mode \| got: 'png' \| expected: binary_mask, uncompressed"):
        segments.records("png")  # type: ignore[arg-type]


def test_coco(segments: Segments, masks: np.ndarray) -> None:
    rows = segments.to_coco(image_id=7, first_id=100)
    assert [row["id"] for row in rows] == [100, 101, 102]
    for row, mask in zip(rows, masks, strict=True):
        np.testing.assert_array_equal(decode_mask(row["segmentation"]), mask)
    del rows[0]["segmentation"]
    assert rows[0] == {
        "id": 100,
        "image_id": 7,
        "category_id": 1,
        "area": 15,
        "bbox": [2, 1, 5, 3],  # pycocotools counts pixels
        "iscrowd": 0,
        "score": 0.5,
        "predicted_iou": 0.5,
        "stability_score": 1.0,
        "point_coords": [[3.0, 2.0]],
        "crop_box": [0, 0, 9, 6],
    }
    assert rows[1]["bbox"] == [0, 0, 0, 0]
    assert rows[2]["bbox"] == [8, 5, 1, 1]


def test_coco_of_a_detectors_boxes(masks: np.ndarray) -> None:
    segments = Segments.from_masks(
        masks,
        [0.5, 0.25, 0.75],
        labels=np.array([18, 1, 18]),
        prompt_boxes=np.array([[1.5, 1, 7, 4]] * 3, np.float32),
        prompt_scores=np.array([0.9, np.nan, 0.1], np.float32),
    )
    rows = segments.to_coco(1)
    assert [row["category_id"] for row in rows] == [18, 1, 18]
    assert [row["score"] for row in rows] == [0.9, 0.25, 0.1]  # the detector's, where it gave one
    assert [row["predicted_iou"] for row in rows] == [0.5, 0.25, 0.75]
    assert rows[0]["prompt_box"] == [1.5, 1, 5.5, 3]


@dataclass
class Detections:
    """The constructor of supervision 0.31.2."""

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    tracker_id: np.ndarray | None = None
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def test_supervision(masks: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = ModuleType("supervision")
    stub.Detections = Detections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stub)
    labels, names = np.array([3, 1, 3]), {3: "dog"}
    found = Segments.from_masks(masks, [0.5, 0.25, 0.75], labels=labels, names=names).to_supervision()
    assert found.xyxy.tolist() == [[2, 1, 7, 4], [0, 0, 0, 0], [8, 5, 9, 6]]  # edges, so that areas are right
    np.testing.assert_array_equal(found.mask, masks)
    assert found.confidence.tolist() == [0.5, 0.25, 0.75]
    assert found.class_id.tolist() == [3, 1, 3]
    assert found.data["class_name"].tolist() == ["dog", "1", "dog"]
    scored = Segments.from_masks(masks, [0.5, 0.25, 0.75], prompt_scores=np.array([1, 0, 0.5], np.float32))
    assert scored.to_supervision().confidence.tolist() == [1, 0, 0.5]
    assert scored.to_supervision().class_id is None


def test_without_supervision(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"supervision is needed for its Detections.*pip install supervision"):
        segments.to_supervision()


def test_the_best_mask_of_each_prompt(bundle_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made one prompt at a time as all at once; and the same masks as the result's own."""
    boxes = np.array([[0, 0, 20, 20], [10, 10, 60, 40], [5, 5, 6, 6]], np.float32)
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        result = model.decode(model.encode(picture), samrt.Prompts(boxes=boxes))
    best = result.best()
    assert 0 < best.masks.sum() < best.masks.size
    whole = Segments.from_result(result, prompt_boxes=boxes)
    monkeypatch.setattr(segments_module, "_PART_PIXELS", 1)
    for segments in (whole, Segments.from_result(result)):
        np.testing.assert_array_equal(segments.masks(), best.masks[:, 0])
        np.testing.assert_array_equal(segments.scores, best.scores[:, 0])
    assert whole.prompt_boxes is boxes


def test_a_result_of_two_pictures(bundle_path: Path, picture: np.ndarray) -> None:
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        result = model.decode(model.encode([picture, picture]), samrt.Prompts(boxes=[[0, 0, 9, 9]] * 2))
    with pytest.raises(ImageError, match=r"of one picture \| got: a result of 2 pictures"):
        Segments.from_result(result)


def test_fields_that_do_not_match(masks: np.ndarray) -> None:
    with pytest.raises(
        InputError, match=r"do not match \| got: 2 scores, 1 labels \| expected: one for each of 3 masks"
    ):
        Segments.from_masks(masks, [0.5, 0.5], labels=np.array([1]))
    with pytest.raises(InputError, match=r"runs do not fill the mask \| got: 53 pixels \| expected: 6 x 9 = 54"):
        Segments.from_counts([np.array([50, 3])], [0.5], (6, 9))
    with pytest.raises(
        InputError, match=r"not masks \| got: float64 array of shape \(6, 9\) \| expected: bool \(M, H, W\)"
    ):
        Segments.from_masks(np.zeros((6, 9)), [])  # type: ignore[arg-type]


def test_no_mask_at_all() -> None:
    none = Segments.from_masks(np.zeros((0, 4, 5), np.bool_), [])
    assert (len(none), none.boxes.shape, none.masks().shape) == (0, (0, 4), (0, 4, 5))
    assert none.records() == none.to_coco(1) == []
    assert len(none.order()) == 0


def test_windows(segments: Segments, masks: np.ndarray) -> None:
    """A mask's box and what is in it, with a margin that ends at the picture's edges."""
    for index, margin_px, rows, columns in [(0, 0, (1, 4), (2, 7)), (0, 2, (0, 6), (0, 9)), (2, 1, (4, 6), (7, 9))]:
        window, inside = segments.window(index, margin_px)
        assert [(side.start, side.stop) for side in window] == [rows, columns]
        np.testing.assert_array_equal(inside, masks[index][window])
    assert not segments.window(1)[1].any()


def test_drawn_as_overlay_draws_them(picture: np.ndarray) -> None:
    """With the boxes that they answer, whose colours they have: the same, pixel by pixel."""
    masks = np.zeros((3, *picture.shape[:2]), np.bool_)
    masks[0, 4:40, 2:30] = masks[1, 20:44, 40:60] = masks[2, 1:4, 50:64] = True
    boxes = Segments.from_masks(masks, [1, 1, 1]).boxes + 0.0
    boxed = Segments.from_masks(masks, [1, 1, 1], prompt_boxes=boxes)
    np.testing.assert_array_equal(draw_segments(picture, boxed), samrt.overlay(picture, masks, boxes=boxes))


@pytest.mark.parametrize("colour", PALETTE)
def test_a_mask_is_unlike_what_it_lies_on(colour: tuple[int, int, int]) -> None:
    masks = np.zeros((1, 40, 60), np.bool_)
    masks[0, 10:30, 10:50] = True
    drawn = draw_segments(np.full((40, 60, 3), colour, np.uint8), Segments.from_masks(masks, [1]))
    assert np.abs(drawn[20, 30].astype(int) - colour).sum() > 100
    assert (drawn[0, 0] == colour).all()


def test_masks_that_meet_get_different_colours(picture: np.ndarray) -> None:
    """The eleventh would have the first one's colour, which is its neighbour."""
    masks = np.zeros((11, *picture.shape[:2]), np.bool_)
    for index in range(10):
        masks[index, :20, 6 * index : 6 * index + 4 - index // 9] = True
    masks[10, 20:23, 2:5] = True
    drawn = draw_segments(np.zeros_like(picture), Segments.from_masks(masks, np.ones(11)))
    assert np.abs(drawn[21, 3].astype(int) - drawn[10, 2]).max() > 30
