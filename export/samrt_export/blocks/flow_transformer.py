"""The diffusion transformer of flows in 3D: times as sines, modulated blocks with self- and cross-attention.

The names of parameters are those of TRELLIS (arXiv 2412.01506, MIT), which SAM 3D Objects shares. A block's stream of tokens
is modulated by the time, attends to itself with normalised queries and keys, then to a condition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.contrib import multi_head_attention

MAX_PERIOD = 10_000.0
NORM_EPS = 1e-6
OUT_NORM_EPS = 1e-5
RMS_EPS = 1e-12
"""Of normalised queries and keys. It is only there against a division by zero: upstream clips the length at 1e-12."""


class TimeEmbedder(nn.Module):
    """A scalar time as cosines, then sines, of ``channels / 2`` frequencies, through two linear layers."""

    frequencies: Tensor

    def __init__(self, dim: int, channels: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, dim), nn.SiLU(), nn.Linear(dim, dim))
        half = channels // 2
        rates = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half) / half)
        self.register_buffer("frequencies", rates, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """time: (1,), scaled -> (1, dim)."""
        angles = time[:, None] * self.frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))  # type: ignore[no-any-return]


class MultiHeadRmsNorm(nn.Module):
    """Scales the vector of each head to length ``sqrt(head_dim)``, then each channel by ``gamma`` (heads, head_dim).

    ``RMSNormalization`` takes a weight for all heads alike: it is given ones.
    """

    ones: Tensor

    def __init__(self, head_dim: int, heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, head_dim))
        self.register_buffer("ones", torch.ones(head_dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, heads, head_dim), the same out."""
        return F.rms_norm(x, (x.shape[-1],), self.ones, RMS_EPS) * self.gamma


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, ort_cpu: bool = False) -> Tensor:
    """Attention of several heads that lie side by side: q (B, Nq, C), k and v (B, Nk, C) -> (B, Nq, C).

    ort_cpu: as ONNX Runtime's own operator, which holds no Nq x Nk scores on the CPU: at full size those of one block are
        1.07 GB (self) and 1.97 GB (cross) in fp32.
    """
    if ort_cpu:
        return multi_head_attention(q, k, v, num_heads=heads)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, C / heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention of a stream to itself, queries and keys normalised per head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.q_rms_norm = MultiHeadRmsNorm(dim // heads, heads)
        self.k_rms_norm = MultiHeadRmsNorm(dim // heads, heads)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, N, dim), the same out."""
        q, k, v = normed_qkv(x, self.to_qkv, self.q_rms_norm, self.k_rms_norm, self.heads)
        return self.to_out(attend(q, k, v, self.heads, ort_cpu))  # type: ignore[no-any-return]


def normed_qkv(
    x: Tensor, to_qkv: nn.Module, q_norm: nn.Module, k_norm: nn.Module, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x: (B, N, C) -> queries, keys, values, each (B, N, C), the first two normalised per head."""
    q, k, v = to_qkv(x).chunk(3, dim=-1)
    q, k = (norm(part.unflatten(-1, (heads, -1))).flatten(2) for norm, part in ((q_norm, q), (k_norm, k)))
    return q, k, v


class CrossAttention(nn.Module):
    """Attention of a stream to a condition. Nothing is normalised: of a condition of equal tokens one gives the same as all."""

    def __init__(self, dim: int, cond_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(cond_dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, condition: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, N, dim), condition: (B, M, cond_dim) -> (B, N, dim)."""
        k, v = self.to_kv(condition).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(x), k, v, self.heads, ort_cpu))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim), the same out."""
        return self.mlp(x)  # type: ignore[no-any-return]


class Modulation(NamedTuple):
    """What a time does to a block: shift, scale and gate of its self-attention and of its MLP, each (1, 1, dim)."""

    shift_attention: Tensor
    scale_attention: Tensor
    gate_attention: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


def modulation_layer(dim: int) -> nn.Sequential:
    """The layer from a time's embedding to a `Modulation`."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))


def modulation_of(layer: nn.Module, time: Tensor) -> Modulation:
    """time: (1, dim), embedded."""
    return Modulation(*layer(time).unsqueeze(1).chunk(6, dim=-1))


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without weights, scaled and shifted. x: (B, N, dim)."""
    return F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS) * (1 + scale) + shift


class ModulatedCrossBlock(nn.Module):
    """A block on one stream: self-attention and MLP modulated by the time, cross-attention between them plain."""

    def __init__(self, dim: int, cond_dim: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attn = SelfAttention(dim, heads)
        self.cross_attn = CrossAttention(dim, cond_dim, heads)
        self.mlp = FeedForward(dim, mlp_ratio * dim)
        self.adaLN_modulation = modulation_layer(dim)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, ort_cpu: bool = False) -> Tensor:
        """x: (B, N, dim), time: (1, dim), embedded, condition: (B, M, cond_dim) -> (B, N, dim)."""
        mod = modulation_of(self.adaLN_modulation, time)
        h = self.self_attn(modulated(x, mod.scale_attention, mod.shift_attention), ort_cpu)
        x = x + h * mod.gate_attention
        x = x + self.cross_attn(self.norm2(x), condition, ort_cpu)
        return x + self.mlp(modulated(x, mod.scale_mlp, mod.shift_mlp)) * mod.gate_mlp  # type: ignore[no-any-return]


def out_norm(x: Tensor) -> Tensor:
    """The LayerNorm without weights before an output layer."""
    return F.layer_norm(x, (x.shape[-1],), eps=OUT_NORM_EPS)


def axis_sines(count: int, channels: int) -> Tensor:
    """Sines, then cosines, of the coordinates 0 .. count - 1 of one axis: (count, 2 * (channels // 6)).

    A position in space is the three axes' rows side by side, filled up with zeros to ``channels``.
    """
    half = channels // 6
    rates = MAX_PERIOD ** -(torch.arange(half) / half)
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def grid_positions(side: int, channels: int) -> Tensor:
    """Positions of all cells of a cube, (side^3, channels); the row of (x, y, z) is (x * side + y) * side + z."""
    axis = axis_sines(side, channels)
    cells = torch.cartesian_prod(*(torch.arange(side),) * 3)
    table = axis[cells].flatten(1)  # (side^3, 6 * (channels // 6))
    return F.pad(table, (0, channels - table.shape[1]))
