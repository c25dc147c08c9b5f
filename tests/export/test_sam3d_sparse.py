"""Sparse blocks against dense convolutions, against spconv where it is installed, and against loops over windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samrt.sparse import SparseMaps
from samrt_export.blocks.sparse_conv import (
    CoarseTapConv,
    PointwiseConv3d,
    SparseConv3d,
    TapConv,
    coarse_rows,
    mean_of_children,
)
from samrt_export.blocks.subdivide import (
    ChildrenConv,
    RowGroupNorm,
    SubdivideBlock3d,
    SubdivideConv,
    SubdivideGraph,
    fine_neighbours,
    over_rows,
)
from samrt_export.blocks.window_attention import EMPTY, LeanWindowAttention, WindowAttention, Windows

GRID = 16
CLOSE = 2e-6
"""Relative error of fp32 sums in another order."""


def shell(grid: int = GRID, radius: float = 0.35) -> NDArray[np.int32]:
    """Voxels around a sphere off the middle and at the grid's very corner: coords int32 (N, 3), lexicographic."""
    cells = np.stack(np.meshgrid(*(np.arange(grid),) * 3, indexing="ij"), -1).reshape(-1, 3)
    distance = np.linalg.norm((cells + 0.5) / grid - (0.45, 0.5, 0.52), axis=1)
    corner = (cells == 0).all(1) | (cells == grid - 1).all(1)
    return cells[(np.abs(distance - radius) < 0.8 / grid) | corner].astype(np.int32)


COORDS = shell()
MAPS = SparseMaps.from_coords(COORDS, grid=GRID, window=4)


def maps(*names: str) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(value.copy()) for value in MAPS.feeds(names).values())


