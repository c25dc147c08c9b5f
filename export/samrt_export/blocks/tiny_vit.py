"""TinyViT (arXiv 2207.10666) as MobileSAM and Light HQ-SAM use it, under their parameter names.

Convolutions, then windows of attention at two sizes of the map; the last two stages have the same size. Two things to know:

- A window that reaches over the map's edge is filled up with zeros *before* the norm inside attention, so that the filling
  takes part, as the norm's bias.
- The checkpoints hold a classifier (``norm_head``, ``head``) that nothing uses.

This is as upstream computes it, and the target of a strict load; blocks/tiny_vit_forms.py has it as it is exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.hiera import map_from_windows, windows_from_map
from samrt_export.blocks.repvit import ConvNorm
from samrt_export.blocks.vit import vit_neck

CLASSES = 1000
"""Of the classifier that the checkpoints hold."""


@dataclass(frozen=True, slots=True)
class TinyVitConfig:
    """One number per stage; the first stage works at a quarter of the picture's size."""

    channels: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    strides: tuple[int, ...] = (2, 2, 1)
    """Of the merging behind each stage but the last."""


class PatchEmbed(nn.Module):
    """Two stride-2 convolutions with GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, channels // 2, kernel=3, stride=2),
            nn.GELU(),
            ConvNorm(channels // 2, channels, kernel=3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, channels, S/4, S/4)."""
        return self.seq(x)  # type: ignore[no-any-return]


class MbConv(nn.Module):
    """1x1 four times as wide, depthwise 3x3, 1x1; the last activation comes after the residual sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, 4 * channels)
        self.conv2 = ConvNorm(4 * channels, 4 * channels, kernel=3, groups=4 * channels)
        self.conv3 = ConvNorm(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), the same out."""
        y = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(self.conv3(y) + x)


class PatchMerging(nn.Module):
    """Another width, and half the size where ``stride`` is 2."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel=3, stride=stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention among the tokens of one window; a bias per head and distance is added to the scores."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        """Head by head: its queries, its keys, its values."""
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, x: Tensor) -> Tensor:
        """x: (W, window * window, C) of W windows, the same out."""
        parts = self.qkv(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        q, k, v = parts  # each (W, heads, N, C / heads)
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5 + self.bias()
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def bias(self) -> Tensor:
        """The bias of every pair of tokens, (heads, N, N).

        A column of the table belongs to a distance (|dy|, |dx|), in the order in which pairs of tokens, row by row, first
        show it: (0, 0), (0, 1) ... (0, window - 1), (1, 0) and so on, which is dy * window + dx.
        """
        place = torch.arange(self.window, device=self.attention_biases.device)
        apart = (place[:, None] - place).abs()
        index = apart[:, None, :, None] * self.window + apart[None, :, None, :]  # (y, x, y', x')
        return self.attention_biases[:, index.flatten(0, 1).flatten(1)]


class Mlp(nn.Module):
    """Norm, and an MLP four times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C), the same out."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention in windows, a depthwise convolution, an MLP; the convolution has no residual."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = Attention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, kernel=3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), the same out."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        window, hw = self.attn.window, (x.shape[1], x.shape[2])
        x = x + map_from_windows(self.attn(windows_from_map(x, window).flatten(1, 2)), window, hw)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one size, and the merging behind them."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> as the merging leaves it."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyVit(nn.Module):
    """The encoder: four stages and SAM's neck."""

    def __init__(self, config: TinyVitConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.patch_embed = PatchEmbed(widths[0])
        mergings: list[PatchMerging | None] = [
            PatchMerging(*pair, stride) for pair, stride in zip(pairwise(widths), config.strides, strict=True)
        ]
        sizes = zip(widths[1:], config.heads[1:], config.windows[1:], config.depths[1:], strict=True)
        stages: list[list[nn.Module]] = [[MbConv(widths[0]) for _ in range(config.depths[0])]]
        stages += [[Block(width, heads, window) for _ in range(depth)] for width, heads, window, depth in sizes]
        self.layers = nn.ModuleList(Stage(*parts) for parts in zip(stages, [*mergings, None], strict=True))
        self.norm_head = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], CLASSES)
        self.neck = vit_neck(widths[-1], out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S) normalised -> (B, S/16, S/16, out_channels)."""
        return self.maps(image)[0]

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, 3, S, S) normalised -> embedding (B, S/16, S/16, out_channels) and what the second stage hands on, which
        SAM-HQ reads, (B, S/16, S/16, channels[2]).
        """
        x, early = self.patch_embed(image), None
        for i, stage in enumerate(self.layers):
            x = stage(x)
            early = x if i == 1 else early
        assert early is not None
        return self.neck(x).permute(0, 2, 3, 1), early.permute(0, 2, 3, 1)


def randomize_tiny_vit(encoder: TinyVit, generator: torch.Generator) -> None:
    """What `randomize_live` does not know: what batch norms have measured is a mean and a variance, which is never negative."""
    for part in encoder.modules():
        if isinstance(part, ConvNorm):
            assert part.bn.running_mean is not None
            assert part.bn.running_var is not None
            part.bn.running_mean.normal_(0, 0.1, generator=generator)
            part.bn.running_var.uniform_(0.5, 1.5, generator=generator)
