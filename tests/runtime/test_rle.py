"""COCO's RLE against a naive decoder, and against strings that pycocotools 2.0.11 wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samrt import InputError
from samrt.media import decode_mask, encode_mask
from samrt.rle import (
    area_of_counts,
    box_of,
    box_of_counts,
    compress_counts,
    compressed_rle,
    count_runs,
    expand_counts,
    fill_runs,
    uncompressed_rle,
)

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


def naive_decode(size: list[int], text: str) -> np.ndarray:
    """One character, one run, one pixel at a time, as the format is described."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift = 0, 0
        while True:
            group = ord(text[place]) - 48
            place += 1
            value |= (group & 31) << shift
            shift += 5
            if not group & 32:
                break
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    mask = np.zeros((size[0], size[1]), bool)
    pixel = 0
    for index, count in enumerate(counts):
        for _ in range(count):
            mask[pixel % size[0], pixel // size[0]] = index % 2 == 1
            pixel += 1
    assert pixel == mask.size
    return mask


@settings(deadline=None)
@given(mask=MASKS)
def test_any_mask_goes_there_and_back(mask: np.ndarray) -> None:
    encoded = encode_mask(mask)
    np.testing.assert_array_equal(naive_decode(encoded["size"], encoded["counts"]), mask)
    np.testing.assert_array_equal(decode_mask(encoded), mask)


def square() -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[10:90, 20:60] = True
    return mask


def corner() -> np.ndarray:
    mask = np.zeros((3, 5), bool)
    mask[1, 1:4] = mask[0, 4] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (np.ones((4, 4), bool), "0`0"),
        (np.zeros((4, 4), bool), "`0"),
        (corner(), "412000O01"),
        (np.eye(40, dtype=bool), "01X1" + "0" * 77),
        (square(), "jn1`2d" + "0" * 78 + "fl3"),
    ],
)
def test_strings_of_pycocotools(mask: np.ndarray, counts: str) -> None:
    assert encode_mask(mask) == {"size": list(mask.shape), "counts": counts}
    for form in (counts, counts.encode(), expand_counts(counts).tolist()):
        np.testing.assert_array_equal(decode_mask({"size": list(mask.shape), "counts": form}), mask)


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 2**31), min_size=1, max_size=60))
def test_large_counts(counts: list[int]) -> None:
    values = np.array(counts, np.int64)
    np.testing.assert_array_equal(expand_counts(compress_counts(values)), values)


def test_it_is_read_by_columns() -> None:
    mask = np.zeros((2, 3), bool)
    mask[1, 0] = mask[0, 1] = True
    assert expand_counts(encode_mask(mask)["counts"]).tolist() == [1, 2, 3]


def test_boxes() -> None:
    assert box_of(square()) == [20, 10, 40, 80]
    assert box_of(corner()) == [1, 0, 4, 2]
    assert box_of(np.zeros((3, 3), bool)) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ({"size": [4, 4], "counts": "1"}, "the runs do not fill the mask | got: 1 pixels | expected: 4 x 4 = 16"),
        ({"size": [4, 4], "counts": "`0O"}, "the runs do not fill the mask | got: a negative count"),
        ({"size": [4, 4], "counts": "`"}, "not compressed counts | got: '`'"),
        ({"size": [4, 4], "counts": "\n"}, "not compressed counts"),
        ({"size": [4, 4], "counts": "é"}, "not compressed counts"),
        ({"size": [4, 4], "counts": "o" * 13 + "0"}, "not compressed counts | got: a number of 14 groups"),
        ({"size": [4, 4], "counts": ""}, "the runs do not fill the mask | got: 0 pixels"),
        ({"size": [4, 4], "counts": [3, 2.5]}, "not an encoded mask | got: counts of type list"),
        ({"size": [10**6, 10**6], "counts": "0"}, "not an encoded mask | got: size [1000000, 1000000]"),
        ({"size": [4], "counts": "0"}, "not an encoded mask | got: size [4]"),
        ({"size": [4, 4]}, "not an encoded mask | got: size"),
        ([1], "not an encoded mask | got: list"),
    ],
)
def test_what_is_no_encoding(encoded: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_mask(encoded)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((1, 2, 2), bool), [[True]]])
def test_what_is_no_mask(mask: Any) -> None:
    with pytest.raises(InputError, match=r"not a mask \| got: .* \| expected: bool \(H, W\)"):
        encode_mask(mask)


@given(MASKS)
@settings(max_examples=300, deadline=None)
def test_counts_are_those_of_reading_every_pixel(mask: np.ndarray) -> None:
    counts, inside = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != inside:
            counts.append(0)
            inside = pixel
        counts[-1] += 1
    assert count_runs(mask).tolist() == counts
    assert count_runs(mask).dtype == np.int64
    np.testing.assert_array_equal(fill_runs(count_runs(mask), mask.shape), mask)


@given(MASKS)
@settings(max_examples=300, deadline=None)
def test_area_and_box_are_read_from_counts(mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    corners = (columns.min(), rows.min(), columns.max(), rows.max()) if len(rows) else (0, 0, 0, 0)
    assert box_of_counts(count_runs(mask), mask.shape) == corners
    assert area_of_counts(count_runs(mask)) == mask.sum()


def test_the_box_of_counts_with_empty_runs() -> None:
    """Other writers leave runs of nothing."""
    counts = np.array([0, 0, 5, 2, 0, 0, 5])
    assert box_of_counts(counts, (4, 3)) == (1, 1, 1, 2)


def test_both_encodings_of_counts() -> None:
    mask = np.array([[False, True], [True, True], [False, False]])
    counts = count_runs(mask)
    assert uncompressed_rle(counts, (3, 2)) == {"size": [3, 2], "counts": [1, 1, 1, 2, 1]}
    assert compressed_rle(counts, (3, 2)) == encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(uncompressed_rle(counts, (3, 2))), mask)
