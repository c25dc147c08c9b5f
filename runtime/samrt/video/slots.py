"""Where memory maps lie: rows are objects, slots are remembered frames. What frame a slot holds, the bank knows.

`PackedSlots` holds few slots and changes them in place; the whole block is what the graph attends to, so nothing is
copied to feed it. `LooseSlots` holds any number and copies the few that are attended to. A store in a GPU's memory needs
the same five calls and is all that is missing to keep a bank there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Protocol

import numpy as np

from samrt_engines.tensors import Array


class Slots(Protocol):
    """Memory maps of objects."""

    def add_row(self) -> None:
        """Make room for another object, without memory."""

    def remove_row(self, row: int) -> None:
        """Forget an object; later ones move up."""

    def put(self, row: int, value: Array) -> int:
        """Store a map (tokens, width), copied; returns its slot."""

    def drop(self, row: int, slot: int) -> None:
        """Free a slot."""

    def take(self, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> tuple[Array, list[list[int]]]:
        """The wanted slots of some objects, for the graph; valid until the next call.

        wanted: for each of `rows`, its slots
        returns: maps (rows, S, tokens, width), and for each row the places along S of its wanted slots. What lies in
            other places is finite.
        """

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""


class PackedSlots:
    """One block (objects, slots, tokens, width), as many slots as the object with the most needs."""

    def __init__(self) -> None:
        self.block: Array | None = None
        """(objects, slots, tokens, width), or None before the first map."""
        self.used: list[set[int]] = []
        """Of each object, the slots that hold a map."""

    def add_row(self) -> None:
        self.used.append(set())
        if self.block is not None:
            self._resize(self.block.shape[1])

    def remove_row(self, row: int) -> None:
        del self.used[row]
        if self.block is not None:
            self.block = np.delete(self.block, row, axis=0) if self.used else None

    def put(self, row: int, value: Array) -> int:
        slot = next(index for index in count() if index not in self.used[row])
        if self.block is None:
            self.block = np.zeros((len(self.used), slot + 1, *value.shape), value.dtype)
        elif slot >= self.block.shape[1]:
            self._resize(slot + 1)
        self.block[row, slot] = value
        self.used[row].add(slot)
        return slot

    def drop(self, row: int, slot: int) -> None:
        self.used[row].remove(slot)

    def take(self, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> tuple[Array, list[list[int]]]:
        assert self.block is not None
        start = rows[0]
        is_range = list(rows) == list(range(start, start + len(rows)))
        block = self.block[start : start + len(rows)] if is_range else self.block[list(rows)]
        return block, [list(slots) for slots in wanted]

    @property
    def nbytes(self) -> int:
        return 0 if self.block is None else self.block.nbytes

    def _resize(self, slots: int) -> None:
        """Make the block fit `used` and this number of slots, keeping what it holds. Rare: when something is added."""
        assert self.block is not None
        old = self.block
        self.block = np.zeros((len(self.used), slots, *old.shape[2:]), old.dtype)
        self.block[: len(old), : old.shape[1]] = old


class LooseSlots:
    """Each map an array of its own."""

    def __init__(self) -> None:
        self._maps: list[dict[int, Array]] = []
        self._next = count()
        self._buffer = np.zeros((0, 0, 0, 0), np.float32)

    def add_row(self) -> None:
        self._maps.append({})

    def remove_row(self, row: int) -> None:
        del self._maps[row]

    def put(self, row: int, value: Array) -> int:
        slot = next(self._next)
        self._maps[row][slot] = value.copy()  # not a view: that would keep the maps of all other objects
        return slot

    def drop(self, row: int, slot: int) -> None:
        del self._maps[row][slot]

    def take(self, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> tuple[Array, list[list[int]]]:
        example = next(iter(next(maps for maps in self._maps if maps).values()))
        shape = (len(rows), max(1, *map(len, wanted), 1), *example.shape)
        if self._buffer.shape != shape or self._buffer.dtype != example.dtype:
            self._buffer = np.zeros(shape, example.dtype)
        for index, (row, slots) in enumerate(zip(rows, wanted, strict=True)):
            for place, slot in enumerate(slots):
                self._buffer[index, place] = self._maps[row][slot]
        return self._buffer, [list(range(len(slots))) for slots in wanted]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for maps in self._maps for one in maps.values())
