"""Tokens of several encoders and views as one condition of one width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SwiGlu(nn.Module):
    """A gated pair of linear layers without biases: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, out_dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., out_dim)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class TokenFuser(nn.Module):
    """Encoders (``module_list``) and the projection of each into the condition.

    Views of each encoder come cropped, then whole; ``idx_emb`` tells the two apart, a row for each.
    """

    def __init__(self, encoders: Sequence[nn.Module], dims: Sequence[int], hidden: int, dim: int, groups: int) -> None:
        super().__init__()
        self.module_list = nn.ModuleList(encoders)
        self.projection_nets = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), SwiGlu(width, hidden, dim)) for width in dims
        )
        self.idx_emb = nn.Parameter(torch.zeros(groups, dim))

    def fuse(self, tokens: Sequence[Tensor]) -> Tensor:
        """tokens: of each encoder (2, N, width), cropped and whole -> (1, all tokens, dim)."""
        parts = []
        for project, views in zip(self.projection_nets, tokens, strict=True):
            fused = project(views) + self.idx_emb[:2].unsqueeze(1)  # (2, N, dim)
            parts.append(fused.reshape(1, -1, fused.shape[-1]))
        return torch.cat(parts, dim=1)
