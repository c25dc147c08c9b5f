"""The head of MoGe v1 (arXiv 2410.19115, microsoft/MoGe, MIT): features of patches to maps of pixels.

Parameters have the names of the official code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 32
"""Channels that the second norm of a residual block normalises together."""


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution that gives each pixel four of its own, computed as a product and a shuffle.

    TensorRT for RTX 1.7 does not build it in bf16 for dynamic sizes as an operator.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x: (B, C, h, w) -> (B, D, 2h, 2w)."""
        weight = self.weight.flatten(1).t()[..., None, None]  # (4 D, C, 1, 1)
        assert self.bias is not None
        return F.pixel_shuffle(F.conv2d(x, weight), 2) + self.bias[:, None, None]


class ResidualConvBlock(nn.Module):
    """Norm, ReLU and 3 x 3 convolution, twice, added to what came in."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, dim), nn.ReLU(), _conv3(dim, hidden), nn.GroupNorm(hidden // GROUP, hidden), nn.ReLU(),
            _conv3(hidden, dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, h, w), the same out."""
        return x + self.layers(x)  # type: ignore[no-any-return]


class MogeHead(nn.Module):
    """Three upsampling stages to 8 x 8 pixels a patch, a bilinear one to all of a patch's pixels, and two outputs.

    Before each stage two channels say where in the picture one is, so that the field of view can be judged.
    """

    def __init__(
        self, features: int, dim: int, projection: int, widths: tuple[int, ...], hidden_factor: int, blocks: int,
        last: int, patch_px: int,
    ) -> None:  # fmt: skip
        """features: how many of the encoder's layers are seen. last: channels of the output blocks."""
        super().__init__()
        self.scale = patch_px / 2 ** len(widths)
        self.projects = nn.ModuleList(nn.Conv2d(dim, projection, 1) for _ in range(features))
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(Doubling(before + 2, width, 2, stride=2), _conv3(width, width)),
                *(ResidualConvBlock(width, hidden_factor * width) for _ in range(blocks)),
            )
            for before, width in zip((projection, *widths), widths, strict=False)
        )
        self.output_block = nn.ModuleList(
            nn.Sequential(_conv3(widths[-1] + 2, last), nn.ReLU(), nn.Conv2d(last, channels, 1)) for channels in (3, 1)
        )

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """features: each (B, dim, rows, columns), of the picture's patches

        Returns points (B, 3, h, w) before their remapping, and what is above 0.5 where they mean anything (B, 1, h, w).
        """
        x = sum(project(feature) for project, feature in zip(self.projects, features, strict=True))
        assert isinstance(x, Tensor)
        for block in self.upsample_blocks:
            x = block(with_view_plane(x))
        x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        x = with_view_plane(x)
        points, mask = (block(x) for block in self.output_block)
        return points, mask


def with_view_plane(x: Tensor) -> Tensor:
    """Append each pixel's place in the view, u to the right and v down; the picture's corners lie on the unit circle.

    x: (B, C, h, w) -> (B, C + 2, h, w)
    Sizes are taken from ranges and not as numbers: so they stay tensors in a graph. Nothing here grows with the square of the
    size, which fp16 would not hold.
    """
    rows, columns = torch.arange(x.shape[2], device=x.device), torch.arange(x.shape[3], device=x.device)
    height, width = 1 + rows[-1:], 1 + columns[-1:]  # each (1,)
    aspect = width.to(x.dtype) / height.to(x.dtype)
    u = (2 * columns + 1 - width).to(x.dtype) / width.to(x.dtype) / (1 + (1 / aspect) ** 2).sqrt()  # (w,)
    v = (2 * rows + 1 - height).to(x.dtype) / height.to(x.dtype) / (1 + aspect**2).sqrt()  # (h,)
    ones = torch.ones_like(x[:, :1])
    return torch.cat((x, ones * u, ones * v[:, None]), dim=1)


def _conv3(dim_in: int, dim_out: int) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1, padding_mode="replicate")