def features(rows: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def live(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return module.eval()


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().norm() / b.detach().norm())


def dense_conv(conv: SparseConv3d, x: Tensor, coords: NDArray[np.int32], grid: int) -> Tensor:
    """A dense convolution of the whole grid, read where there are voxels."""
    index = torch.from_numpy(coords.astype(np.int64)).unbind(1)
    volume = x.new_zeros(x.shape[1], grid, grid, grid)
    volume[(slice(None), *index)] = x.T
    weight = conv.conv.weight.permute(0, 4, 1, 2, 3)  # (out, in, dx, dy, dz)
    return F.conv3d(volume[None], weight, conv.conv.bias, padding=1)[0][(slice(None), *index)].T


def subdivided(coords: NDArray[np.int32]) -> NDArray[np.int32]:
    """Children in the order of rows 8 p + 4 cx + 2 cy + cz."""
    bits = np.stack(np.meshgrid(*([0, 1],) * 3, indexing="ij"), -1).reshape(-1, 3)
    return (coords[:, None] * 2 + bits).reshape(-1, 3).astype(np.int32)


@pytest.mark.parametrize("taps_at_once", [1, 3, 9, 27])
def test_a_convolution_of_voxels_is_the_dense_one_read_at_the_voxels(taps_at_once: int) -> None:
    conv = live(SparseConv3d(5, 7))
    assert isinstance(conv, SparseConv3d)
    (neighbours,) = maps("neighbours")
    x = features(len(COORDS), 5)
    wanted = dense_conv(conv, x, COORDS, GRID)
    with torch.no_grad():
        assert relative(conv(x, neighbours), wanted) < CLOSE
        assert relative(TapConv(conv, taps_at_once)(x, neighbours), wanted) < CLOSE


def test_convolving_what_the_children_share_is_convolving_the_children() -> None:
    conv = live(SparseConv3d(6, 4))
    assert isinstance(conv, SparseConv3d)
    neighbours, parents = maps("neighbours", "parents")
    x = features(int(parents.max()) + 1, 6)
    wanted = dense_conv(conv, x[parents.long()], COORDS, GRID)
    with torch.no_grad():
        assert relative(CoarseTapConv(conv)(x, coarse_rows(neighbours, parents)), wanted) < CLOSE


def test_the_mean_of_children_counts_one_child_too_many() -> None:
    children, inverse, parents = maps("children", "children_inverse", "parents")
    x = features(len(COORDS), 3)
    wanted = torch.stack([x[parents == p].sum(0) / (int((parents == p).sum()) + 1) for p in range(len(children))])
    assert relative(mean_of_children(x, children, inverse), wanted) < CLOSE


def test_the_map_of_children_follows_from_the_map_of_parents() -> None:
    (neighbours,) = maps("neighbours")
    rows = {tuple(coord): row + 1 for row, coord in enumerate(subdivided(COORDS).tolist())}
    offsets = [(dx, dy, dz) for dx in (-1, 0, 1) for dy in (-1, 0, 1) for dz in (-1, 0, 1)]
    wanted = [
        [rows.get((x + dx, y + dy, z + dz), 0) for dx, dy, dz in offsets] for x, y, z in subdivided(COORDS).tolist()
    ]
    np.testing.assert_array_equal(fine_neighbours(neighbours).numpy(), wanted)


def test_a_convolution_after_a_subdivision_is_the_dense_one_of_the_finer_grid() -> None:
    conv = live(SparseConv3d(5, 4))
    assert isinstance(conv, SparseConv3d)
    (neighbours,) = maps("neighbours")
    x = features(len(COORDS), 5)
    wanted = dense_conv(conv, x.repeat_interleave(8, 0), subdivided(COORDS), 2 * GRID)
    with torch.no_grad():
        assert relative(SubdivideConv(conv)(x, neighbours).flatten(0, 1), wanted) < CLOSE


def test_a_convolution_of_children_is_the_dense_one_of_the_finer_grid() -> None:
    conv = live(SparseConv3d(5, 4))
    assert isinstance(conv, SparseConv3d)
    (neighbours,) = maps("neighbours")
    x, start = features(8 * len(COORDS), 5), features(len(COORDS), 4, seed=1)
    wanted = dense_conv(conv, x, subdivided(COORDS), 2 * GRID) + start.repeat_interleave(8, 0)
    with torch.no_grad():
        ours = ChildrenConv(conv)(x.unflatten(0, (-1, 8)), neighbours, start)
    assert relative(ours.flatten(0, 1), wanted) < CLOSE


def test_a_pointwise_convolution_reads_its_weight_as_spconv_does() -> None:
    conv = PointwiseConv3d(3, 2)
    with torch.no_grad():
        conv.conv.weight.copy_(torch.arange(6.0).view(2, 1, 1, 1, 3))
        conv.conv.bias.copy_(torch.tensor([10.0, 20.0]))
    ours = conv(torch.tensor([[1.0, 10.0, 100.0]]))
    assert ours.tolist() == [[10 + 0 + 20 + 400, 20 + 1 + 30 + 500]]  # rows (0 1), (2 3), (4 5), not a transpose


def test_a_group_norm_of_rows_is_torch_s_over_all_of_them() -> None:
    norm = live(nn.GroupNorm(4, 12))
    assert isinstance(norm, nn.GroupNorm)
    x = features(64 * 40, 12) * 3 + 5
    with torch.no_grad():
        assert relative(RowGroupNorm(norm)(x.view(-1, 8, 12)).flatten(0, 1), over_rows(norm, x)) < CLOSE
        assert relative(over_rows(norm, x)[:8], over_rows(norm, x[:8])) > 0.01  # all rows count


def test_two_subdivisions_without_repeated_rows_are_upstream_s() -> None:
    blocks = [live(SubdivideBlock3d(12, 8, groups=4)), live(SubdivideBlock3d(8, 4, groups=2), 1)]
    (neighbours,) = maps("neighbours")
    x = features(len(COORDS), 12)
    with torch.no_grad():
        fine = fine_neighbours(neighbours)
        wanted = blocks[1](blocks[0](x, neighbours), fine)
        first, second = (SubdivideGraph(block) for block in blocks if isinstance(block, SubdivideBlock3d))
        ours = second(first(x[:, None], neighbours), fine)
    assert relative(ours.flatten(0, 1), wanted) < CLOSE
    assert len(wanted) == 64 * len(COORDS)


@pytest.mark.parametrize("shifted", [False, True])
def test_attention_stays_within_windows(shifted: bool) -> None:
    attention = live(WindowAttention(24, 6))  # two groups of heads in the lean form
    assert isinstance(attention, WindowAttention)
    prefix = "shifted_" if shifted else ""
    rows, slots = maps(f"{prefix}windows", f"{prefix}window_slots")
    x = features(len(COORDS), 24)
    window = (COORDS + (2 if shifted else 0)) // 4
    wanted = torch.empty_like(x)
    with torch.no_grad():
        for one in np.unique(window, axis=0):
            inside = torch.from_numpy((window == one).all(1))
            q, k, v = attention.to_qkv(x[inside]).unflatten(-1, (3, 6, 4)).permute(1, 2, 0, 3)
            weights = (q @ k.mT / 2).softmax(-1)
            wanted[inside] = attention.to_out((weights @ v).transpose(0, 1).flatten(1))
        assert relative(attention(x, Windows(rows, slots)), wanted) < CLOSE
        assert relative(LeanWindowAttention(attention)(x, Windows(rows, slots)), wanted) < 2e-5


def test_what_fills_a_window_up_changes_nothing_at_all() -> None:
    attention = live(WindowAttention(24, 6))  # two groups of heads in the lean form
    assert isinstance(attention, WindowAttention)
    rows, slots = maps("windows", "window_slots")
    length = rows.shape[1]
    longer = F.pad(rows, (0, 3))
    moved = slots + slots // length * 3
    x = features(len(COORDS), 24)
    assert EMPTY >= -65504 / 4
    with torch.no_grad():
        for form in (attention, LeanWindowAttention(attention)):
            assert relative(form(x, Windows(longer, moved)), form(x, Windows(rows, slots))) < CLOSE


class TestSpconv:
    """The library itself, on the CPU. It is no dependency of ours: `pip install spconv`."""

    @pytest.mark.parametrize("kernel", [1, 3])
    def test_convolutions_are_spconv_s(self, kernel: int) -> None:
        spconv = pytest.importorskip("spconv.pytorch")
        ours = live(PointwiseConv3d(6, 4) if kernel == 1 else SparseConv3d(6, 4))
        theirs = spconv.SubMConv3d(6, 4, kernel, algo=spconv.ConvAlgo.Native)
        assert isinstance(ours, PointwiseConv3d | SparseConv3d)
        theirs.load_state_dict(ours.conv.state_dict())
        x, (neighbours,) = features(len(COORDS), 6), maps("neighbours")
        index = torch.from_numpy(np.pad(COORDS, ((0, 0), (1, 0))))
        with torch.no_grad():
            wanted = theirs(spconv.SparseConvTensor(x, index, [GRID] * 3, 1)).features
            mine = ours(x) if isinstance(ours, PointwiseConv3d) else ours(x, neighbours)
        assert relative(mine, wanted) < CLOSE
