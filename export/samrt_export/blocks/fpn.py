"""Feature pyramid neck: every level to one width, coarse levels added to finer ones (arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class LateralConv(nn.Module):
    """1x1 convolution under the official name ``conv``."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, d_model, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W) -> (B, d_model, H, W)."""
        return self.conv(x)  # type: ignore[no-any-return]


class FpnNeck(nn.Module):
    """``convs`` are stored coarsest first, as in the official files."""

    def __init__(self, d_model: int, channels: Sequence[int], top_down_levels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(LateralConv(c, d_model) for c in reversed(channels))
        self.top_down_levels = frozenset(top_down_levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps: (B, C_i, H_i, W_i), finest first -> (B, d_model, H_i, W_i), finest first.

        Only ``top_down_levels`` receive the level above, enlarged 2x (nearest); the others are their lateral alone.
        """
        levels: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(maps))):
            lateral = self.convs[len(maps) - 1 - level](maps[level])
            if above is not None and level in self.top_down_levels:
                lateral = lateral + F.interpolate(above, scale_factor=2.0, mode="nearest")
            above = lateral
            levels.insert(0, lateral)
        return levels
