"""Hiera, the hierarchical vision transformer of SAM 2 (arXiv 2306.00989, with absolute window positions, 2311.05613).

Maps are (B, H, W, C) throughout. ``ort_cpu=True`` arranges the same computation for ONNX Runtime's CPU kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.contrib import multi_head_attention
from samrt_export.blocks.layers import MLP


@dataclass(frozen=True, slots=True)
class HieraConfig:
    """Sizes of a trunk; field names are those of the official configuration files."""

    embed_dim: int
    num_heads: int
    stages: tuple[int, ...]
    global_att_blocks: tuple[int, ...]
    window_pos_embed_bkg_spatial_size: tuple[int, int]
    window_spec: tuple[int, ...] = (8, 4, 14, 7)

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of every stage, finest first; it doubles from stage to stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.stages)))


def max_pool_2x2(x: Tensor) -> Tensor:
    """x: (B, H, W, C) -> (B, H/2, W/2, C). No layout change, unlike MaxPool2d on NHWC; rows first, so that each reduction
    runs over long stretches of memory.
    """
    b, h, w, c = x.shape
    rows = x.reshape(b, h // 2, 2, w * c).amax(2)
    return rows.reshape(b, h // 2, w // 2, 2, c).amax(3)


def windows_from_map(x: Tensor, window: int) -> Tensor:
    """x: (B, H, W, C) -> (B * windows, window, window, C), zero-padded right and bottom to whole windows."""
    b, h, w, c = x.shape
    rows, cols = -(-h // window), -(-w // window)
    if (rows * window, cols * window) != (h, w):
        x = F.pad(x, (0, 0, 0, cols * window - w, 0, rows * window - h))
    x = x.reshape(b, rows, window, cols, window, c).permute(0, 1, 3, 2, 4, 5)  # (B, rows, cols, window, window, C)
    return x.reshape(b * rows * cols, window, window, c)


def map_from_windows(windows: Tensor, window: int, hw: tuple[int, int]) -> Tensor:
    """windows: (B * windows, window, window, C) -> (B, H, W, C), the padding cut off again."""
    h, w = hw
    rows, cols = -(-h // window), -(-w // window)
    c = windows.shape[-1]
    x = windows.reshape(-1, rows, cols, window, window, c).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, rows * window, cols * window, c)
    return x[:, :h, :w] if (rows * window, cols * window) != (h, w) else x


class MultiScaleAttention(nn.Module):
    """Self-attention whose queries may be pooled 2x2, which is how a new stage begins."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pool: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool = pool
        self.qkv = nn.Linear(dim, dim_out * 3)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, H, W, dim) -> (B, H or H/2, W or W/2, dim_out)."""
        if ort_cpu:
            return self._forward_ort_cpu(x)
        b, h, w, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # each (B, H, W, dim_out)
        if self.pool:
            q = max_pool_2x2(q)
        heads = partial(self._split_heads, batch=b)
        x = F.scaled_dot_product_attention(heads(q), heads(k), heads(v))  # (B, heads, tokens, dim)
        h, w = (h // 2, w // 2) if self.pool else (h, w)
        return self.proj(x.transpose(1, 2).reshape(b, h, w, -1))  # type: ignore[no-any-return]

    def _forward_ort_cpu(self, x: Tensor) -> Tensor:
        """Three products instead of one and a Split; their bias goes to the attention operator, which adds it on its way."""
        b, h, w, _ = x.shape
        dim = self.proj.in_features
        q, k, v = (
            F.linear(x.flatten(1, 2), self.qkv.weight[i * dim : (i + 1) * dim]) for i in range(3)
        )  # (B, HW, dim)
        if self.pool:  # pooling and adding a bias may change places
            q = max_pool_2x2(q.reshape(b, h, w, -1)).flatten(1, 2)
            h, w = h // 2, w // 2
        x = multi_head_attention(q, k, v, self.qkv.bias, self.num_heads)
        return self.proj(x).reshape(b, h, w, -1)  # type: ignore[no-any-return]

    def _split_heads(self, x: Tensor, batch: int) -> Tensor:
        """x: (B, H, W, C) -> (B, heads, H * W, C / heads)."""
        tokens, channels = x.shape[1] * x.shape[2], x.shape[3]
        return x.reshape(batch, tokens, self.num_heads, channels // self.num_heads).transpose(1, 2)


class MultiScaleBlock(nn.Module):
    """Pre-norm transformer block, in windows (``window > 0``) or over the whole map (``window == 0``)."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, window: int, pool: bool) -> None:
        super().__init__()
        self.window = window
        self.pool = pool
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, pool)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, dim_out * 4, dim_out, 2, activation=F.gelu)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, H, W, dim) -> (B, H or H/2, W or W/2, dim_out)."""
        normed = self.norm1(x)
        shortcut = self.proj(normed) if hasattr(self, "proj") else x
        if self.pool:
            shortcut = max_pool_2x2(shortcut)
        hw = (shortcut.shape[1], shortcut.shape[2])
        if self.window == 0:
            attended = self.attn(normed, ort_cpu)
        else:
            window_out = self.window // 2 if self.pool else self.window
            windows = self.attn(windows_from_map(normed, self.window), ort_cpu)
            attended = map_from_windows(windows, window_out, hw)
        x = shortcut + attended
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Overlapping 7x7 patches at stride 4."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=7, stride=4, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) -> (B, H/4, W/4, embed_dim)."""
        return self.proj(x).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Hiera(nn.Module):
    """The trunk: one feature map per stage, at strides 4, 8, 16 and 32.

    The first block of a stage still uses the previous stage's window: it pools its queries, so its output windows are half that.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.embed_dim, *config.window_pos_embed_bkg_spatial_size))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, config.embed_dim, *(config.window_spec[0],) * 2))
        self.stage_ends = [end - 1 for end in accumulate(config.stages)]
        self.blocks = nn.ModuleList()
        dim, stage = config.embed_dim, 0
        for i in range(sum(config.stages)):
            window = 0 if i in config.global_att_blocks else config.window_spec[stage]
            pool = i - 1 in self.stage_ends
            stage += pool
            dim_out = config.channels[stage]
            self.blocks.append(MultiScaleBlock(dim, dim_out, config.num_heads * 2**stage, window, pool))
            dim = dim_out

    def position_embedding(self, hw: tuple[int, int]) -> Tensor:
        """Global (bicubic-resized) plus tiled window positions, (1, H, W, C). Depends on weights only: exports bake it in."""
        embedding = F.interpolate(self.pos_embed, size=hw, mode="bicubic")
        tiles = [size // window for size, window in zip(hw, self.pos_embed_window.shape[-2:], strict=True)]
        return (embedding + self.pos_embed_window.tile(1, 1, *tiles)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, H, W) normalised -> maps (B, H_i, W_i, C_i), finest first."""
        x = self.patch_embed(x)  # (B, H/4, W/4, C)
        return self.stages(x + self.position_embedding((x.shape[1], x.shape[2])))

    def stages(self, x: Tensor, ort_cpu: bool = False) -> list[Tensor]:
        """x: (B, H/4, W/4, C) patches with their positions -> maps (B, H_i, W_i, C_i), finest first."""
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x, ort_cpu)
            if i in self.stage_ends:
                maps.append(x)
        return maps

    def patch_form(self, mean: Tensor, std: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Normalisation, patches and positions as one convolution and one constant. Depends on weights only.

        mean, std: (3,) in the image's own range; hw: of the image
        Returns weight (C, 3, 7, 7), for images before normalisation, and position (1, H/4, W/4, C), to be added.

        The convolution is linear and pads with zeros *after* normalisation: what -mean contributes is a map of its own.
        """
        weight = self.patch_embed.proj.weight / std.reshape(1, 3, 1, 1)
        shift = -mean.reshape(1, 3, 1, 1).expand(1, 3, *hw)
        shift_map = F.conv2d(shift, weight, self.patch_embed.proj.bias, self.patch_embed.proj.stride, padding=3)
        position = self.position_embedding((hw[0] // 4, hw[1] // 4)) + shift_map.permute(0, 2, 3, 1)
        return weight.detach(), position.detach()
