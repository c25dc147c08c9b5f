"""Stage 2: the flow of the structured latent, 8 channels on every voxel of a sparse grid.

Two sparse residual blocks take the voxels to a grid half as fine, a diffusion transformer works there, two blocks lead back.
Names of parameters: ``slat_generator``'s backbone, which is TRELLIS' (MIT). Shapes: N voxels, C coarse ones, T tokens of the
condition. Index maps are those of blocks/sparse_conv.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.flow_transformer import ModulatedCrossBlock, TimeEmbedder, axis_sines, out_norm
from samrt_export.blocks.sparse_conv import (
    CoarseTapConv,
    SparseConv3d,
    TapConv,
    coarse_rows,
    mean_of_children,
)
from samrt_export.families.sam3d.config import Sam3dConfig

NORM_EPS = 1e-6


class FlowMaps(NamedTuple):
    """The maps of one sparse grid, in the order of the graph's inputs.

    neighbours: (N, 27), coarse_neighbours: (C, 27), children: (C, 8), all one-based; children_inverse: float32 (C, 1);
    parents: (N,) zero-based; coarse_coords: (C, 3)
    """

    neighbours: Tensor
    coarse_neighbours: Tensor
    children: Tensor
    children_inverse: Tensor
    parents: Tensor
    coarse_coords: Tensor


class SparseResBlock3d(nn.Module):
    """Norm, SiLU, convolution; the same with a norm that the time scales and shifts; and a shortcut."""

    def __init__(self, inputs: int, outputs: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs, eps=NORM_EPS)
        self.conv1 = SparseConv3d(inputs, outputs)
        self.conv2 = SparseConv3d(outputs, outputs)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * outputs))
        self.skip_connection: nn.Module = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, time: Tensor, neighbours: Tensor) -> Tensor:
        """x: (N, in); time: (1, time_dim), embedded; neighbours: (N, 27) -> (N, out)."""
        y = self.conv1(F.silu(self.norm1(x)), neighbours)
        return self.conv2(self.activated(y, time), neighbours) + self.skip_connection(x)  # type: ignore[no-any-return]

    def activated(self, y: Tensor, time: Tensor) -> Tensor:
        """What goes into the second convolution. y: (N, out)."""
        scale, shift = self.emb_layers(time).chunk(2, dim=1)
        return F.silu(F.layer_norm(y, (y.shape[-1],), eps=NORM_EPS) * (1 + scale) + shift)


class SlatFlow(nn.Module):
    """The backbone with its official names, and its arrangement as upstream computes it."""

    axis_table: Tensor

    def __init__(self, config: Sam3dConfig) -> None:
        super().__init__()
        flow, channels = config.latent_flow, config.latent_channels
        dim, io_dim = flow.dim, flow.io_dim
        self.dim = dim
        self.t_embedder = TimeEmbedder(dim, flow.time_channels)
        self.input_layer = nn.Linear(channels, io_dim)
        self.input_blocks = nn.ModuleList(SparseResBlock3d(io_dim, out, dim) for out in (io_dim, dim))
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(dim, config.fuser.dim, flow.heads, flow.mlp_ratio) for _ in range(flow.depth)
        )
        self.out_blocks = nn.ModuleList(SparseResBlock3d(2 * width, io_dim, dim) for width in (dim, io_dim))
        self.out_layer = nn.Linear(io_dim, channels)
        self.register_buffer("axis_table", axis_sines(-(-config.grid // 2), dim), persistent=False)

    def forward(self, slat: Tensor, time: Tensor, condition: Tensor, maps: FlowMaps) -> Tensor:
        """slat: (N, 8), normalised; time: (1,), scaled, 0 is noise; condition: (1, T, cond_dim) -> velocity (N, 8)."""
        t = self.t_embedder(time)
        first_in, second_in, first_out, second_out = (*self.input_blocks, *self.out_blocks)
        fine = first_in(self.input_layer(slat), t, maps.neighbours)
        pooled = mean_of_children(fine, maps.children, maps.children_inverse)
        coarse = second_in(pooled, t, maps.coarse_neighbours)
        x = self.transformed(coarse, t, condition, maps.coarse_coords)
        x = torch.cat((x, coarse), dim=1).index_select(0, maps.parents)  # (N, 2 * dim)
        x = torch.cat((first_out(x, t, maps.neighbours), fine), dim=1)
        return self.out_layer(out_norm(second_out(x, t, maps.neighbours)))  # type: ignore[no-any-return]

    def transformed(
        self, coarse: Tensor, t: Tensor, condition: Tensor, coords: Tensor, ort_cpu: bool = False
    ) -> Tensor:
        """The transformer. coarse: (C, dim); t: (1, dim); coords: (C, 3) -> (C, dim)."""
        x = (coarse + grid_sines(self.axis_table, coords, self.dim)).unsqueeze(0)
        for block in self.blocks:
            x = block(x, t, condition, ort_cpu)
        return x.squeeze(0)


def grid_sines(axis_table: Tensor, coords: Tensor, dim: int) -> Tensor:
    """Positions of voxels, read from a table of one axis: exact in any precision, which sines of a product are not.

    axis_table: (side, 2 * (dim // 6)); coords: int32 (N, 3) -> (N, dim), what is left of dim zeros
    """
    position = F.embedding(coords, axis_table).flatten(1)
    rest = dim - position.shape[1]
    return F.pad(position, (0, rest)) if rest else position


class _ResBlockGraph(nn.Module):
    """A residual block a few taps at a time."""

    def __init__(self, block: SparseResBlock3d) -> None:
        super().__init__()
        self.block, self.conv1, self.conv2 = block, TapConv(block.conv1), TapConv(block.conv2)

    def forward(self, x: Tensor, time: Tensor, neighbours: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.block.norm1(x)), neighbours)
        return self.conv2(self.block.activated(y, time), neighbours) + self.block.skip_connection(x)  # type: ignore[no-any-return]


class _UpBlockGraph(nn.Module):
    """A residual block after a twofold upsampling: what goes row by row, and the first products, stay on the coarse rows."""

    def __init__(self, block: SparseResBlock3d) -> None:
        super().__init__()
        self.block, self.conv1, self.conv2 = block, CoarseTapConv(block.conv1), TapConv(block.conv2)

    def forward(self, x: Tensor, time: Tensor, neighbours: Tensor, parents: Tensor) -> Tensor:
        """x: (C, in) -> (N, out)."""
        y = self.conv1(F.silu(self.block.norm1(x)), coarse_rows(neighbours, parents))
        skip = F.embedding(parents, self.block.skip_connection(x))
        return self.conv2(self.block.activated(y, time), neighbours) + skip  # type: ignore[no-any-return]


class SlatFlowReference(nn.Module):
    """``slat_flow`` as upstream computes it. mirrored: of a model whose time runs from 1, noise, to 0, data."""

    def __init__(self, flow: SlatFlow, time_scale: float, mirrored: bool) -> None:
        super().__init__()
        self.flow, self.time_scale, self.mirrored = flow, time_scale, mirrored

    def forward(
        self,
        slat: Tensor,
        time: Tensor,
        condition: Tensor,
        neighbours: Tensor,
        coarse_neighbours: Tensor,
        children: Tensor,
        children_inverse: Tensor,
        parents: Tensor,
        coarse_coords: Tensor,
    ) -> tuple[Tensor, ...]:
        """The graph's inputs, one by one as the exporter wants them -> (slat_velocity (N, 8),)."""
        time = self.time_scale - time if self.mirrored else time
        maps = FlowMaps(neighbours, coarse_neighbours, children, children_inverse, parents, coarse_coords)
        velocity = self._velocity(slat, time, condition, maps)
        return (-velocity if self.mirrored else velocity,)

    def _velocity(self, slat: Tensor, time: Tensor, condition: Tensor, maps: FlowMaps) -> Tensor:
        return self.flow(slat, time, condition, maps)  # type: ignore[no-any-return]


class SlatFlowGraph(SlatFlowReference):
    """The same without anything that is 27 or 2 * dim wide on fine rows. ort_cpu: with ONNX Runtime's own attention."""

    def __init__(self, flow: SlatFlow, time_scale: float, mirrored: bool, *, ort_cpu: bool = False) -> None:
        super().__init__(flow, time_scale, mirrored)
        self.ort_cpu = ort_cpu
        first, second, up, last = (*flow.input_blocks, *flow.out_blocks)
        assert isinstance(first, SparseResBlock3d)
        assert isinstance(second, SparseResBlock3d)
        assert isinstance(up, SparseResBlock3d)
        assert isinstance(last, SparseResBlock3d)
        self.first, self.second, self.last = _ResBlockGraph(first), _ResBlockGraph(second), _ResBlockGraph(last)
        self.up = _UpBlockGraph(up)

    def _velocity(self, slat: Tensor, time: Tensor, condition: Tensor, maps: FlowMaps) -> Tensor:
        flow, t = self.flow, self.flow.t_embedder(time)
        fine = self.first(flow.input_layer(slat), t, maps.neighbours)
        pooled = mean_of_children(fine, maps.children, maps.children_inverse)
        coarse = self.second(pooled, t, maps.coarse_neighbours)
        x = flow.transformed(coarse, t, condition, maps.coarse_coords, self.ort_cpu)
        x = self.up(torch.cat((x, coarse), dim=1), t, maps.neighbours, maps.parents)
        x = self.last(torch.cat((x, fine), dim=1), t, maps.neighbours)
        return flow.out_layer(out_norm(x))  # type: ignore[no-any-return]
