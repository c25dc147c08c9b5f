"""What tracked objects remember: memory maps and object pointers of some frames, for all objects of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samrt.numbers import VideoNumbers
from samrt.video.rules import Recall, is_pointer_needed, is_still_needed, recall
from samrt.video.slots import LooseSlots, PackedSlots, Slots
from samrt_engines.tensors import Array

_NO_SLOT = -1  # the memory map is gone, the pointer still counts


@dataclass(slots=True)
class _Row:
    """What one object remembers. Frame -> slot of its memory map, in the order the frames were added."""

    conditioning: dict[int, int] = field(default_factory=dict)
    recent: dict[int, int] = field(default_factory=dict)
    pointers: dict[int, NDArray[Any]] = field(default_factory=dict)


class MemoryBank:
    """Memory of K objects. Objects are rows 0 to K - 1; a removed one makes the later ones move up.

    A bank that does not keep everything is bounded: whatever comes, an object has at most `most_conditioning`
    conditioning frames, the first and the newest ones, ``recent_frames`` recent memory maps and
    ``max_object_pointers`` - 1 recent pointers. It holds exactly what tracking forwards will attend to.
    """

    def __init__(
        self, numbers: VideoNumbers, *, most_conditioning: int | None = None, keep_everything: bool = False
    ) -> None:
        """numbers: the model's rules.

        most_conditioning: conditioning frames attended to, and kept, at most; None is all
        keep_everything: forget nothing, for tracking from any frame in any direction
        """
        self.numbers = numbers
        self.most_conditioning = most_conditioning
        self.keep_everything = keep_everything
        self._slots: Slots = LooseSlots() if keep_everything else PackedSlots()
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        """The number of objects, K."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Memory taken by maps and pointers, in bytes."""
        return self._slots.nbytes + sum(one.nbytes for row in self._rows for one in row.pointers.values())

    def add_object(self) -> int:
        """Add an object that remembers nothing. Returns its row."""
        self._slots.add_row()
        self._rows.append(_Row())
        return len(self._rows) - 1

    def remove_object(self, row: int) -> None:
        """Forget an object."""
        self._slots.remove_row(row)
        del self._rows[row]

    def conditioning_frames(self, row: int) -> tuple[int, ...]:
        """The conditioning frames of an object, in the order they were added."""
        return tuple(self._rows[row].conditioning)

    def recent_frames(self, row: int) -> tuple[int, ...]:
        """All other frames of which an object remembers a map, in the order they were added."""
        return tuple(frame for frame, slot in self._rows[row].recent.items() if slot != _NO_SLOT)

    def write(
        self, frame: int, rows: Sequence[int], memory: Array, pointers: Array, conditioning: Sequence[bool]
    ) -> None:
        """Remember a frame, for some objects; what they remembered of it before is replaced.

        memory: (rows, tokens, width); pointers: (rows, C)
        conditioning: for each of `rows`, whether somebody pointed it out there
        """
        for index, row in enumerate(rows):
            known = self._rows[row]
            self._release(row, frame, keep_order=conditioning[index])
            if not self.keep_everything:
                self._prune(row, frame, conditioning[index])
            kind = known.conditioning if conditioning[index] else known.recent
            kind[frame] = self._slots.put(row, memory[index])
            known.pointers[frame] = np.array(pointers[index])

    def forget(self, row: int, frame: int) -> None:
        """Forget one frame of an object, if it is remembered."""
        self._release(row, frame)
        self._rows[row].conditioning.pop(frame, None)
        self._rows[row].pointers.pop(frame, None)

    def demote(self, row: int, frame: int) -> None:
        """Make a conditioning frame a recent one."""
        known = self._rows[row]
        known.recent[frame] = known.conditioning.pop(frame)

    def recall(self, row: int, frame: int, *, reverse: bool = False, num_frames: int | None = None) -> Recall:
        """What an object attends to at a frame: see `samrt.video.rules`."""
        known = self._rows[row]
        return recall(
            frame,
            known.conditioning,
            known.recent,
            self.numbers,
            most_conditioning=self.most_conditioning,
            reverse=reverse,
            num_frames=num_frames,
        )

    def feeds(
        self, rows: Sequence[int], frame: int, *, reverse: bool = False, num_frames: int | None = None
    ) -> dict[str, Array]:
        """The memory attention's inputs for some objects at a frame; valid until the bank changes.

        returns: memory (rows, S, tokens, width); memory_time int32, memory_valid float32 (rows, S); object_pointers
            (rows, P, C); pointer_distance, pointer_valid float32 (rows, P). S and P are what the object with the most
            needs; others have places that are not valid.
        """
        recalls = [self.recall(row, frame, reverse=reverse, num_frames=num_frames) for row in rows]
        known = [self._rows[row] for row in rows]
        times: list[list[int]] = []
        wanted: list[list[int]] = []
        for one, memories in zip(recalls, known, strict=True):
            slots = {**memories.recent, **memories.conditioning}
            there = [(slots[at], time) for at, time in one.slots if slots[at] != _NO_SLOT]
            wanted.append([slot for slot, _ in there])
            times.append([time for _, time in there])
        memory, places = self._slots.take(rows, wanted)
        time, valid = np.zeros(memory.shape[:2], np.int32), np.zeros(memory.shape[:2], np.float32)
        for index, place in enumerate(places):
            time[index, place] = times[index]
            valid[index, place] = 1
        return {"memory": memory, "memory_time": time, "memory_valid": valid} | _pointer_feeds(recalls, known)

    def to_arrays(self) -> dict[str, Array]:
        """A bounded bank as plain arrays: `from_arrays` makes the same bank of them."""
        assert isinstance(self._slots, PackedSlots)
        table = list(self._entries())
        arrays = {"bank_objects": np.array(len(self)), "bank_table": np.array(table, np.int64).reshape(-1, 4)}
        if self._slots.block is not None:
            arrays["bank_memory"] = self._slots.block
            arrays["bank_pointers"] = np.stack([self._rows[row].pointers[frame] for row, frame, _, _ in table])
        return arrays

    @classmethod
    def from_arrays(
        cls, numbers: VideoNumbers, arrays: Mapping[str, Array], *, most_conditioning: int | None = None
    ) -> Self:
        """The bank that `to_arrays` was asked of. Raises KeyError, ValueError or IndexError for arrays that are not."""
        bank = cls(numbers, most_conditioning=most_conditioning)
        slots = PackedSlots()
        for _ in range(int(arrays["bank_objects"])):
            slots.used.append(set())
            bank._rows.append(_Row())
        if "bank_memory" in arrays:
            slots.block = np.ascontiguousarray(arrays["bank_memory"])
            if slots.block.ndim != 4 or len(slots.block) != len(bank):
                raise ValueError(f"bank_memory of shape {slots.block.shape} for {len(bank)} objects")
            pointers = arrays["bank_pointers"]
            for (row, frame, slot, is_conditioning), pointer in zip(
                arrays["bank_table"].tolist(), pointers, strict=True
            ):
                if not (0 <= row < len(bank) and _NO_SLOT <= slot < slots.block.shape[1]):
                    raise ValueError(f"row {row}, slot {slot}")
                known = bank._rows[row]
                (known.conditioning if is_conditioning else known.recent)[frame] = slot
                known.pointers[frame] = np.array(pointer)
                if slot != _NO_SLOT:
                    slots.used[row].add(slot)
        bank._slots = slots
        return bank

    def _entries(self) -> Iterator[tuple[int, int, int, int]]:
        """(row, frame, slot, whether conditioning) of all that is remembered, in order."""
        for index, row in enumerate(self._rows):
            for is_conditioning, kind in enumerate((row.recent, row.conditioning)):
                for frame, slot in kind.items():
                    yield index, frame, slot, is_conditioning

    def _release(self, row: int, frame: int, keep_order: bool = False) -> None:
        """Free the slot of a frame. With `keep_order` a conditioning frame keeps its place among the others."""
        known = self._rows[row]
        slot = known.recent.pop(frame, known.conditioning.get(frame, _NO_SLOT))
        if slot != _NO_SLOT:
            self._slots.drop(row, slot)
        if not keep_order:
            known.conditioning.pop(frame, None)

    def _prune(self, row: int, now: int, adds_conditioning: bool) -> None:
        """Forget what no frame after `now` attends to, before `now` itself is written."""
        known = self._rows[row]
        others = [frame for frame in known.conditioning if frame != now]
        most = self.most_conditioning
        if adds_conditioning and most is not None and len(others) >= most:
            kept = [others[0], *others[1:][len(others) - most + 1 :]] if most > 1 else []
            for frame in set(others) - set(kept):
                self.demote(row, frame)
        for frame, slot in list(known.recent.items()):
            if slot != _NO_SLOT and not is_still_needed(frame, now, self.numbers):
                self._slots.drop(row, slot)
                known.recent[frame] = slot = _NO_SLOT
            if slot == _NO_SLOT and not is_pointer_needed(frame, now, self.numbers):
                del known.recent[frame], known.pointers[frame]


def _pointer_feeds(recalls: Sequence[Recall], known: Sequence[_Row]) -> dict[str, Array]:
    most = max(1, *(len(one.pointers) for one in recalls))
    example = next(iter(known[0].pointers.values()))
    pointers = np.zeros((len(known), most, *example.shape), example.dtype)
    distance, valid = np.zeros((2, len(known), most), np.float32)
    for index, (one, row) in enumerate(zip(recalls, known, strict=True)):
        for place, (frame, value) in enumerate(one.pointers):
            pointers[index, place] = row.pointers[frame]
            distance[index, place] = value
            valid[index, place] = 1
    return {"object_pointers": pointers, "pointer_distance": distance, "pointer_valid": valid}
