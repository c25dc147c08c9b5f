"""The decoder of a dense latent grid: residual blocks of 3D convolutions, and upsampling that moves channels into space.

The names of parameters are those of TRELLIS' SparseStructureDecoder (MIT), which SAM 3D Objects shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a grid, as one ``LayerNormalization`` with the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, D, H, W), the same out."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResBlock3d(nn.Module):
    """Two normalised convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.norm2 = ChannelNorm(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, D, H, W), the same out."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]


class Upsample3d(nn.Module):
    """A convolution to eight times the channels, which become two cells along each axis."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 8 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, D, H, W) -> (B, out_channels, 2D, 2H, 2W)."""
        return channels_into_space(self.conv(x))


def channels_into_space(x: Tensor) -> Tensor:
    """(B, 8C, D, H, W) -> (B, C, 2D, 2H, 2W); channel 8c + 4a + 2b + e goes to the cell (a, b, e) of channel c.

    One axis at a time: in one step it is a transpose of rank 8, the most that TensorRT takes.
    """
    b, channels, d, h, w = x.shape
    x = x.reshape(b, channels // 8, 2, 4, d, h * w).movedim(2, 4)  # (B, C, 4, D, 2, HW)
    x = x.reshape(b, channels // 8, 2, 2, 2 * d, h, w).movedim(2, 5)  # (B, C, 2, 2D, H, 2, W)
    return x.reshape(b, channels // 8, 2, 2 * d, 2 * h, w).movedim(2, 5).reshape(b, channels // 8, 2 * d, 2 * h, 2 * w)


class DenseDecoder(nn.Module):
    """The decoder of a structure latent.

    channels: of each level, coarsest first; every level after the first is twice as fine.
    """

    def __init__(self, latent_channels: int, channels: Sequence[int], res_blocks: int, middle_blocks: int) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResBlock3d(channels[0]) for _ in range(middle_blocks)))
        self.blocks = nn.ModuleList()
        for width, finer in pairwise((*channels, 0)):
            self.blocks.extend(ResBlock3d(width) for _ in range(res_blocks))
            if finer:
                self.blocks.append(Upsample3d(width, finer))
        self.out_layer = nn.Sequential(ChannelNorm(channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], 1, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """latent: (B, C, G, G, G) -> logits (B, 1, S, S, S), S = G * 2^(levels - 1)."""
        x = self.middle_block(self.input_layer(latent))
        for block in self.blocks:
            x = block(x)
        return self.out_layer(x)  # type: ignore[no-any-return]


def grid_from_tokens(tokens: Tensor, side: int) -> Tensor:
    """tokens: (B, side^3, C), the row of (x, y, z) being (x * side + y) * side + z -> (B, C, side, side, side)."""
    return tokens.transpose(1, 2).unflatten(2, (side, side, side))  # type: ignore[no-any-return]
