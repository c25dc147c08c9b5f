"""COCO's run-length encoding of masks, compressed to text as pycocotools does, in numpy.

A mask is read column by column, and the lengths of its runs are counted: pixels outside first (0 where the first pixel is
inside), then inside, and so on. From the fourth count on, the difference to the count two before is kept. Each number is
cut into groups of five bits, lowest first; a sixth bit says that more follow, the last group's fifth bit is the sign; 48 is
added to make it a printable character.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import InputError

BoolArray = NDArray[np.bool_]
Counts = NDArray[np.int64]

_BITS, _MORE, _SIGN, _OFFSET = 5, 0x20, 0x10, 48
_MOST_GROUPS = 12  # 60 bits


def encode_mask(mask: BoolArray) -> dict[str, Any]:
    """Encode a mask as ``{"size": [height, width], "counts": text}``, as pycocotools writes it.

    mask: bool (H, W)
    Raises InputError for another shape or dtype.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
        got = f"{mask.dtype} array of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError("not a mask", got=got, expected="bool (H, W)")
    return compressed_rle(count_runs(mask), (mask.shape[0], mask.shape[1]))


def compressed_rle(counts: Counts, image_hw: tuple[int, int]) -> dict[str, Any]:
    """Counts of a mask of that size as ``{"size": [height, width], "counts": text}``."""
    return {"size": [*image_hw], "counts": compress_counts(counts)}


def uncompressed_rle(counts: Counts, image_hw: tuple[int, int]) -> dict[str, Any]:
    """Counts of a mask of that size as ``{"size": [height, width], "counts": [numbers]}``."""
    return {"size": [*image_hw], "counts": counts.tolist()}


def decode_mask(segmentation: Mapping[str, Any]) -> BoolArray:
    """Decode what `encode_mask` or pycocotools wrote; counts may be text, bytes or a list of plain counts.

    returns: bool (H, W)
    Raises InputError for anything that is not such an encoding, or whose runs do not fill the size.
    """
    size, counts = _read(segmentation)
    runs = expand_counts(counts) if isinstance(counts, str) else counts
    height, width = size
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise InputError(
            "the runs do not fill the mask",
            got=f"{int(runs.sum())} pixels" if not (runs < 0).any() else "a negative count",
            expected=f"{height} x {width} = {height * width}",
        )
    return fill_runs(runs, size)


def fill_runs(counts: Counts, image_hw: tuple[int, int]) -> BoolArray:
    """The mask of counts that fill that size. returns: bool (H, W)."""
    inside = np.zeros(len(counts), np.bool_)
    inside[1::2] = True
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(image_hw[1], image_hw[0]).T)


def fill_columns(counts: Counts, height: int, start: int, stop: int) -> BoolArray:
    """Some columns of the mask of counts, from `start` up to `stop`. returns: bool (height, stop - start)."""
    edges = np.concatenate(([0], np.cumsum(counts))).clip(start * height, stop * height)
    return fill_runs(np.diff(edges), (height, stop - start))


