"""Which voxels attend to each other: those in one box of the grid."""

from dataclasses import dataclass

import numpy as np

from samrt.sparse.coords import Int32Array, flat_index


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Voxels sorted into boxes, and back. W boxes hold voxels, L the fullest of them."""

    members: Int32Array  # (W, L) the rows in each box, one-based, rising; 0 after the last
    slots: Int32Array  # (N,) where in the flattened `members` each row is


def partition(coords: Int32Array, *, window: int, shift: int) -> Windows:
    """Sort voxels into boxes of `window` voxels along each side; voxel c is in box floor((c + shift) / window).

    coords: (N, 3), checked. Boxes follow each other in lexicographic order; empty ones are left out. Without voxels there
        are no boxes.
    """
    count = len(coords)
    if count == 0:
        return Windows(np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
    box = (coords + shift) // window
    key = flat_index(box, int(box.max()) + 1)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[first, count])
    longest = int(lengths.max())
    # The k-th voxel of the w-th box goes to slot w * longest + k.
    slot_of_box = np.arange(len(first)) * longest - first
    ordered_slots = np.repeat(slot_of_box, lengths) + np.arange(count)
    slots = np.empty(count, np.int32)
    slots[order] = ordered_slots
    members = np.zeros((len(first), longest), np.int32)
    members.reshape(-1)[slots] = np.arange(1, count + 1, dtype=np.int32)
    members.flags.writeable = slots.flags.writeable = False
    return Windows(members, slots)
