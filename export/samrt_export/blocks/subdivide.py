"""Sparse grids that are split in eight: what a convolution is after a subdivision, and group norms over all rows.

Voxel p becomes the rows 8 p + c, child c = 4 cx + 2 cy + cz at twice the coordinate plus (cx, cy, cz). All that a child's
3x3x3 neighbourhood needs is known from its parent's: child c finds its tap k in child ``CHILD[c, k]`` of the parent's
neighbour ``PARENT_TAP[c, k]``. So no map of the fine grids is an input, and a convolution of children is eight products over
parents, one for each octant, which touches 8 of the 27 coarse voxels around:

- right after a subdivision all children of a voxel are alike (`SubdivideConv`): kernels of taps that fall into the same
  coarse voxel are added beforehand, 8 are left of 27;
- otherwise (`ChildrenConv`) its 27 taps are 27 children, 64 among all octants.

A product is cut where its gathered rows would be larger than the result, which then is the largest tensor but for a zero row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, product
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.sparse_conv import (
    TAPS,
    PointwiseConv3d,
    SparseConv3d,
    constants,
    sum_of_products,
    tap_matrices,
    with_zero_row,
)

OCTANTS = 8
COARSE_AT_ONCE = 4
"""Coarse voxels that one product of `SubdivideConv` takes together: 8 are a whole octant's."""
CHILDREN_AT_ONCE = 7
"""Children that one product of `ChildrenConv` takes together: 27 are a whole octant's. Nines would be planes, which octants have
in common: ONNX Runtime would gather them once, and keep them from one octant to the next at twice the memory."""


Item = TypeVar("Item")


def _tables() -> tuple[list[list[int]], list[list[int]]]:
    parent_tap, child = [], []
    for octant in product((0, 1), repeat=3):
        parent_tap.append([0] * TAPS)
        child.append([0] * TAPS)
        for tap, offset in enumerate(product((-1, 0, 1), repeat=3)):
            fine = [bit + step for bit, step in zip(octant, offset, strict=True)]  # -1..2
            for axis in fine:
                parent_tap[-1][tap] = parent_tap[-1][tap] * 3 + axis // 2 + 1
                child[-1][tap] = child[-1][tap] * 2 + axis % 2
    return parent_tap, child


PARENT_TAP, CHILD = _tables()
"""[octant][tap] -> tap of the parent, and child there."""


def _taps_in(octant: int, parent_tap: int) -> list[int]:
    """The taps of an octant that fall into one coarse voxel."""
    return [tap for tap in range(TAPS) if PARENT_TAP[octant][tap] == parent_tap]


def fine_neighbours(neighbours: Tensor) -> Tensor:
    """int32 (N, 27) one-based -> int32 (8 N, 27) one-based, of the children."""
    pairs = zip(chain(*PARENT_TAP), chain(*CHILD), strict=True)
    return children_rows(neighbours, tuple(pairs)).view(-1, TAPS)


def batched(items: Sequence[Item], count: int) -> Iterator[Sequence[Item]]:
    """Runs of ``count`` items, the last one perhaps shorter."""
    return (items[start : start + count] for start in range(0, len(items), count))


