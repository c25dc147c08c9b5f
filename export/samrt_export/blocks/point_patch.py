"""Reads a pointmap: one token for each window of pixels, made by one transformer block within the window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samrt_export.blocks.dinov2 import VitBlock


class PointPatch(nn.Module):
    """Pixels to vectors, windows of pixels to tokens.

    A pixel without a point is a learned vector; a window's token is what its block makes of a class token.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int, *, view_px: int, window: int) -> None:
        super().__init__()
        self.side, self.window = view_px // window, window
        self.point_proj = nn.Linear(3, dim)
        self.invalid_xyz_token = nn.Parameter(torch.zeros(dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, 1 + window**2, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, self.side, self.side))
        self.blocks = nn.ModuleList([VitBlock(dim, heads, mlp_ratio * dim)])

    def forward(self, points: Tensor, valid: Tensor, whole_block: bool = True) -> Tensor:
        """points: (V, S, S, 3), valid: (V, S, S), 1 or 0 -> (V, (S / window)^2, dim).

        whole_block: whether the block is run for all tokens of a window. Only the first is used, and the export runs it for
            that one.
        """
        views = points.shape[0]
        x = self.point_proj(points)
        known = valid.unsqueeze(-1)
        x = x * known + self.invalid_xyz_token * (1 - known)
        x = self._windows(x)  # (V * side^2, window^2, dim)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed_window
        block = self.blocks[0]
        assert isinstance(block, VitBlock)
        token = block(x)[:, :1] if whole_block else block.first(x)
        position = self.pos_embed.flatten(2).transpose(1, 2)  # (1, side^2, dim)
        return token.reshape(views, self.side**2, -1) + position

    def _windows(self, x: Tensor) -> Tensor:
        """x: (V, S, S, C) -> (V * side^2, window^2, C)."""
        views, channels = x.shape[0], x.shape[-1]
        x = x.reshape(views, self.side, self.window, self.side, self.window, channels).transpose(2, 3)
        return x.reshape(views * self.side**2, self.window**2, channels)
