"""Where memory lies: rows are objects, slots are remembered frames. What frame a slot holds, the bank knows.

A store lies where its values come from: on the host, or on the GPU whose graphs compute them; nothing has to say so. On a
GPU values are copied into their slots, and slots fed to graphs, without passing through the host.

`PackedSlots` holds few slots and changes them in place; the whole block is what the graph attends to, so nothing is
copied to feed it. `LooseSlots` holds any number and copies the few that are attended to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np

from samrt.flow import Tensor, nbytes_of, place_of, to_host
from samrt.flow import rows as rows_of
from samrt_engines.device import device_parts
from samrt_engines.device_block import DeviceBlock
from samrt_engines.tensors import Array

Block = Array | DeviceBlock
"""An array that is written in place, on the host or on a GPU."""


class Slots(Protocol):
    """Values of objects, all of one shape: (tokens, width) for memory maps, (C,) for object pointers."""

    def add_row(self) -> None:
        """Make room for another object, without memory."""

    def remove_row(self, row: int) -> None:
        """Forget an object; later ones move up."""

    def put(self, row: int, value: Tensor) -> int:
        """Store a value (1, ...), copied; returns its slot. Nothing has changed when it raises.

        On a GPU the copy may still run on return: the store holds what it is made from until it is done.
        """

    def drop(self, row: int, slot: int) -> None:
        """Free a slot."""

    def take(self, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
        """The wanted slots of some objects, for the graph; valid until the next call.

        wanted: for each of `rows`, its slots
        returns: values (rows, S, ...), and for each row the places along S of its wanted slots. What lies in other places
            is finite.
        """

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""


class PackedSlots:
    """One block (objects, slots, ...), as many slots as the object with the most needs."""

    def __init__(self, block: Block | None = None, rows: int = 0) -> None:
        """block: what is stored already, of the first objects; rows: how many objects there are"""
        self.block = block
        """(objects, slots, ...), or None before the first value. Objects without memory may be missing at its end."""
        self.used: list[set[int]] = [set() for _ in range(rows)]
        """Of each object, the slots that hold a value."""

    def add_row(self) -> None:
        self.used.append(set())

    def remove_row(self, row: int) -> None:
        if self.block is not None and row < self.block.shape[0]:
            kept = [one for one in range(self.block.shape[0]) if one != row]
            self.block = _fitted(self.block, kept, len(kept), self.block.shape[1]) if kept else None
        del self.used[row]

    def put(self, row: int, value: Tensor) -> int:
        slot = next(index for index in count() if index not in self.used[row])
        if self.block is None:
            self.block = _zeros((len(self.used), slot + 1, *value.shape[1:]), value.dtype, place_of(value))
        else:
            objects, slots = self.block.shape[:2]
            place = place_of(self.block) if isinstance(value, np.ndarray) else place_of(value)
            if row >= objects or slot >= slots or place != place_of(self.block):
                objects, slots = max(objects, len(self.used)), max(slots, slot + 1)
                self.block = _fitted(self.block, range(self.block.shape[0]), objects, slots, place)
        _write(self.block, value, row, slot)
        self.used[row].add(slot)
        return slot

    def drop(self, row: int, slot: int) -> None:
        self.used[row].remove(slot)

    def take(self, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
        assert self.block is not None
        places = [list(slots) for slots in wanted]
        start, stop = rows[0], rows[0] + len(rows)
        assert max(rows) < self.block.shape[0], "an object that remembers nothing"
        if list(rows) == list(range(start, stop)):
            return rows_of(self.block, start, stop), places
        return _fitted(self.block, rows, len(rows), self.block.shape[1]), places

    @property
    def nbytes(self) -> int:
        return 0 if self.block is None else nbytes_of(self.block)


class LooseSlots:
    """Each value an array of its own."""

    def __init__(self, *, on_host: bool = False) -> None:
        """on_host: keep all in host memory, wherever it comes from, and copy what is wanted to the GPU each time"""
        self._on_host = on_host
        self._place = "cpu"  # a GPU, once a value came from there
        self._values: list[dict[int, Block]] = []
        self._next = count()
        self._buffer: Block | None = None

    def add_row(self) -> None:
        self._values.append({})

    def remove_row(self, row: int) -> None:
        del self._values[row]

    def put(self, row: int, value: Tensor) -> int:
        if self._on_host:
            value = to_host(value)
        if not isinstance(value, np.ndarray):
            self._place = place_of(value)
        # Not a view: that would keep the values of all other objects.
        kept = _zeros(value.shape[1:], value.dtype, self._place)
        _write(kept, value)
        if isinstance(kept, DeviceBlock):
            kept.wait()  # it may never be read, and would hold the values of all objects until then
        slot = next(self._next)
        self._values[row][slot] = kept
        return slot

    def drop(self, row: int, slot: int) -> None:
        del self._values[row][slot]

    def take(self, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
        example = next(iter(next(values for values in self._values if values).values()))
        shape = (len(rows), max(1, *map(len, wanted), 1), *example.shape)
        buffer = self._buffer
        if buffer is None or (buffer.shape, buffer.dtype, place_of(buffer)) != (shape, example.dtype, self._place):
            buffer = self._buffer = _zeros(shape, example.dtype, self._place)
        for index, (row, slots) in enumerate(zip(rows, wanted, strict=True)):
            for place, slot in enumerate(slots):
                _write(buffer, self._values[row][slot], index, place)
        return buffer, [list(range(len(slots))) for slots in wanted]

    @property
    def nbytes(self) -> int:
        return sum(nbytes_of(one) for values in self._values for one in values.values())


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> Block:
    """place: as `samrt.flow.place_of` says it"""
    kind, index = device_parts(place)
    return np.zeros(shape, dtype) if kind == "cpu" else DeviceBlock(shape, dtype, index)


def _write(block: Block, value: Tensor, *at: int) -> None:
    """Copy a value into block[at], from its start as far as the value goes."""
    if isinstance(block, np.ndarray):
        size = math.prod(value.shape)
        block[at].reshape(-1)[:size] = to_host(value).reshape(-1)
    else:
        block.write(value, *at)


def _fitted(block: Block, kept: Sequence[int], objects: int, slots: int, place: str | None = None) -> Block:
    """Some rows of a block, first of a new one of this many objects and slots, which are not fewer."""
    fitted = _zeros((objects, slots, *block.shape[2:]), block.dtype, place_of(block) if place is None else place)
    for index, row in enumerate(kept):
        _write(fitted, block[row] if isinstance(block, np.ndarray) else block.part(row), index)
    return fitted