def children_rows(neighbours: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """One-based rows of children of neighbours: neighbours: int32 (N, 27) one-based; pairs: (tap, child) -> int32 (N, pairs).

    Row r, one-based, has children 8 r - 7 + c; the missing row 0 makes those negative or 0, which is 0 again.
    """
    taps, child = zip(*pairs, strict=True)
    offset = torch.tensor(child, dtype=torch.int32, device=neighbours.device) - 7
    return (columns(neighbours, taps) * OCTANTS + offset).clamp_min(0)


def columns(rows: Tensor, chosen: Sequence[int]) -> Tensor:
    """Some columns of a map."""
    return rows.index_select(1, torch.tensor(chosen, device=rows.device))


class SubdivideConv(nn.Module):
    """Subdivision and the convolution after it, on the parents' rows."""

    def __init__(self, conv: SparseConv3d) -> None:
        super().__init__()
        taps = tap_matrices(conv)
        self.columns: list[int] = []
        matrices = []
        for octant in range(OCTANTS):
            touched = sorted(set(PARENT_TAP[octant]))
            for some in batched(touched, COARSE_AT_ONCE):
                self.columns += some
                matrices.append(torch.cat([taps[_taps_in(octant, tap)].sum(0) for tap in some]))
        self.matrices = constants(*matrices)
        self.bias = nn.Parameter(conv.conv.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x: (N, in); neighbours: int32 (N, 27) one-based -> (N, 8, out)."""
        padded = with_zero_row(x)
        rows = columns(neighbours, self.columns).split(COARSE_AT_ONCE, dim=1)
        per_octant = len(self.matrices) // OCTANTS
        sums = []
        for octant in range(OCTANTS):
            part = slice(octant * per_octant, (octant + 1) * per_octant)
            gathered = [F.embedding(some, padded).flatten(1) for some in rows[part]]
            sums.append(sum_of_products(self.bias, gathered, self.matrices[part]))
        return torch.stack(sums, dim=1)


class ChildrenConv(nn.Module):
    """A convolution of rows that are children, with the map of their parents.

    An octant's own siblings are gathered too, although they lie in one row: without it the rows would have to be there twice,
    with the zero row and without it, and they are as large as the result.
    """

    def __init__(self, conv: SparseConv3d) -> None:
        super().__init__()
        taps = tap_matrices(conv)
        seen = [list(zip(PARENT_TAP[octant], CHILD[octant], strict=True)) for octant in range(OCTANTS)]
        self.pairs = sorted({pair for octant in seen for pair in octant})
        self.columns = [
            [self.pairs.index(pair) for pair in some] for octant in seen for some in batched(octant, CHILDREN_AT_ONCE)
        ]
        self.matrices = constants(*(some.flatten(0, 1) for some in taps.split(CHILDREN_AT_ONCE)))  # of any octant
        self.bias = nn.Parameter(conv.conv.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, neighbours: Tensor, start: Tensor) -> Tensor:
        """x: (N, 8, in); neighbours: int32 (N, 27) one-based, of the parents; start: (N, out), added to all -> (N, 8, out)."""
        padded, rows = with_zero_row(x.flatten(0, 1)), children_rows(neighbours, self.pairs)  # rows: (N, 64)
        start, sums = start + self.bias, []
        for octant in range(OCTANTS):
            parts = self.columns[octant * len(self.matrices) : (octant + 1) * len(self.matrices)]
            gathered = [F.embedding(columns(rows, some), padded).flatten(1) for some in parts]
            sums.append(sum_of_products(start, gathered, self.matrices))
        return torch.stack(sums, dim=1)


class RowGroupNorm(nn.Module):
    """Group normalisation of one sparse tensor: over all its rows and the channels of a group.

    Means are taken over the first axis and then over the second, in that order: a sum of a million terms one by one would
    lose digits in fp32 too.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight = nn.Parameter(norm.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, k, C), the same out."""
        centred = x - self._mean(x)
        return centred * (self.weight * torch.rsqrt(self._mean(centred * centred) + self.eps)) + self.bias

    def _mean(self, x: Tensor) -> Tensor:
        """Over rows and the channels of a group: (C,), the groups' means repeated."""
        groups = x.mean(0).mean(0).view(self.groups, -1)
        return groups.mean(1, keepdim=True).expand_as(groups).flatten()


class SubdivideBlock3d(nn.Module):
    """A residual block that splits every voxel in eight, as upstream computes it: subdivided first, then convolved."""

    def __init__(self, inputs: int, outputs: int, groups: int = 32) -> None:
        super().__init__()
        self.act_layers = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU())
        self.out_layers = nn.ModuleList(
            (SparseConv3d(inputs, outputs), nn.GroupNorm(groups, outputs), nn.SiLU(), SparseConv3d(outputs, outputs))
        )
        self.skip_connection = PointwiseConv3d(inputs, outputs)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x: (N, in); neighbours: int32 (N, 27) one-based -> (8 N, out)."""
        conv_in, norm, act, conv_out = self.out_layers
        fine = fine_neighbours(neighbours)
        y = act(over_rows(self.act_layers[0], x)).repeat_interleave(OCTANTS, 0)
        y = act(over_rows(norm, conv_in(y, fine)))
        return conv_out(y, fine) + self.skip_connection(x.repeat_interleave(OCTANTS, 0))  # type: ignore[no-any-return]


def over_rows(norm: nn.Module, x: Tensor) -> Tensor:
    """A group norm of rows: (N, C) taken as one picture of C channels."""
    return norm(x.T.unsqueeze(0)).squeeze(0).T  # type: ignore[no-any-return]


class SubdivideGraph(nn.Module):
    """The same block without the rows that subdivision repeats."""

    def __init__(self, block: SubdivideBlock3d) -> None:
        super().__init__()
        conv_in, norm, _, conv_out = block.out_layers
        first = block.act_layers[0]
        assert isinstance(first, nn.GroupNorm)
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(conv_in, SparseConv3d)
        assert isinstance(conv_out, SparseConv3d)
        self.norm_in, self.norm_out = RowGroupNorm(first), RowGroupNorm(norm)
        self.conv_in, self.conv_out = SubdivideConv(conv_in), ChildrenConv(conv_out)
        self.skip = block.skip_connection

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x: (N, k, in), k rows of each of the host's voxels; neighbours: int32 (N k, 27) one-based -> (N k, 8, out)."""
        y = F.silu(self.norm_in(x)).flatten(0, 1)
        y = F.silu(self.norm_out(self.conv_in(y, neighbours)))
        return self.conv_out(y, neighbours, self.skip(x.flatten(0, 1)))  # type: ignore[no-any-return]
