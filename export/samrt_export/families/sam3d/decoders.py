"""Decoders of the structured latent: to Gaussians, and to the cubes of a mesh.

Both begin with the same trunk of attention in windows, with weights of their own. Names of parameters: ``slat_decoder_gs``,
``slat_decoder_gs_4`` and ``slat_decoder_mesh``, which are TRELLIS' (MIT). Shapes: N voxels, G Gaussians per voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samrt_export.blocks.flow_transformer import axis_sines, out_norm
from samrt_export.blocks.subdivide import SubdivideBlock3d, SubdivideGraph, fine_neighbours
from samrt_export.blocks.window_attention import LeanWindowAttention, WindowBlock, Windows
from samrt_export.families.sam3d.config import Sam3dConfig
from samrt_export.families.sam3d.latent import grid_sines

OFFSET_VOXELS = 0.5 * 1.5
"""How far from its voxel's centre a Gaussian may lie, in voxels."""
GAUSSIAN_WIDTHS = (3, 3, 3, 4, 1)
"""Channels of a Gaussian: offset, colour, scale, rotation, opacity. The output has one of them after the other, for all G."""
CORNERS, EDGES = 8, 12
CUBE_SDF, CUBE_DEFORM, CUBE_WEIGHTS, CUBE_COLORS = CORNERS, CORNERS * 3, EDGES + CORNERS + 1, CORNERS * 6
"""Channels of a cube, in this order: signed distances, displacements, FlexiCubes' beta, alpha and gamma, colour and normal."""


class LatentDecoder(nn.Module):
    """The trunk that both decoders begin with."""

    axis_table: Tensor

    def __init__(self, config: Sam3dConfig) -> None:
        super().__init__()
        sizes = config.decoder
        self.dim = sizes.dim
        self.input_layer = nn.Linear(config.latent_channels, sizes.dim)
        self.blocks = nn.ModuleList(WindowBlock(sizes.dim, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth))
        self.register_buffer("axis_table", axis_sines(config.grid, sizes.dim), persistent=False)

    def trunk(
        self,
        latent: Tensor,
        coords: Tensor,
        partitions: tuple[Windows, Windows],
        attentions: Sequence[nn.Module | None],
    ) -> Tensor:
        """latent: (N, 8), as the flow's normalisation is undone; coords: int32 (N, 3); partitions: the plain one, and the one
        shifted by half a window, taken in turn; attentions: other forms of the blocks' own, or None -> (N, dim)
        """
        x: Tensor = self.input_layer(latent) + grid_sines(self.axis_table, coords, self.dim)
        for index, (block, attention) in enumerate(zip(self.blocks, attentions, strict=True)):
            x = block(x, partitions[index % 2], attention)
        return x


