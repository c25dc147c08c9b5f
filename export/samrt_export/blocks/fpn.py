"""Feature pyramid neck: every level to one width, coarse levels added to finer ones (arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def linear_1x1(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution on a map (B, H, W, C): a matrix product, no layout change."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def add_enlarged(x: Tensor, above: Tensor) -> Tensor:
    """x: (B, 2h, 2w, C) plus above: (B, h, w, C) enlarged 2x (nearest), by broadcasting: nothing is enlarged in memory."""
    b, h, w, c = above.shape
    blocks = x.reshape(b, h, 2, w, 2, c) + above.reshape(b, h, 1, w, 1, c)
    return blocks.reshape(b, 2 * h, 2 * w, c)


class LateralConv(nn.Module):
    """1x1 convolution under the official name ``conv``."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, d_model, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, channels) -> (B, H, W, d_model)."""
        return linear_1x1(x, self.conv)


class FpnNeck(nn.Module):
    """``convs`` are stored coarsest first, as in the official files."""

    def __init__(self, d_model: int, channels: Sequence[int], top_down_levels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(LateralConv(c, d_model) for c in reversed(channels))
        self.top_down_levels = frozenset(top_down_levels)

    def forward(self, maps: Sequence[Tensor], finest: int = 0) -> dict[int, Tensor]:
        """maps: (B, H_i, W_i, C_i), finest first -> level i: (B, H_i, W_i, d_model), from ``finest`` up.

        Only ``top_down_levels`` receive the level above, enlarged 2x (nearest); the others are their lateral alone.
        """
        levels: dict[int, Tensor] = {}
        for i in reversed(range(finest, len(maps))):
            lateral = self.lateral(i)(maps[i])
            levels[i] = add_enlarged(lateral, levels[i + 1]) if self.has_above(i) else lateral
        return levels

    def lateral(self, i: int) -> LateralConv:
        """The convolution of a level, 0 the finest."""
        conv = self.convs[len(self.convs) - 1 - i]
        assert isinstance(conv, LateralConv)
        return conv

    def has_above(self, i: int) -> bool:
        """Whether a level receives the one above it."""
        return i in self.top_down_levels and i + 1 < len(self.convs)


class LevelReader(nn.Module):
    """A pyramid level seen only through a 1x1 convolution: the two multiplied into one, so the level is never built.

    In SAM 2 the two finest levels, 256 channels wide, are only ever read by convolutions to 32 and 64.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, neck: FpnNeck, i: int, reader: nn.Conv2d, extra_bias: Tensor) -> None:
        super().__init__()
        assert reader.bias is not None
        lateral = neck.lateral(i).conv
        assert lateral.bias is not None
        read = reader.weight.detach().flatten(1)  # (out, d_model)
        self.neck, self.i, self.reader = neck, i, reader
        self.register_buffer("weight", read @ lateral.weight.detach().flatten(1))
        self.register_buffer("bias", (read @ lateral.bias + reader.bias + extra_bias).detach())

    def forward(self, maps: Sequence[Tensor], levels: Mapping[int, Tensor]) -> Tensor:
        """maps: as in FpnNeck.forward; levels: those the neck built, this one not needed -> (B, H_i, W_i, out)."""
        seen = F.linear(maps[self.i], self.weight, self.bias)
        if not self.neck.has_above(self.i):
            return seen
        return add_enlarged(seen, F.linear(levels[self.i + 1], self.reader.weight.flatten(1)))
