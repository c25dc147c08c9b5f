"""The memory bank against SAM 2's rules, written down a second time: plainly, frame by frame, everything kept for ever."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samrt.numbers import VideoNumbers
from samrt.video.bank import MemoryBank
from samrt.video.rules import closest_conditioning, recall

NUMBERS = VideoNumbers(
    max_conditioning_frames=None,
    recent_frames=6,
    temporal_stride=1,
    conditioning_time=6,
    max_object_pointers=16,
    past_pointers_only=True,
    signed_pointer_distance=True,
    multimask_points=(0, 1),
    empty_prompt_points=1,
    absent_logit=-1024.0,
    fill_hole_area=8,
)


def official(
    frame: int,
    cond: dict[int, Any],
    non_cond: dict[int, Any],
    numbers: VideoNumbers,
    most: int | None,
    reverse: bool,
    num_frames: int | None,
) -> tuple[set[tuple[int, int]], set[tuple[int, float]]]:
    """(frame, time) of the memory maps and (frame, distance) of the pointers, told as upstream tells it."""
    selected = dict(cond)
    if most is not None and len(cond) > most:
        selected = {}
        earlier = [t for t in cond if t < frame]
        later = [t for t in cond if t >= frame]
        if earlier:
            selected[max(earlier)] = cond[max(earlier)]
        if later:
            selected[min(later)] = cond[min(later)]
        while len(selected) < most:
            left = [t for t in cond if t not in selected]
            nearest = left[int(np.argmin([abs(t - frame) for t in left]))]
            selected[nearest] = cond[nearest]
    unselected = {t: v for t, v in cond.items() if t not in selected}
    num_maskmem = numbers.recent_frames + 1
    maps = {(t, num_maskmem - 1) for t in selected}
    r = numbers.temporal_stride
    for t_rel in range(1, num_maskmem):
        if t_rel == 1:
            t = frame + 1 if reverse else frame - 1
        elif reverse:
            t = math.ceil((frame + 2) / r) * r + (t_rel - 2) * r
        else:
            t = math.floor((frame - 2) / r) * r - (t_rel - 2) * r
        if t in non_cond or t in unselected:
            maps.add((t, t_rel - 1))
    limit = numbers.max_object_pointers if num_frames is None else min(num_frames, numbers.max_object_pointers)
    norm = max(limit - 1, 1)
    pointers: set[tuple[int, float]] = set()
    for t in selected:
        if numbers.past_pointers_only and (t < frame if reverse else t > frame):
            continue
        distance = t - frame if reverse else frame - t
        pointers.add((t, (distance if numbers.signed_pointer_distance else abs(distance)) / norm))
    for t_diff in range(1, limit):
        t = frame + t_diff if reverse else frame - t_diff
        if t < 0 or (num_frames is not None and t >= num_frames):
            break
        if t in non_cond or t in unselected:
            pointers.add((t, t_diff / norm))
    return maps, pointers


rules = st.builds(
    lambda **changes: replace(NUMBERS, **changes),
    recent_frames=st.integers(1, 6),
    temporal_stride=st.integers(1, 4),
    max_object_pointers=st.integers(1, 16),
    past_pointers_only=st.booleans(),
    signed_pointer_distance=st.booleans(),
).map(lambda one: replace(one, conditioning_time=one.recent_frames))


@settings(max_examples=300, deadline=None)
@given(
    numbers=rules,
    frame=st.integers(0, 30),
    conditioning=st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=8),
    recent=st.sets(st.integers(0, 30)),
    most=st.none() | st.integers(2, 5),
    reverse=st.booleans(),
    num_frames=st.none() | st.integers(31, 40),
)
def test_recall_is_the_official_one(
    numbers: VideoNumbers,
    frame: int,
    conditioning: list[int],
    recent: set[int],
    most: int | None,
    reverse: bool,
    num_frames: int | None,
) -> None:
    recent -= set(conditioning)
    ours = recall(frame, conditioning, recent, numbers, most_conditioning=most, reverse=reverse, num_frames=num_frames)
    cond, non_cond = dict.fromkeys(conditioning, 1), dict.fromkeys(recent, 1)
    maps, pointers = official(frame, cond, non_cond, numbers, most, reverse, num_frames)
    assert len(ours.slots) == len(set(ours.slots))
    assert set(ours.slots) == maps
    assert len(ours.pointers) == len(set(ours.pointers))
    assert set(ours.pointers) == pointers


def test_recall_by_hand() -> None:
    """Frame 9 of a stream: prompts on 0 and 7, all else tracked."""
    found = recall(9, [0, 7], [1, 2, 3, 4, 5, 6, 8], NUMBERS)
    assert found.slots == ((0, 6), (7, 6), (8, 0), (6, 2), (5, 3), (4, 4), (3, 5))
    assert found.pointers[:3] == ((0, 9 / 15), (7, 2 / 15), (8, 1 / 15))
    assert len(found.pointers) == 9
    # A short video is normalised by its length: upstream takes min(num_frames, 16) - 1.
    assert recall(9, [0], [8], NUMBERS, num_frames=11).pointers == ((0, 9 / 10), (8, 1 / 10))
    # Backwards, what lies behind is ahead; a prompt from the other side gives its map but no pointer.
    back = recall(4, [0, 7], [5, 6], NUMBERS, reverse=True)
    assert back.slots == ((0, 6), (7, 6), (5, 0), (6, 1))
    assert back.pointers == ((7, 3 / 15), (5, 1 / 15), (6, 2 / 15))


def test_closest_conditioning_frames() -> None:
    assert closest_conditioning(10, [1, 5, 12, 30], None) == [1, 5, 12, 30]
    assert closest_conditioning(10, [1, 5, 12, 30], 2) == [5, 12]
    assert closest_conditioning(10, [1, 5, 12, 30], 3) == [5, 12, 1]
    assert closest_conditioning(40, [1, 5, 12, 30], 3) == [30, 12, 5]
    assert closest_conditioning(12, [1, 12, 30], 2) == [1, 12]  # the frame itself counts as from it on
    assert closest_conditioning(10, [13, 7, 2, 18, 11, 9], 4) == [9, 11, 13, 7]  # a tie: the one added first


def contents(feeds: dict[str, np.ndarray], row: int) -> tuple[set[tuple[float, int]], set[tuple[float, float]]]:
    """What a row of the feeds attends to: (frame, time) and (frame, distance); maps and pointers hold their frame."""
    maps, pointers = set(), set()
    for value, time, valid in zip(
        feeds["memory"][row], feeds["memory_time"][row], feeds["memory_valid"][row], strict=True
    ):
        assert valid in (0, 1)
        assert np.isfinite(value).all()
        if valid:
            maps.add((float(value[0, 0]), int(time)))
    for value, distance, valid in zip(
        feeds["object_pointers"][row], feeds["pointer_distance"][row], feeds["pointer_valid"][row], strict=True
    ):
        if valid:
            pointers.add((float(value[0]), float(distance)))
    return maps, pointers


def frame_maps(frame: int, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Maps and pointers that say which frame and object they are of."""
    values = frame + np.array(rows, np.float32) * 1000
    return np.tile(values[:, None, None], (1, 2, 3)), np.tile(values[:, None], (1, 4))