class SlatDecoderGs(LatentDecoder):
    """To Gaussians."""

    offset_perturbation: Tensor

    def __init__(self, config: Sam3dConfig, gaussians: int) -> None:
        super().__init__(config)
        self.gaussians, self.grid = gaussians, config.grid
        self.out_layer = nn.Linear(config.decoder.dim, gaussians * sum(GAUSSIAN_WIDTHS))
        self.register_buffer("offset_perturbation", torch.zeros(gaussians, 3))

    def gaussians_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (N, dim) of the trunk -> offsets from the voxels' centres, in units of the whole grid, and raw colours, scales,
        rotations, opacities: (N, G, 3), (N, G, 3), (N, G, 3), (N, G, 4), (N, G, 1)
        """
        count = self.gaussians
        parts = self.out_layer(out_norm(x)).split([count * width for width in GAUSSIAN_WIDTHS], dim=1)
        raw, *others = (part.unflatten(1, (count, -1)) for part in parts)
        return (raw + self.offset_perturbation).tanh() * (OFFSET_VOXELS / self.grid), *others


class SlatDecoderMesh(LatentDecoder):
    """To the cubes of a grid four times as fine."""

    def __init__(self, config: Sam3dConfig) -> None:
        super().__init__(config)
        middle, last = config.decoder.mesh_channels
        self.upsample = nn.ModuleList((SubdivideBlock3d(self.dim, middle), SubdivideBlock3d(middle, last)))
        self.out_layer = nn.Linear(last, CUBE_SDF + CUBE_DEFORM + CUBE_WEIGHTS + CUBE_COLORS)


class TrunkGraph(nn.Module):
    """``slat_mesh_trunk``. lean: for ONNX Runtime's CPU kernels, see blocks/window_attention.py."""

    def __init__(self, decoder: LatentDecoder, *, lean: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        own = [block.attn for block in decoder.blocks if isinstance(block, WindowBlock)]
        self.attentions = nn.ModuleList(LeanWindowAttention(attention) if lean else attention for attention in own)

    def forward(
        self,
        latent: Tensor,
        coords: Tensor,
        windows: Tensor,
        window_slots: Tensor,
        shifted_windows: Tensor,
        shifted_window_slots: Tensor,
    ) -> tuple[Tensor, ...]:
        """latent: (N, 8); coords: (N, 3); windows: (W, L); window_slots: (N,); the shifted ones alike -> what `outputs` says."""
        partitions = (Windows(windows, window_slots), Windows(shifted_windows, shifted_window_slots))
        return self.outputs(self.decoder.trunk(latent, coords, partitions, list(self.attentions)))

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (N, dim) of the trunk -> itself."""
        return (x,)


class GaussiansGraph(TrunkGraph):
    """``slat_gs``."""

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (N, dim) of the trunk -> what `SlatDecoderGs.gaussians_of` says."""
        assert isinstance(self.decoder, SlatDecoderGs)
        return self.decoder.gaussians_of(x)


class MeshUpReference(nn.Module):
    """``slat_mesh_up`` as upstream computes it, on every row."""

    def __init__(self, decoder: SlatDecoderMesh) -> None:
        super().__init__()
        self.upsample, self.out_layer = decoder.upsample, decoder.out_layer

    def forward(self, features: Tensor, neighbours: Tensor) -> tuple[Tensor, ...]:
        """features: (N, dim); neighbours: int32 (N, 27) one-based -> cubes' features (64 N, C), distances (64 N, 8)."""
        x = self.upsample[0](features, neighbours)
        x = self.upsample[1](x, fine_neighbours(neighbours))
        return x, self.out_layer(x)[:, :CUBE_SDF]


class MeshUpGraph(nn.Module):
    """The same as products over parents' rows; the largest tensor is the result."""

    def __init__(self, decoder: SlatDecoderMesh) -> None:
        super().__init__()
        first, second = decoder.upsample
        assert isinstance(first, SubdivideBlock3d)
        assert isinstance(second, SubdivideBlock3d)
        self.first, self.second = SubdivideGraph(first), SubdivideGraph(second)
        self.sdf = _rows_of(decoder.out_layer, 0, CUBE_SDF)

    def forward(self, features: Tensor, neighbours: Tensor) -> tuple[Tensor, ...]:
        """As `MeshUpReference`."""
        x = self.first(features.unsqueeze(1), neighbours)  # (N, 8, middle)
        x = self.second(x, fine_neighbours(neighbours)).flatten(0, 1)  # (64 N, last)
        return x, self.sdf(x)


class MeshAttributesGraph(nn.Module):
    """``slat_mesh_attr``: what else there is to know of some cubes."""

    def __init__(self, decoder: SlatDecoderMesh) -> None:
        super().__init__()
        self.rest = _rows_of(decoder.out_layer, CUBE_SDF, decoder.out_layer.out_features)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """features: (M, C) -> raw displacements (M, 8, 3), weights (M, 21), colours and normals (M, 8, 6)."""
        deform, weights, colors = self.rest(features).split((CUBE_DEFORM, CUBE_WEIGHTS, CUBE_COLORS), dim=1)
        return deform.unflatten(1, (CORNERS, 3)), weights, colors.unflatten(1, (CORNERS, 6))


def _rows_of(layer: nn.Linear, start: int, stop: int) -> nn.Linear:
    """The part of a linear layer that makes some of its outputs."""
    part = nn.Linear(layer.in_features, stop - start)
    with torch.no_grad():
        part.weight.copy_(layer.weight[start:stop])
        assert layer.bias is not None
        part.bias.copy_(layer.bias[start:stop])
    return part
