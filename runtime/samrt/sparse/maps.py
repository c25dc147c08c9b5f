"""The index maps of a set of voxels, under the names that the graphs' inputs have.

A map whose entries may miss counts rows from one, and 0 stands for a row of zeros that the graph puts in front of its
features. A map that never misses counts from zero. N voxels, C coarse voxels (twice as large), W and L as in `Windows`:

| name                                 | shape             | entry                                                        |
|--------------------------------------|-------------------|--------------------------------------------------------------|
| coords                               | int32 (N, 3)      | x, y, z                                                      |
| neighbours                           | int32 (N, 27)     | row of coords[i] + (dx, dy, dz), one-based;                  |
|                                      |                   | column ((dx + 1) * 3 + dy + 1) * 3 + dz + 1                  |
| coarse_coords                        | int32 (C, 3)      | the distinct coords // 2, in lexicographic order             |
| coarse_neighbours                    | int32 (C, 27)     | as neighbours, among the coarse voxels                       |
| children                             | int32 (C, 8)      | row of 2 * coarse_coords[j] + (cx, cy, cz), one-based;       |
|                                      |                   | column 4 cx + 2 cy + cz                                      |
| children_inverse                     | float32 (C, 1)    | 1 / (children + 1): the models' mean counts a row of zeros   |
| parents                              | int32 (N,)        | row of coords[i] // 2 in coarse_coords, zero-based           |
| windows, shifted_windows             | int32 (W, L)      | `Windows.members`, unshifted and shifted by half a window    |
| window_slots, shifted_window_slots   | int32 (N,)        | `Windows.slots`, zero-based                                  |
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from samrt.sparse.coords import Int32Array, check_coords, flat_index, row_table
from samrt.sparse.windows import Windows, partition
from samrt_engines.errors import InputError

Float32Array = NDArray[np.float32]
ArrayT = TypeVar("ArrayT", bound=NDArray[Any])

MAP_NAMES = (
    "coords",
    "neighbours",
    "coarse_coords",
    "coarse_neighbours",
    "children",
    "children_inverse",
    "parents",
    "windows",
    "window_slots",
    "shifted_windows",
    "shifted_window_slots",
)

_STEPS = np.indices((3, 3, 3)).reshape(3, 27).T - 1  # (27, 3), the tap of each column


@dataclass(frozen=True, eq=False)
class SparseMaps:
    """The maps of the module's table. Each is computed when it is first read, and kept."""

    coords: Int32Array = field(repr=False)
    grid: int
    window: int

    @classmethod
    def from_coords(cls, coords: NDArray[Any], *, grid: int, window: int = 8) -> Self:
        """Take the voxels of a model's latent.

        coords: integers (N, 3), x, y, z, each 0..grid - 1, no voxel twice. Rows may be in any order; the models' is
            lexicographic.
        grid: voxels along one axis
        window: voxels along the side of an attention window; shifted windows are moved by half of it
        Raises InputError for coordinates that are not such, and for a window below 1.
        """
        if window < 1:
            raise InputError("the attention window has no voxels", got=str(window), expected="1 or more along its side")
        return cls(check_coords(coords, grid), grid, window)

    def feeds(self, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return the maps among `names`, the inputs of a graph; the other inputs are the caller's."""
        return {name: getattr(self, name) for name in names if name in MAP_NAMES}

    @cached_property
    def neighbours(self) -> Int32Array:
        return _neighbours(self.coords, self.grid)

    @cached_property
    def coarse_coords(self) -> Int32Array:
        return self._coarse[0]

    @cached_property
    def parents(self) -> Int32Array:
        return self._coarse[1]

    @cached_property
    def coarse_neighbours(self) -> Int32Array:
        return _neighbours(self.coarse_coords, self._coarse_grid)

    @cached_property
    def children(self) -> Int32Array:
        x, y, z = (self.coords & 1).T
        children = np.zeros((len(self.coarse_coords), 8), np.int32)
        children[self.parents, 4 * x + 2 * y + z] = np.arange(1, len(self.coords) + 1, dtype=np.int32)
        return _frozen(children)

    @cached_property
    def children_inverse(self) -> Float32Array:
        count = np.count_nonzero(self.children, axis=1, keepdims=True).astype(np.float32)
        return _frozen(np.float32(1) / (count + np.float32(1)))

    @property
    def windows(self) -> Int32Array:
        return self._windows.members

    @property
    def window_slots(self) -> Int32Array:
        return self._windows.slots

    @property
    def shifted_windows(self) -> Int32Array:
        return self._shifted_windows.members

    @property
    def shifted_window_slots(self) -> Int32Array:
        return self._shifted_windows.slots

    @property
    def _coarse_grid(self) -> int:
        return (self.grid + 1) // 2

    @cached_property
    def _coarse(self) -> tuple[Int32Array, Int32Array]:
        """The coarse voxels, and which of them each voxel lies in."""
        size = self._coarse_grid
        key = flat_index(self.coords // 2, size)
        occupied = np.zeros(size**3, np.bool_)
        occupied[key] = True
        found = np.flatnonzero(occupied)
        coarse = np.stack(np.unravel_index(found, (size,) * 3), axis=1).astype(np.int32)
        row = np.zeros(size**3, np.int32)
        row[found] = np.arange(len(found), dtype=np.int32)
        return _frozen(coarse), _frozen(row[key])

    @cached_property
    def _windows(self) -> Windows:
        return partition(self.coords, window=self.window, shift=0)

    @cached_property
    def _shifted_windows(self) -> Windows:
        return partition(self.coords, window=self.window, shift=self.window // 2)


def _neighbours(coords: Int32Array, grid: int) -> Int32Array:
    size = grid + 2
    table = row_table(coords, grid, margin=1)
    centre = flat_index(coords + 1, size)
    return _frozen(table[centre[:, None] + _STEPS @ np.array([size * size, size, 1])])


def _frozen(array: ArrayT) -> ArrayT:
    """Make an array read-only: it is kept, and handed to many."""
    array.flags.writeable = False
    return array
