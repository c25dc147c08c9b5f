"""SAM 2's memory modules: their parameters, so that a whole official file loads strictly.

Their graphs (``memory_attention``, ``memory_encoder``) are not exported yet; a model's abilities say so.
"""

from __future__ import annotations

import torch
from torch import nn

from samrt_export.blocks.layers import LayerNorm2d
from samrt_export.blocks.two_way import Attention


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memory bank (64-wide keys and values), feed-forward; pre-norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads=1)
        self.cross_attn_image = Attention(dim, num_heads=1, kv_dim=memory_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)


class MemoryAttention(nn.Module):
    """Conditions the current frame's embedding on the memory bank."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, memory_dim, mlp_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)


class MaskDownSampler(nn.Module):
    """Four stride-2 convolutions, the width times four at each, then to ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 4, 16, 64):
            layers += [nn.Conv2d(channels, channels * 4, 3, stride=2, padding=1), LayerNorm2d(channels * 4), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(256, dim, kernel_size=1))


class CXBlock(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) with layer scale ``gamma``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))


class Fuser(nn.Module):
    """Two ConvNeXt blocks over image features plus mask features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CXBlock(dim) for _ in range(2))


class MemoryEncoder(nn.Module):
    """Turns a frame's features and its mask into one memory map."""

    def __init__(self, dim: int, memory_dim: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, memory_dim, kernel_size=1)