def compare(bank: MemoryBank, rows: list[int], frame: int, plain: list[tuple[dict, dict]], most: int | None) -> None:
    feeds = bank.feeds(rows, frame)
    for index, row in enumerate(rows):
        maps, pointers = official(frame, *plain[row], bank.numbers, most, False, None)
        found_maps, found_pointers = contents(feeds, index)
        assert found_maps == {(plain_value(plain[row], t), time) for t, time in maps}
        expected = {(plain_value(plain[row], t), float(np.float32(distance))) for t, distance in pointers}
        assert found_pointers == expected


def plain_value(memories: tuple[dict[int, float], dict[int, float]], frame: int) -> float:
    return {**memories[1], **memories[0]}[frame]


@settings(max_examples=60, deadline=None)
@given(numbers=rules, events=st.lists(st.sampled_from("....pPar"), min_size=5, max_size=60), data=st.data())
def test_a_bounded_bank_forgets_nothing_that_counts(
    numbers: VideoNumbers, events: list[str], data: st.DataObject
) -> None:
    """Against memories that keep everything, with as many prompts as are kept: nothing that is attended to is missing."""
    bank = MemoryBank(numbers, most_conditioning=60)
    plain: list[tuple[dict[int, float], dict[int, float]]] = []
    for frame, event in enumerate(events):
        if event == "a" or not plain:
            bank.add_object()
            plain.append(({}, {}))
        elif event == "r" and len(plain) > 1:
            row = data.draw(st.integers(0, len(plain) - 1))
            bank.remove_object(row)
            del plain[row]
        rows = list(range(len(plain)))
        known = [row for row in rows if plain[row][0]]
        if known:
            compare(bank, known, frame, plain, 60)
        prompted = [not plain[row][0] or event == "P" or (event == "p" and row % 2 == 0) for row in rows]
        bank.write(frame, rows, *frame_maps(frame, rows), prompted)
        for row, is_prompted in zip(rows, prompted, strict=True):
            plain[row][0 if is_prompted else 1][frame] = frame + row * 1000.0


