"""DINOv2 with registers (arXiv 2309.16588, Apache-2.0), for pictures of the very size of its position table.

Parameters have the names of the official torch-hub models.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.flow_transformer import attend

NORM_EPS = 1e-6


class VitAttention(nn.Module):
    """Self-attention with one projection to queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, N, dim), the same out."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.heads, ort_cpu))  # type: ignore[no-any-return]

    def first(self, x: Tensor) -> Tensor:
        """The result for the first token alone. x: (B, N, dim) -> (B, 1, dim)."""
        dim = self.proj.in_features
        q = F.linear(x[:, :1], self.qkv.weight[:dim], self.qkv.bias[:dim])
        k, v = F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, dim=-1)
        return self.proj(attend(q, k, v, self.heads))  # type: ignore[no-any-return]


class VitMlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim), the same out."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim), the same out."""
        return x * self.gamma


class VitBlock(nn.Module):
    """Pre-norm transformer block, with or without a learned scale of its branches."""

    def __init__(self, dim: int, heads: int, hidden: int, scaled: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = VitAttention(dim, heads)
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = VitMlp(dim, hidden)
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, N, dim), the same out."""
        x = x + self.ls1(self.attn(self.norm1(x), ort_cpu))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def first(self, x: Tensor) -> Tensor:
        """What becomes of the first token, the others' results left out. x: (B, N, dim) -> (B, 1, dim)."""
        token = x[:, :1] + self.ls1(self.attn.first(self.norm1(x)))
        return token + self.ls2(self.mlp(self.norm2(token)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Patches side by side."""

    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_px, stride=patch_px)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, (S / patch)^2, dim)."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Dinov2(nn.Module):
    """The encoder. ``mask_token`` is in the official files and serves training only."""

    def __init__(self, dim: int, depth: int, heads: int, *, patch_px: int, registers: int, view_px: int) -> None:
        super().__init__()
        self.registers = registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (view_px // patch_px) ** 2, dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbed(dim, patch_px)
        self.blocks = nn.ModuleList(VitBlock(dim, heads, 4 * dim, scaled=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, pictures: Tensor, ort_cpu: bool = False) -> Tensor:
        """pictures: (B, 3, S, S), normalised -> (B, 1 + registers + patches, dim), before the last norm."""
        batch = pictures.shape[0]
        x = torch.cat((self.cls_token.expand(batch, -1, -1), self.patch_embed(pictures)), dim=1) + self.pos_embed
        if self.registers:
            x = torch.cat((x[:, :1], self.register_tokens.expand(batch, -1, -1), x[:, 1:]), dim=1)
        for block in self.blocks:
            x = block(x, ort_cpu)
        return x

    def normed(self, tokens: Tensor) -> Tensor:
        """The class token and the patches after the last norm: (B, 1 + registers + patches, dim) -> (B, 1 + patches, dim)."""
        return self.norm(torch.cat((tokens[:, :1], tokens[:, 1 + self.registers :]), dim=1))  # type: ignore[no-any-return]