def count_runs(mask: BoolArray) -> Counts:
    """Lengths of the runs of a mask, column by column, the first one outside.

    mask: bool (H, W); only what its box encloses is read column by column, which is slow
    returns: int64 (N,)
    """
    height = mask.shape[0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.array([mask.size], np.int64)
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    stride = bottom - top + (bottom - top < height)  # a row outside keeps runs of neighbouring columns apart
    columnwise = np.zeros((right - left, stride), np.bool_)
    columnwise[:, : bottom - top] = mask[top:bottom, left:right].T
    flat = columnwise.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first, last = [0] if flat[0] else [], [flat.size] if flat[-1] else []
    column, row = np.divmod(np.concatenate((first, changes, last)).astype(np.int64), stride)
    edges = (left + column) * height + top + row
    end = [] if edges[-1] == mask.size else [mask.size]
    counts: Counts = np.diff(np.concatenate(([0], edges, end))).astype(np.int64)
    return counts


def area_of_counts(counts: Counts) -> int:
    """How many pixels are inside."""
    return int(counts[1::2].sum())


def box_of_counts(counts: Counts, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last column and row of a mask, from its counts.

    returns: x0, y0, x1, y1, the last ones included, as upstream's ``batched_mask_to_box``; zeros for an empty mask
    """
    height = image_hw[0]
    edges = np.cumsum(counts)
    starts, ends = edges[:-1:2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return 0, 0, 0, 0
    first, last = starts % height, (ends - 1) % height
    if (starts // height != (ends - 1) // height).any():  # a run that goes on in the next column
        return int(starts[0] // height), 0, int((ends[-1] - 1) // height), height - 1
    return int(starts[0] // height), int(first.min()), int((ends[-1] - 1) // height), int(last.max())


def compress_counts(counts: Counts) -> str:
    """Counts as text."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    rows = np.empty((_MOST_GROUPS, len(values)), np.uint8)
    alive = np.zeros((_MOST_GROUPS, len(values)), np.bool_)
    going = np.ones(len(values), np.bool_)
    for row in range(_MOST_GROUPS):
        group = values & 0x1F
        values = values >> _BITS
        more = np.where(group & _SIGN, values != -1, values != 0)
        rows[row], alive[row] = group + more * _MORE + _OFFSET, going
        going = going & more
        if not going.any():
            break
    count = row + 1
    return rows[:count].T[alive[:count].T].tobytes().decode("ascii")


def expand_counts(text: str) -> Counts:
    """Counts from text. Raises InputError."""
    try:
        groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _OFFSET
    except UnicodeEncodeError:
        groups = np.array([-1])
    if (groups < 0).any() or (groups >= 2 * _MORE).any() or (len(groups) and groups[-1] & _MORE):
        raise InputError("not compressed counts", got=ascii(text[:40]), expected="text as pycocotools writes it")
    if not len(groups):
        return np.zeros(0, np.int64)
    last = (groups & _MORE) == 0
    first = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    lengths = np.diff(np.concatenate((first, [len(groups)])))
    if lengths.max() > _MOST_GROUPS:
        raise InputError("not compressed counts", got=f"a number of {lengths.max()} groups", expected="smaller numbers")
    place = np.arange(len(groups)) - np.repeat(first, lengths)
    values = np.add.reduceat((groups & 0x1F) << (_BITS * place), first)
    negative = (groups[last] & _SIGN) != 0
    values -= np.where(negative, np.int64(1) << (_BITS * lengths), 0)
    counts = values.copy()
    counts[1::2] = np.cumsum(values[1::2])
    counts[2::2] = np.cumsum(values[2::2])
    return counts


def box_of(mask: BoolArray) -> list[int]:
    """COCO's box of a mask: x, y, width, height in pixels; zeros for an empty mask. mask: bool (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _read(segmentation: Mapping[str, Any]) -> tuple[tuple[int, int], str | Counts]:
    expected = '{"size": [height, width], "counts": text or a list of counts}'
    if not isinstance(segmentation, Mapping) or {"size", "counts"} - segmentation.keys():
        got = ", ".join(map(str, segmentation)) if isinstance(segmentation, Mapping) else type(segmentation).__name__
        raise InputError("not an encoded mask", got=got or "nothing", expected=expected)
    size, counts = segmentation["size"], segmentation["counts"]
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not whole or size[0] * size[1] > 2**31:
        raise InputError("not an encoded mask", got=f"size {size!r:.60}", expected=expected)
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        return (size[0], size[1]), counts
    if not isinstance(counts, list | tuple) or not all(type(run) is int and abs(run) <= 2**31 for run in counts):
        raise InputError("not an encoded mask", got=f"counts of type {type(counts).__name__}", expected=expected)
    return (size[0], size[1]), np.array(counts, np.int64)