@pytest.mark.parametrize("stride", [1, 3])
def test_a_bounded_bank_is_bounded(stride: int) -> None:
    """3,000 frames, a prompt now and then: the same bytes and the same number of slots at the end."""
    bank = MemoryBank(replace(NUMBERS, temporal_stride=stride), most_conditioning=3)
    for _ in range(2):
        bank.add_object()
    sizes = []
    for frame in range(3000):
        prompted = [frame == 0 or frame % 50 == 0, frame == 0]
        bank.write(frame, [0, 1], *frame_maps(frame, [0, 1]), prompted)
        sizes.append(bank.nbytes)
        if frame:
            feeds = bank.feeds([0, 1], frame + 1)
            assert feeds["memory"].shape[1] <= 3 + 6
            assert feeds["object_pointers"].shape[1] <= 3 + 15
    assert max(sizes[200:]) == max(sizes[-200:])
    assert bank.conditioning_frames(0) == (0, 2900, 2950)  # the first, and the newest
    assert bank.conditioning_frames(1) == (0,)
    assert len(bank.recent_frames(1)) == 6


def test_the_whole_block_is_fed_without_a_copy() -> None:
    bank = MemoryBank(NUMBERS, most_conditioning=4)
    for _ in range(3):
        bank.add_object()
    for frame in range(9):
        bank.write(frame, [0, 1, 2], *frame_maps(frame, [0, 1, 2]), [frame == 0] * 3)
    feeds = bank.feeds([0, 1, 2], 9)
    assert feeds["memory"].shape == (3, 7, 2, 3)
    assert np.shares_memory(bank.feeds([0, 1, 2], 9)["memory"], feeds["memory"])
    assert np.shares_memory(bank.feeds([1, 2], 9)["memory"], feeds["memory"])
    assert not np.shares_memory(bank.feeds([0, 2], 9)["memory"], feeds["memory"])
    assert {name: array.dtype.name for name, array in feeds.items()} == {
        "memory": "float32",
        "memory_time": "int32",
        "memory_valid": "float32",
        "object_pointers": "float32",
        "pointer_distance": "float32",
        "pointer_valid": "float32",
    }


def test_objects_of_different_age_are_padded() -> None:
    bank = MemoryBank(NUMBERS, most_conditioning=4)
    bank.add_object()
    for frame in range(8):
        bank.write(frame, [0], *frame_maps(frame, [0]), [frame == 0])
    bank.add_object()
    bank.write(8, [0, 1], *frame_maps(8, [0, 1]), [False, True])
    feeds = bank.feeds([0, 1], 9)
    assert feeds["memory_valid"].sum(axis=1).tolist() == [7, 1]
    assert feeds["pointer_valid"].sum(axis=1).tolist() == [9, 1]
    assert contents(feeds, 1) == ({(1008.0, 6)}, {(1008.0, float(np.float32(1 / 15)))})


