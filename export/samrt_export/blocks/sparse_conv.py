"""Submanifold 3x3x3 convolutions as gathers and matrix products. Index maps come from the host and are one-based, 0 = missing.

A row of features belongs to one voxel. Tap k = ((dx + 1) * 3 + (dy + 1)) * 3 + (dz + 1) reads the voxel at (dx, dy, dz) from
the row's own; what is not there counts as zero. Weights are as spconv stores them, (out, 3, 3, 3, in), and kept under the
names that a wrapper around spconv gives them: ``<layer>.conv.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 27
CENTRE = 13
TAPS_AT_ONCE = 9
"""Taps whose rows are gathered and multiplied together: wider products run faster, and gather more at a time."""


class ConvWeights(nn.Module):
    """The parameters of one spconv convolution: weight (out, k, k, k, in), bias (out,)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, kernel, kernel, kernel, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))


class SparseConv3d(nn.Module):
    """A submanifold convolution as spconv computes it: one product over all taps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvWeights(inputs, outputs, 3)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x: (N, in); neighbours: int32 (N, 27) one-based -> (N, out)."""
        rows = F.embedding(neighbours, with_zero_row(x)).flatten(1)  # (N, 27 * in)
        return F.linear(rows, self.conv.weight.flatten(1), self.conv.bias)


class PointwiseConv3d(nn.Module):
    """A 1x1x1 submanifold convolution as spconv 2.3 computes it.

    It reads the buffer of its weight, which is (out, 1, 1, 1, in), as (in, out), without transposing it
    (traveller59/spconv issues 450 and 772). The released weights were trained that way.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvWeights(inputs, outputs, 1)

    @property
    def matrix(self) -> Tensor:
        """(in, out): y = x @ matrix + bias."""
        outputs, inputs = self.conv.weight.shape[0], self.conv.weight.shape[-1]
        return self.conv.weight.reshape(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in) -> (N, out)."""
        return torch.addmm(self.conv.bias, x, self.matrix)


def with_zero_row(x: Tensor) -> Tensor:
    """(N, C) -> (N + 1, C): what index 0 of a one-based map means."""
    return F.pad(x, (0, 0, 1, 0))


def tap_matrices(conv: SparseConv3d) -> Tensor:
    """The weight as one matrix for each tap: (27, in, out)."""
    weight = conv.conv.weight.detach()
    return weight.flatten(1, 3).permute(1, 2, 0).contiguous()


def constants(*tensors: Tensor) -> nn.ParameterList:
    """Tensors as constants of a graph, one by one: a slice of a larger one would be an operator of its own."""
    return nn.ParameterList(nn.Parameter(tensor.detach().contiguous(), requires_grad=False) for tensor in tensors)


def sum_of_products(start: Tensor, rows: Sequence[Tensor], matrices: Iterable[Tensor]) -> Tensor:
    """start + rows[0] @ matrices[0] + ..., where rows are gathered.

    Take care that all rows stand before all products in a graph. ONNX Runtime (1.31) runs what a node needs in the reverse
    order of the file: it then gathers the rows of one product after the one before is done, and holds one set at a time.
    """
    sums = start
    for row, matrix in zip(rows, matrices, strict=True):
        sums = torch.addmm(sums, row, matrix)
    return sums


class TapConv(nn.Module):
    """The same convolution a few taps at a time, so that (N, 27 * in) is never there."""

    def __init__(self, conv: SparseConv3d, taps_at_once: int = TAPS_AT_ONCE) -> None:
        super().__init__()
        self.taps_at_once = taps_at_once
        self.matrices = constants(*(part.flatten(0, 1) for part in tap_matrices(conv).split(taps_at_once)))
        self.bias = nn.Parameter(conv.conv.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x: (N, in); neighbours: int32 (N, 27) one-based -> (N, out)."""
        padded = with_zero_row(x)
        gathered = [F.embedding(taps, padded).flatten(1) for taps in neighbours.split(self.taps_at_once, dim=1)]
        return sum_of_products(self.bias, gathered, self.matrices)


class CoarseTapConv(nn.Module):
    """A convolution of features that are the same for all children of a coarse voxel: multiplied there, gathered then.

    N x in is never there, and there are fewer rows to multiply.
    """

    def __init__(self, conv: SparseConv3d) -> None:
        super().__init__()
        matrices = tap_matrices(conv)  # (27, in, out)
        self.outputs = matrices.shape[-1]
        self.matrix = nn.Parameter(matrices.permute(1, 0, 2).flatten(1).contiguous(), requires_grad=False)
        self.bias = nn.Parameter(conv.conv.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, coarse_rows: Tensor) -> Tensor:
        """x: (coarse, in); coarse_rows: int32 (N, 27), one-based coarse row of each tap's voxel -> (N, out)."""
        products = with_zero_row(x @ self.matrix).view(-1, self.outputs)  # ((1 + coarse) * 27, out)
        rows = coarse_rows * TAPS + torch.arange(TAPS, dtype=torch.int32, device=coarse_rows.device)
        sums: Tensor = self.bias
        for some in rows.split(TAPS_AT_ONCE, dim=1):
            sums = sums + F.embedding(some, products).sum(dim=1)
        return sums


def coarse_rows(neighbours: Tensor, parents: Tensor) -> Tensor:
    """neighbours: int32 (N, 27) one-based; parents: int32 (N,) zero-based -> int32 (N, 27), one-based coarse rows."""
    one_based = torch.cat((parents.new_zeros(1), parents + 1))
    return F.embedding(neighbours, one_based.unsqueeze(1)).squeeze(-1)


def mean_of_children(x: Tensor, children: Tensor, children_inverse: Tensor) -> Tensor:
    """The 2x pooling of a sparse grid. Upstream divides by the children and one more (`scatter_reduce` counts the zero it
    starts from), which is what children_inverse holds.

    x: (N, C); children: int32 (coarse, 8) one-based; children_inverse: (coarse, 1) = 1 / (children + 1) -> (coarse, C)
    """
    return F.embedding(children, with_zero_row(x)).sum(dim=1) * children_inverse
