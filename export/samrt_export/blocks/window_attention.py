"""Attention of voxels within windows of space, as one batch of windows that are filled up to the longest.

Which voxel is in which window is the host's to say: ``windows`` (W, L) has the one-based rows of each window, 0 where it is
filled up, ``slots`` (N,) the place of each row in windows flattened. What is filled up is neither seen nor read back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.contrib import multi_head_attention
from samrt_export.blocks.flow_transformer import FeedForward
from samrt_export.blocks.sparse_conv import constants, sum_of_products, with_zero_row

NORM_EPS = 1e-6
EMPTY = -1e4
"""Added to the scores of what is not there (fp16 holds it with room to spare): their softmax weights are exactly zero."""


class Windows(NamedTuple):
    """One partition. rows: int32 (W, L) one-based; slots: int32 (N,) zero-based, into W * L."""

    rows: Tensor
    slots: Tensor


class WindowAttention(nn.Module):
    """Attention of several heads within windows, without positions or norms of queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """x: (N, dim), the same out."""
        rows = F.embedding(windows.rows, with_zero_row(self.to_qkv(x)))  # (W, L, 3 * dim)
        q, k, v = rows.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (W, heads, L, dim / heads)
        empty = (windows.rows < 1).to(x.dtype)[:, None, None] * EMPTY  # (W, 1, 1, L)
        empty = empty.expand(-1, -1, rows.shape[1], -1)  # ONNX Runtime 1.31 does not broadcast it over the queries
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=empty).transpose(1, 2)  # (W, L, heads, dim / heads)
        return self.to_out(F.embedding(windows.slots, y.flatten(2).flatten(0, 1)))  # type: ignore[no-any-return]


HEADS_AT_ONCE = 3
"""Heads whose windows `LeanWindowAttention` fills up together: windows have about twice the voxels' rows, for queries, keys and
values each, and the kernel copies all three."""


class LeanWindowAttention(nn.Module):
    """The same for ONNX Runtime's CPU kernel, which holds no scores as long as there is no mask; a few heads at a time.

    What is missing is marked in one more channel of the keys, that of the queries being 1: a constant of the projections'
    weights, so that it costs nothing to make. Row 0, which stands for a missing voxel, has it at `EMPTY`.
    """

    missing_key: Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        dim = attention.to_out.in_features
        head_dim = dim // attention.heads
        self.heads = min(HEADS_AT_ONCE, attention.heads)
        assert attention.heads % self.heads == 0, "heads must come in whole groups"
        self.scale, width = head_dim**-0.5, self.heads * head_dim
        weights, biases = attention.to_qkv.weight.detach(), attention.to_qkv.bias.detach()
        q, k, v = (
            list(zip(w.split(width), b.split(width), strict=True))
            for w, b in zip(weights.split(dim), biases.split(dim), strict=True)
        )
        self.queries = nn.ModuleList(_with_channel(*part, self.heads, 1.0) for part in q)
        self.keys = nn.ModuleList(_with_channel(*part, self.heads, 0.0) for part in k)
        self.values = nn.ModuleList(_linear(*part) for part in v)
        self.outs = constants(*attention.to_out.weight.T.split(width))
        self.bias = nn.Parameter(attention.to_out.bias.detach(), requires_grad=False)
        missing = torch.zeros(self.heads, head_dim + 1)
        missing[:, -1] = EMPTY
        self.register_buffer("missing_key", missing.view(1, -1))

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """x: (N, dim), the same out."""
        groups = zip(self.queries, self.keys, self.values, strict=True)
        attended = [self._attended(query(x), key(x), value(x), windows) for query, key, value in groups]
        return sum_of_products(self.bias, attended, self.outs)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, windows: Windows) -> Tensor:
        """query and key: (N, width + heads), value: (N, width) of a group of heads -> (N, width)."""
        q = F.embedding(windows.rows, with_zero_row(query))  # (W, L, width + heads)
        k = F.embedding(windows.rows, torch.cat((self.missing_key, key)))
        v = F.embedding(windows.rows, with_zero_row(value))
        y = multi_head_attention(q, k, v, num_heads=self.heads, scale=self.scale)  # (W, L, width)
        return F.embedding(windows.slots, y.flatten(0, 1))


def _with_channel(weight: Tensor, bias: Tensor, heads: int, value: float) -> nn.Linear:
    """A projection whose heads have one more channel, which is a constant."""
    wider = F.pad(weight.unflatten(0, (heads, -1)), (0, 0, 0, 1)).flatten(0, 1)
    return _linear(wider, F.pad(bias.unflatten(0, (heads, -1)), (0, 1), value=value).flatten())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of given weights (out, in)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


class WindowBlock(nn.Module):
    """Pre-norm block: attention in windows, then an MLP; its norms have no weights."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, heads)
        self.mlp = FeedForward(dim, mlp_ratio * dim)

    def forward(self, x: Tensor, windows: Windows, attention: nn.Module | None = None) -> Tensor:
        """x: (N, dim), the same out. attention: another form of the block's own."""
        x = x + (attention or self.attn)(plain_norm(x), windows)
        return x + self.mlp(plain_norm(x))  # type: ignore[no-any-return]


def plain_norm(x: Tensor) -> Tensor:
    """LayerNorm over channels without weights."""
    return F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)
