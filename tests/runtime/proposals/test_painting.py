"""Letterboxes, detections and masks piece by piece: sizes that a whole run does not reach."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from samrt.bilinear import resize_planes
from samrt.numbers import ProposalNumbers
from samrt.proposals.detections import Detections, fill_frame, find_detections
from samrt.proposals.letterbox import Letterbox
from samrt.proposals.painting import paint_segments

NUMBERS = ProposalNumbers(
    size_hw=(1024, 1024),
    pad_value=114,
    confidence=0.4,
    iou=0.9,
    max_detections=300,
    full_frame_iou=0.9,
    full_frame_edge_px=20,
)


@pytest.mark.parametrize(
    ("image_hw", "content_hw", "offset_yx", "rows_columns"),
    [
        ((2160, 3840), (576, 1024), (224, 0), ((56, 200), (0, 256))),
        ((1000, 700), (1024, 717), (0, 153), ((0, 256), (38, 218))),  # 153 before, 154 after
        ((640, 640), (1024, 1024), (0, 0), ((0, 256), (0, 256))),
        ((1, 700), (1, 1024), (511, 0), ((127, 128), (0, 256))),
        ((3000, 1), (1024, 1), (0, 511), ((0, 256), (127, 128))),
    ],
)
def test_where_a_picture_lies(
    image_hw: tuple[int, int],
    content_hw: tuple[int, int],
    offset_yx: tuple[int, int],
    rows_columns: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    letterbox = Letterbox(image_hw, NUMBERS)
    assert (letterbox.content_hw, letterbox.offset_yx) == (content_hw, offset_yx)
    rows, columns = letterbox.content_of((256, 256))
    assert ((rows.start, rows.stop), (columns.start, columns.stop)) == rows_columns


def test_boxes_go_back_to_the_picture() -> None:
    letterbox = Letterbox((540, 960), NUMBERS)  # 576 rows from 224 on, scale 15 / 16
    boxes = np.array([[16, 240, 32, 272], [-50, 0, 2000, 2000]], np.float32)
    np.testing.assert_allclose(letterbox.image_from_input(boxes), [[15, 15, 30, 45], [0, 0, 960, 540]], rtol=1e-6)


def test_the_input_is_the_picture_in_grey() -> None:
    numbers = replace(NUMBERS, size_hw=(8, 8))
    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    made = Letterbox((2, 4), numbers).image_to_input(picture)
    assert made.dtype == np.float32
    assert (made[[0, 1, 6, 7]] == 114).all()
    # Twice as large: halves of a step are a quarter and three quarters of the way, rounded to whole levels.
    np.testing.assert_array_equal(made[2, :, 0], [0, 1, 2, 4, 5, 7, 8, 9])
    np.testing.assert_array_equal(made[2:6, 0, 0], [0, 3, 9, 12])
    same = Letterbox((8, 8), numbers).image_to_input(np.full((8, 8, 3), 7, np.uint8))
    assert (same == 7).all()


def test_only_nearly_whole_boxes_become_the_picture() -> None:
    letterbox = Letterbox((540, 960), NUMBERS)  # rows 224 to 800
    boxes = np.array(
        [
            [15, 240, 1010, 790],  # all edges near: exactly the frame
            [60, 230, 1015, 795],  # 964 of 1024 columns: above 0.9
            [110, 230, 1015, 795],  # 914 of 1024: below, and its other edges stay where they were
            [0, 0, 1024, 1024],  # the padding too: no edge of its rows is near
        ],
        np.float32,
    )
    frame = [0, 224, 1024, 800]
    np.testing.assert_array_equal(fill_frame(boxes, letterbox, NUMBERS), [frame, frame, *boxes[2:]])
    assert fill_frame(boxes[:0], letterbox, NUMBERS).shape == (0, 4)


def test_broken_numbers_are_no_detections() -> None:
    boxes = np.array(
        [[100, 100, 20, 20], [np.nan, 0, 1, 1], [np.inf, 0, 1, 1], [9, 9, -4, 4], [9, 9, 4, 4]], np.float32
    )
    outputs = {
        "boxes": boxes.T[None],
        "scores": np.array([[[0.5, 0.9, 0.9, 0.9, np.nan]]], np.float32),
        "coefficients": np.arange(10, dtype=np.float32).reshape(1, 2, 5),
    }
    found = find_detections(outputs, Letterbox((1024, 1024), NUMBERS), NUMBERS)
    np.testing.assert_array_equal(found.boxes, [[90, 90, 110, 110]])
    np.testing.assert_array_equal(found.coefficients, [[0, 5]])
    np.testing.assert_array_equal(found.scores, np.float32([0.5]))


def _found(count: int, seed: int = 0) -> tuple[Detections, np.ndarray]:
    random = np.random.default_rng(seed)
    centre, size = random.uniform(0, 1024, (count, 2)), random.uniform(10, 500, (count, 2))
    boxes = np.concatenate((centre - size / 2, centre + size / 2), axis=1).astype(np.float32)
    prototypes = resize_planes(random.normal(size=(32, 17, 17)).astype(np.float32), (256, 256))
    scores = np.linspace(0.9, 0.5, count).astype(np.float32)
    return Detections(boxes, scores, random.normal(size=(count, 32)).astype(np.float32)), prototypes


@pytest.mark.parametrize("image_hw", [(300, 500), (40, 30), (7, 900)])
def test_masks_are_the_resized_sum_within_the_box(image_hw: tuple[int, int]) -> None:
    found, prototypes = _found(40)
    letterbox = Letterbox(image_hw, NUMBERS)
    segments = paint_segments(found, prototypes, letterbox)
    rows, columns = letterbox.content_of((256, 256))
    planes = np.tensordot(found.coefficients, prototypes[:, rows, columns], axes=1)
    values = resize_planes(planes, image_hw)
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    x0, y0, x1, y1 = letterbox.image_from_input(found.boxes).T[..., None, None]
    masks = (values > 0) & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    kept = masks.any(axis=(1, 2))
    assert kept.sum() > 5
    different = segments.masks() != masks[kept]
    assert np.abs(values[kept][different]).max(initial=0) < 1e-4  # sums in another order, near 0
    assert different.mean() < 1e-4
    np.testing.assert_array_equal(segments.scores, found.scores[kept])


def test_many_masks_of_a_large_picture_are_never_whole_at_once() -> None:
    found, prototypes = _found(60)
    tracemalloc.start()
    segments = paint_segments(found, prototypes, Letterbox((2160, 3840), NUMBERS))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(segments) > 30
    assert peak < 150 << 20  # whole, they are 300 MB of pixels
