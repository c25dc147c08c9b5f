"""EdgeTAM's spatial perceiver: a frame's memory map, thousands of tokens, read by a few hundred latent ones.

Half of the latents read the whole map, the other half one window each; the latter stay a grid. Source:
sam2/modeling/perceiver.py of facebookresearch/EdgeTAM, with one head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.positions import sine_grid


class Reading(nn.Module):
    """Latents attend to the map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_x = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (..., dim) -> keys and values, the same shape each. The same for both halves of the latents."""
        keys, values = self.to_kv(self.norm_x(x)).chunk(2, dim=-1)
        return keys, values

    def forward(self, latents: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """latents: (K, G, L, dim), keys and values: (K, G, N, dim), of G groups apart -> (K, G, L, dim)."""
        queries = self.to_q(self.norm_latents(latents))
        return self.to_out(F.scaled_dot_product_attention(queries, keys, values))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Latents attend to each other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """latents: (K, G, L, dim) -> (K, G, L, dim), within each of G groups."""
        x = self.norm(latents)
        keys, values = self.to_kv(x).chunk(2, dim=-1)
        if latents.shape[2] == 1:  # alone, a latent has nothing to choose from
            return self.to_out(values)  # type: ignore[no-any-return]
        return self.to_out(F.scaled_dot_product_attention(self.to_q(x), keys, values))  # type: ignore[no-any-return]


class PerceiverLayer(nn.Module):
    """Reading, MLP, self-attention, MLP; each added to what was there."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = Reading(dim)
        self.ff = _feed_forward(dim)
        self.self_attn = SelfAttention(dim)
        self.self_ff = _feed_forward(dim)

    def forward(self, latents: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """latents: (K, G, L, dim), keys and values: (K, G, N, dim) -> (K, G, L, dim)."""
        latents = latents + self.attn(latents, keys, values)
        latents = latents + self.ff(latents)
        latents = latents + self.self_attn(latents)
        return latents + self.self_ff(latents)  # type: ignore[no-any-return]


class PerceiverResampler(nn.Module):
    """``latents`` read all, with positions on keys and values; ``latents_2d`` read a window each, without."""

    position: Tensor

    def __init__(self, dim: int, depth: int, num_latents: int, grid: int, hw: tuple[int, int]) -> None:
        """grid: side of the grid of windows; hw: of the map, multiples of it."""
        super().__init__()
        self.grid = grid
        self.window = hw[0] // grid, hw[1] // grid
        self.latents = nn.Parameter(torch.zeros(num_latents, dim))
        self.latents_2d = nn.Parameter(torch.zeros(grid * grid, dim))
        self.layers = nn.ModuleList(PerceiverLayer(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        position = self.windows(sine_grid(hw, dim).reshape(1, *hw, dim)).flatten(1, 2)
        self.register_buffer("position", position[:, None], persistent=False)  # (1, 1, hw, dim)

    def windows(self, x: Tensor) -> Tensor:
        """x: (K, h, w, C) -> (K, grid * grid, tokens of a window, C)."""
        h, w = self.window
        x = x.unflatten(2, (self.grid, w)).unflatten(1, (self.grid, h)).transpose(2, 3)  # (K, grid, grid, h, w, C)
        return x.flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (K, h, w, dim) -> (K, num_latents + grid * grid, dim).

        Both halves read the same keys and values, projected once; the map's tokens stay in the order of windows, which an
        attention to all of them does not see.
        """
        x = self.windows(x)  # (K, windows, N, dim)
        everywhere = self.latents.expand(x.shape[0], 1, -1, -1)
        windowed = self.latents_2d.unsqueeze(1).expand(x.shape[0], -1, -1, -1)
        for layer in self.layers:
            assert isinstance(layer, PerceiverLayer)
            keys, values = layer.attn.project(x)
            placed = (part.flatten(1, 2).unsqueeze(1) + self.position for part in (keys, values))  # (K, 1, h * w, dim)
            everywhere = layer(everywhere, *placed)
            windowed = layer(windowed, keys, values)
        return self.norm(torch.cat((everywhere.squeeze(1), windowed.squeeze(2)), dim=1))  # type: ignore[no-any-return]

    def token_position(self) -> Tensor:
        """Where the tokens are, for those who attend to them: (num_latents + grid * grid, dim), zero for the first half."""
        dim = self.latents.shape[1]
        grid = sine_grid((self.grid, self.grid), dim).to(self.latents)
        return torch.cat((torch.zeros_like(self.latents.detach()), grid))


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
    )
