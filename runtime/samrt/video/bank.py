"""What tracked objects remember: memory maps and object pointers of some frames, for all objects of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from samrt.flow import Tensor, to_host
from samrt.flow import rows as rows_of
from samrt.numbers import VideoNumbers
from samrt.video.rules import Recall, is_pointer_needed, is_still_needed, recall
from samrt.video.slots import LooseSlots, PackedSlots, Slots
from samrt_engines.tensors import Array

_NO_SLOT = -1  # the memory map is gone where the pointer still counts, or the other way round


@dataclass(slots=True)
class _Row:
    """What one object remembers. Frame -> slot, in the order the frames were added."""

    conditioning: dict[int, int] = field(default_factory=dict)
    """Of memory maps."""
    recent: dict[int, int] = field(default_factory=dict)
    """Of memory maps."""
    pointers: dict[int, int] = field(default_factory=dict)


class MemoryBank:
    """Memory of K objects. Objects are rows 0 to K - 1; a removed one makes the later ones move up.

    A bank that does not keep everything is bounded: whatever comes, an object has at most `most_conditioning`
    conditioning frames, the first and the newest ones, ``recent_frames`` recent memory maps and
    ``max_object_pointers`` - 1 recent pointers. It holds exactly what tracking forwards will attend to.

    Maps and pointers stay where the graphs leave them: on a GPU they never come to the host, but to be saved.
    """

    def __init__(
        self,
        numbers: VideoNumbers,
        *,
        most_conditioning: int | None = None,
        keep_everything: bool = False,
        on_host: bool = False,
    ) -> None:
        """numbers: the model's rules.

        most_conditioning: conditioning frames attended to, and kept, at most; None is all
        keep_everything: forget nothing, for tracking from any frame in any direction
        on_host: with `keep_everything`, keep it in host memory even where it is computed on a GPU
        """
        self.numbers = numbers
        self.most_conditioning = most_conditioning
        self.keep_everything = keep_everything
        self._maps: Slots = LooseSlots(on_host=on_host) if keep_everything else PackedSlots()
        self._pointers: Slots = LooseSlots(on_host=on_host) if keep_everything else PackedSlots()
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        """The number of objects, K."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Memory taken by maps and pointers, in bytes."""
        return self._maps.nbytes + self._pointers.nbytes

    def add_object(self) -> int:
        """Add an object that remembers nothing. Returns its row."""
        self._maps.add_row()
        self._pointers.add_row()
        self._rows.append(_Row())
        return len(self._rows) - 1

    def remove_object(self, row: int) -> None:
        """Forget an object."""
        self._maps.remove_row(row)
        self._pointers.remove_row(row)
        del self._rows[row]

    def conditioning_frames(self, row: int) -> tuple[int, ...]:
        """The conditioning frames of an object, in the order they were added."""
        return tuple(self._rows[row].conditioning)

    def recent_frames(self, row: int) -> tuple[int, ...]:
        """All other frames of which an object remembers a map, in the order they were added."""
        return tuple(frame for frame, slot in self._rows[row].recent.items() if slot != _NO_SLOT)

    def write(
        self, frame: int, rows: Sequence[int], memory: Tensor, pointers: Tensor, conditioning: Sequence[bool]
    ) -> None:
        """Remember a frame, for some objects; what they remembered of it before is replaced.

        memory: (rows, tokens, width); pointers: (rows, C); on the host or a GPU, copied
        conditioning: for each of `rows`, whether somebody pointed it out there
        Raises DeviceError when a GPU's memory is short; the frame can be written again.
        """
        for index, row in enumerate(rows):
            known = self._rows[row]
            self._release(row, frame, keep_order=conditioning[index])
            if not self.keep_everything:
                self._prune(row, frame, conditioning[index])
            kind = known.conditioning if conditioning[index] else known.recent
            kind[frame] = self._maps.put(row, rows_of(memory, index, index + 1))
            known.pointers[frame] = self._pointers.put(row, rows_of(pointers, index, index + 1))

    def forget(self, row: int, frame: int) -> None:
        """Forget one frame of an object, if it is remembered."""
        self._release(row, frame)
        self._rows[row].conditioning.pop(frame, None)

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
    ) -> dict[str, Tensor]:
        """The memory attention's inputs for some objects at a frame; valid until the bank changes.

        returns: memory (rows, S, tokens, width); memory_time int32, memory_valid float32 (rows, S); object_pointers
            (rows, P, C); pointer_distance, pointer_valid float32 (rows, P). S and P are what the object with the most
            needs; others have places that are not valid. memory and object_pointers lie where the bank does.
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
        memory, places = self._maps.take(rows, wanted)
        time, valid = np.zeros(memory.shape[:2], np.int32), np.zeros(memory.shape[:2], np.float32)
        for index, place in enumerate(places):
            time[index, place] = times[index]
            valid[index, place] = 1
        feeds: dict[str, Tensor] = {"memory": memory, "memory_time": time, "memory_valid": valid}
        return feeds | self._pointer_feeds(rows, recalls)

    def _pointer_feeds(self, rows: Sequence[int], recalls: Sequence[Recall]) -> dict[str, Tensor]:
        wanted = [
            [self._rows[row].pointers[frame] for frame, _ in one.pointers]
            for row, one in zip(rows, recalls, strict=True)
        ]
        pointers, places = self._pointers.take(rows, wanted)
        distance, valid = np.zeros((2, *pointers.shape[:2]), np.float32)
        for index, (one, place) in enumerate(zip(recalls, places, strict=True)):
            distance[index, place] = [value for _, value in one.pointers]
            valid[index, place] = 1
        return {"object_pointers": pointers, "pointer_distance": distance, "pointer_valid": valid}

    def to_arrays(self) -> dict[str, Array]:
        """A bounded bank as plain arrays on the host: `from_arrays` makes the same bank of them."""
        assert isinstance(self._maps, PackedSlots)
        assert isinstance(self._pointers, PackedSlots)
        table = np.array(list(self._entries()), np.int64).reshape(-1, 5)
        arrays = {"bank_objects": np.array(len(self)), "bank_table": table}
        if self._maps.block is not None and self._pointers.block is not None:
            arrays["bank_memory"] = to_host(self._maps.block)
            arrays["bank_pointers"] = to_host(self._pointers.block)
        return arrays

    @classmethod
    def from_arrays(
        cls, numbers: VideoNumbers, arrays: Mapping[str, Array], *, most_conditioning: int | None = None
    ) -> Self:
        """The bank that `to_arrays` was asked of. Raises KeyError, ValueError or IndexError for arrays that are not.

        It is on the host until a frame is remembered from a GPU.
        """
        bank = cls(numbers, most_conditioning=most_conditioning)
        objects = int(arrays["bank_objects"])
        bank._rows = [_Row() for _ in range(objects)]
        maps, pointers = PackedSlots(rows=objects), PackedSlots(rows=objects)
        bank._maps, bank._pointers = maps, pointers
        if "bank_memory" not in arrays:
            return bank
        maps.block = _block(arrays, "bank_memory", 4, objects)
        pointers.block = _block(arrays, "bank_pointers", 3, objects)
        for row, frame, slot, pointer, is_conditioning in arrays["bank_table"].tolist():
            known = bank._rows[row]
            (known.conditioning if is_conditioning else known.recent)[frame] = slot
            if slot != _NO_SLOT:
                _use(maps, maps.block, row, slot)
            if pointer != _NO_SLOT:
                known.pointers[frame] = pointer
                _use(pointers, pointers.block, row, pointer)
        return bank

    def _entries(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(row, frame, its map's slot, its pointer's, whether conditioning) of all that is remembered, in order."""
        for index, row in enumerate(self._rows):
            for is_conditioning, kind in enumerate((row.recent, row.conditioning)):
                for frame, slot in kind.items():
                    yield index, frame, slot, row.pointers.get(frame, _NO_SLOT), is_conditioning

    def _release(self, row: int, frame: int, keep_order: bool = False) -> None:
        """Free the slots of a frame. With `keep_order` a conditioning frame keeps its place among the others."""
        known = self._rows[row]
        slot = known.recent.pop(frame, known.conditioning.get(frame, _NO_SLOT))
        if slot != _NO_SLOT:
            self._maps.drop(row, slot)
        if frame in known.pointers:
            self._pointers.drop(row, known.pointers.pop(frame))
        if not keep_order:
            known.conditioning.pop(frame, None)
        elif frame in known.conditioning:
            known.conditioning[frame] = _NO_SLOT

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
                self._maps.drop(row, slot)
                known.recent[frame] = slot = _NO_SLOT
            if frame in known.pointers and not is_pointer_needed(frame, now, self.numbers):
                self._pointers.drop(row, known.pointers.pop(frame))
            if slot == _NO_SLOT and frame not in known.pointers:
                del known.recent[frame]


def _block(arrays: Mapping[str, Array], name: str, rank: int, objects: int) -> Array:
    """A saved block of slots. Raises ValueError for one that is none, KeyError."""
    block = np.ascontiguousarray(arrays[name])
    if block.ndim != rank or len(block) > objects:
        raise ValueError(f"{name} of shape {block.shape} for {objects} objects")
    return block


def _use(slots: PackedSlots, block: Array, row: int, slot: int) -> None:
    """Say that a slot is taken. Raises ValueError for one that is not there, or taken already."""
    if not (0 <= row < len(block) and 0 <= slot < block.shape[1]) or slot in slots.used[row]:
        raise ValueError(f"row {row}, slot {slot}")
    slots.used[row].add(slot)