def test_a_prompt_turns_a_frame_into_a_conditioning_one_and_back() -> None:
    bank = MemoryBank(NUMBERS, keep_everything=True)
    bank.add_object()
    for frame in range(4):
        bank.write(frame, [0], *frame_maps(frame, [0]), [frame == 0])
    bank.write(2, [0], *frame_maps(502, [0]), [True])
    assert bank.conditioning_frames(0) == (0, 2)
    assert bank.recent_frames(0) == (1, 3)
    assert (502.0, 6) in contents(bank.feeds([0], 4), 0)[0]
    bank.demote(0, 2)
    assert bank.conditioning_frames(0) == (0,)
    assert (502.0, 1) in contents(bank.feeds([0], 4), 0)[0]
    bank.forget(0, 2)
    assert bank.recent_frames(0) == (1, 3)
    assert {value for value, _ in contents(bank.feeds([0], 4), 0)[0]} == {0.0, 1.0, 3.0}


def test_no_pointer_at_all_is_one_that_is_not_valid() -> None:
    """Backwards from a frame before the prompt: its map counts, its pointer does not."""
    bank = MemoryBank(NUMBERS, keep_everything=True)
    bank.add_object()
    bank.write(0, [0], *frame_maps(0, [0]), [True])
    feeds = bank.feeds([0], 5, reverse=True, num_frames=6)
    assert feeds["pointer_valid"].tolist() == [[0]]
    assert feeds["memory_valid"].tolist() == [[1]]


def test_arrays_and_back() -> None:
    bank = MemoryBank(NUMBERS, most_conditioning=2)
    for _ in range(2):
        bank.add_object()
    for frame in range(25):
        bank.write(frame, [0, 1], *frame_maps(frame, [0, 1]), [frame % 7 == 0, frame == 0])
    copy = MemoryBank.from_arrays(NUMBERS, bank.to_arrays(), most_conditioning=2)
    for frame in range(25, 40):
        one, other = bank.feeds([0, 1], frame), copy.feeds([0, 1], frame)
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])
        for each in (bank, copy):
            each.write(frame, [0, 1], *frame_maps(frame, [0, 1]), [frame % 7 == 0, False])
    assert bank.nbytes == copy.nbytes


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bank_memory", lambda one: one[0], r"bank_memory of shape \(\d, 2, 3\) for 2 objects"),
        ("bank_pointers", lambda one: np.concatenate([one, one]), r"bank_pointers of shape \(4, \d, 4\) for 2 objects"),
        ("bank_table", lambda one: one[:, :4], "not enough values to unpack"),
        ("bank_table", lambda one: np.concatenate([one, one[:1]]), "row 0, slot 1$"),  # two frames in one slot
        ("bank_table", lambda one: np.add(one, [0, 0, 99, 0, 0]), "row 0, slot 100"),
        ("bank_table", lambda one: np.add(one, [0, 0, 0, -50, 0]), "row 0, slot -49"),
    ],
)
def test_arrays_that_are_no_bank(name: str, change: Any, message: str) -> None:
    bank = MemoryBank(NUMBERS, most_conditioning=2)
    for _ in range(2):
        bank.add_object()
    for frame in range(3):
        bank.write(frame, [0, 1], *frame_maps(frame, [0, 1]), [frame == 0] * 2)
    arrays = bank.to_arrays()
    with pytest.raises(ValueError, match=message):
        MemoryBank.from_arrays(NUMBERS, {**arrays, name: change(arrays[name])}, most_conditioning=2)


def test_a_frame_can_be_written_again() -> None:
    """As it is when the first attempt failed: in the same slots, whether it was and is a conditioning frame or not."""
    bank = MemoryBank(NUMBERS, most_conditioning=3)
    bank.add_object()
    for frame in range(9):
        for attempt in (100, 200, 0):
            bank.write(frame, [0], *frame_maps(frame + attempt, [0]), [frame % 4 == 0 or attempt == 100])
    assert bank.conditioning_frames(0) == (0, 4, 8)
    assert contents(bank.feeds([0], 9), 0)[0] == {(0, 6), (4, 6), (8, 6), (7, 1), (6, 2), (5, 3), (3, 5)}
    arrays = bank.to_arrays()
    assert arrays["bank_memory"].shape[1] <= 3 + 6
    assert arrays["bank_pointers"].shape[1] == 9
