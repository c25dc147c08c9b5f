"""SAM's image encoder: a plain ViT with windows and decomposed relative positions (arXiv 2304.02643, 2203.16527).

Maps are (B, H, W, C) throughout. Here it is as upstream computes it, under the official parameter names, and as the target
of a strict load; blocks/vit_forms.py has it as it is exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samrt_export.blocks.hiera import map_from_windows, windows_from_map
from samrt_export.blocks.layers import LayerNorm2d, LinearMlp

SCORES_AT_ONCE = 1 << 26
"""Attention scores that `VitAttention` computes together: heads by heads where all of them would fill gigabytes."""


@dataclass(frozen=True, slots=True)
class VitConfig:
    """Sizes of an encoder; field names are those of the official ``ImageEncoderViT``."""

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    img_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    out_chans: int = 256

    @property
    def side(self) -> int:
        """Patches along an edge of the picture."""
        return self.img_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.embed_dim // self.num_heads


class VitAttention(nn.Module):
    """Self-attention over a square map, with relative positions of rows and of columns added to the scores."""

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.side = side
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, head_dim))

    def tables(self) -> tuple[Tensor, Tensor]:
        """What a query at row (column) i is multiplied with for keys at row (column) j: each (side i, side j, head_dim)."""
        index = torch.arange(self.side)
        distance = index[:, None] - index[None] + self.side - 1  # (i, j)
        return self.rel_pos_h[distance], self.rel_pos_w[distance]

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, side, side, dim), the same out."""
        b, side, tokens = x.shape[0], self.side, self.side**2
        qkv = self.qkv(x).reshape(b, tokens, 3, self.num_heads, -1).permute(2, 3, 0, 1, 4)  # (3, heads, B, tokens, d)
        at_once = max(1, SCORES_AT_ONCE // (b * tokens**2))
        groups = zip(*(part.split(at_once) for part in qkv.unbind(0)), strict=True)
        attended = torch.cat([self._attend(*group) for group in groups])  # (heads, B, tokens, d)
        return self.proj(attended.permute(1, 2, 0, 3).reshape(b, side, side, -1))  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Some heads: each (heads, B, tokens, d), the same out."""
        rows, columns = self.tables()
        side = self.side
        scores = (q * self.scale) @ k.transpose(-2, -1)  # (heads, B, tokens, tokens)
        placed = q.unflatten(2, (side, side))  # (heads, B, h, w, d)
        of_rows = torch.einsum("nbhwd,hkd->nbhwk", placed, rows)
        of_columns = torch.einsum("nbhwd,wkd->nbhwk", placed, columns)
        scores = scores.unflatten(3, (side, side)).unflatten(2, (side, side))  # (heads, B, h, w, h', w')
        scores = scores + of_rows.unsqueeze(-1) + of_columns.unsqueeze(-2)
        return scores.flatten(4).flatten(2, 3).softmax(-1) @ v  # type: ignore[no-any-return]


class VitBlock(nn.Module):
    """Pre-norm transformer block, in windows (``window > 0``) or over the whole map (``window == 0``)."""

    def __init__(self, dim: int, num_heads: int, window: int, side: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = VitAttention(dim, num_heads, window or side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = LinearMlp(dim, 4 * dim, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, dim), the same out. Windows are filled up with zeros, which are attended to like all else."""
        normed = self.norm1(x)
        if self.window:
            hw = (x.shape[1], x.shape[2])
            x = x + map_from_windows(self.attn(windows_from_map(normed, self.window)), self.window, hw)
        else:
            x = x + self.attn(normed)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Patches side by side."""

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, S / patch, S / patch, embed_dim)."""
        return self.proj(x).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def vit_neck(embed_dim: int, out_chans: int) -> nn.Sequential:
    """What makes the embedding of a SAM-like encoder's last map, (B, embed_dim, h, w) -> (B, out_chans, h, w)."""
    return nn.Sequential(
        nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
        LayerNorm2d(out_chans),
        nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_chans),
    )


class ImageEncoderVit(nn.Module):
    """The whole encoder under the official parameter names."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        side = config.side
        self.patch_embed = PatchEmbed(config.embed_dim, config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.embed_dim))
        self.blocks = nn.ModuleList(
            VitBlock(
                config.embed_dim, config.num_heads, 0 if i in config.global_attn_indexes else config.window_size, side
            )
            for i in range(config.depth)
        )
        self.neck = vit_neck(config.embed_dim, config.out_chans)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S) normalised -> (B, h, w, out_chans)."""
        return self.maps(image)[0]

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, 3, S, S) normalised -> embedding (B, h, w, out_chans), first global block's output (B, h, w, embed_dim)."""
        x = self.patch_embed(image) + self.pos_embed
        early = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.config.global_attn_indexes[0]:
                early = x
        return self.neck(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), early

    def patch_form(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Normalisation, patches and positions as one convolution and one constant. Depends on weights only.

        mean, std: (3,) in the image's own range
        Returns weight (embed_dim, 3, patch, patch), for images before normalisation, and position (1, h, w, embed_dim).
        """
        weight = self.patch_embed.proj.weight / std.reshape(1, 3, 1, 1)
        shift = -(weight * mean.reshape(1, 3, 1, 1)).sum((1, 2, 3))  # no padding: the same for every patch
        assert self.patch_embed.proj.bias is not None
        return weight.detach(), (self.pos_embed + self.patch_embed.proj.bias + shift).detach()
