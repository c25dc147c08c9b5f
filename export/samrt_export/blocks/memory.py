"""SAM 2's memory modules under their official names, as upstream computes them.

One parametrised form serves SAM 2 and EdgeTAM: how the keys of a slot are rotated is a table (`Rotation`), in which tokens
that upstream leaves alone have the angle zero. blocks/memory_bank.py makes graphs of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.layers import LayerNorm2d
from samrt_export.blocks.positions import Rotation, rotate_pairs
from samrt_export.blocks.two_way import Attention


class RotaryAttention(Attention):
    """One attention head over the whole width; queries and keys are rotated by their place on the grid."""

    def __init__(self, dim: int, kv_dim: int | None = None) -> None:
        super().__init__(dim, num_heads=1, kv_dim=kv_dim)

    def rotary(
        self, q: Tensor, k: Tensor, v: Tensor, turn_q: Rotation, turn_k: Rotation, valid: Tensor | None = None
    ) -> Tensor:
        """q: (B, Nq, dim), k and v: (B, Nk, kv_dim), valid: (B, Nk) bool -> (B, Nq, dim)."""
        mask = None if valid is None else valid[:, None, None]
        q, k = rotate_pairs(self.q_proj(q), turn_q), rotate_pairs(self.k_proj(k), turn_k)
        x = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), self.v_proj(v).unsqueeze(1), attn_mask=mask)
        return self.out_proj(x.squeeze(1))  # type: ignore[no-any-return]


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memory bank, feed-forward; pre-norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(dim)
        self.cross_attn_image = RotaryAttention(dim, kv_dim=memory_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, memory: Tensor, position: Tensor, turn_x: Rotation, turn_memory: Rotation, valid: Tensor | None
    ) -> Tensor:
        """x: (B, hw, dim), memory and position: (B, N, memory_dim), valid: (B, N) bool -> (B, hw, dim)."""
        y = self.norm1(x)
        x = x + self.self_attn.rotary(y, y, y, turn_x, turn_x)
        y = self.norm2(x)
        x = x + self.cross_attn_image.rotary(y, memory + position, memory, turn_x, turn_memory, valid)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))  # type: ignore[no-any-return]


class MemoryAttention(nn.Module):
    """Conditions the current frame's embedding on the memory bank."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, memory_dim, mlp_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    @property
    def ordered_layers(self) -> list[MemoryAttentionLayer]:
        """The layers, as what they are."""
        return [layer for layer in self.layers if isinstance(layer, MemoryAttentionLayer)]

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        position: Tensor,
        turn_x: Rotation,
        turn_memory: Rotation,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Condition B embeddings on N memory tokens each.

        x: (B, hw, dim), a tenth of its sine positions added; memory, position: (B, N, memory_dim), positions count for keys
        alone; turn_x: of hw positions; turn_memory: of N tokens; valid: (B, N) bool, None is all -> (B, hw, dim)
        """
        for layer in self.layers:
            x = layer(x, memory, position, turn_x, turn_memory, valid)
        return self.norm(x)  # type: ignore[no-any-return]


class MaskDownSampler(nn.Module):
    """Four stride-2 convolutions, the width times four at each, then to ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 4, 16, 64):
            layers += [nn.Conv2d(channels, channels * 4, 3, stride=2, padding=1), LayerNorm2d(channels * 4), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(256, dim, kernel_size=1))

    def forward(self, mask: Tensor) -> Tensor:
        """mask: (B, 1, S, S) -> (B, dim, S / 16, S / 16)."""
        return self.encoder(mask)  # type: ignore[no-any-return]


class CXBlock(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) with layer scale ``gamma``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, dim, h, w), the same out."""
        norm = self.norm
        y = F.layer_norm(self.dwconv(x).permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Fuser(nn.Module):
    """Two ConvNeXt blocks over image features plus mask features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CXBlock(dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, dim, h, w), the same out."""
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Turns a frame's features and its mask into one memory map."""

    def __init__(self, dim: int, memory_dim: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, memory_dim, kernel_size=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """image: (B or 1, dim, h, w) as the neck leaves it, mask: (B, 1, 16 h, 16 w) in -10..10 -> (B, memory_dim, h, w)."""
        return self.out_proj(self.fuser(self.pix_feat_proj(image) + self.mask_downsampler(mask)))  # type: ignore[no-any-return]


def mask_for_memory(logits: Tensor, binarize: Tensor, input_hw: tuple[int, int]) -> Tensor:
    """What the memory encoder takes for a mask, -10..10.

    logits: (B, 1, h, w) low-res; binarize: (B,) 1 where somebody prompted this frame: the mask is then taken as certain
    """
    fine = F.interpolate(logits, size=input_hw, mode="bilinear", align_corners=False)
    certain = (fine > 0).to(fine.dtype)
    share = torch.where(binarize.reshape(-1, 1, 1, 1) > 0.5, certain, fine.sigmoid())
    scaled: Tensor = share * 20 - 10  # sigmoid_scale_for_mem_enc, sigmoid_bias_for_mem_enc
    return scaled
