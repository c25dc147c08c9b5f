"""SAM's prompt encoder: points and boxes become tokens, a mask becomes a map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samrt_export.blocks.fpn import linear_1x1
from samrt_export.blocks.layers import LayerNorm2d


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of positions in 0..1 (arXiv 2006.10739)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def forward(self, norm_xy: Tensor) -> Tensor:
        """norm_xy: (..., 2) in 0..1 -> (..., 2 * num_features)."""
        angles = 2 * math.pi * ((2 * norm_xy - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def grid(self, hw: tuple[int, int]) -> Tensor:
        """Encoding of the centres of an h x w grid, (1, 2 * num_features, h, w). Depends on weights only."""
        h, w = hw
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        norm_xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
        return self(norm_xy).permute(2, 0, 1)[None]  # type: ignore[no-any-return]


class PromptEncoder(nn.Module):
    """Labels: 0 background point, 1 foreground point, 2 and 3 the corners of a box, -1 not a point (padding)."""

    def __init__(self, dim: int, embed_hw: tuple[int, int], input_hw: tuple[int, int], mask_channels: int = 16) -> None:
        super().__init__()
        self.embed_hw = embed_hw
        self.input_hw = input_hw
        self.pe_layer = PositionEmbeddingRandom(dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def dense_position(self) -> Tensor:
        """Position encoding of the image embedding, (1, hw, dim)."""
        return self.pe_layer.grid(self.embed_hw).flatten(2).transpose(1, 2)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """coords: (P, N, 2) xy in input pixels, labels: (P, N) -> (P, N, dim).

        The label table is looked up by comparing, not by indexing: no Gather on data, no NonZero in the graph.
        """
        h, w = self.input_hw
        position = self.pe_layer((coords + 0.5) / coords.new_tensor([w, h]))  # +0.5: the centre of the pixel
        labels = labels[..., None]  # (P, N, 1)
        embedding = torch.where(labels == -1, self.not_a_point_embed.weight[0], position)
        for label, table in enumerate(self.point_embeddings):
            assert isinstance(table, nn.Embedding)
            embedding = embedding + (labels == label).to(table.weight.dtype) * table.weight[0]
        return embedding

    def embed_masks(self, masks: Tensor, has_mask: Tensor) -> Tensor:
        """masks: (P, 1, 4h, 4w) logits, has_mask: (P,) 0 or 1 -> (P, hw, dim).

        Of any size: with masks of 4 x 4 the answer is one vector per prompt, which is all there is where no prompt has one.
        """
        *layers, last = self.mask_downscaling
        assert isinstance(last, nn.Conv2d)
        x = masks
        for layer in layers:
            x = layer(x)  # (P, 16, h, w) in the end
        embedding = linear_1x1(x.permute(0, 2, 3, 1), last).flatten(1, 2)  # (P, hw, dim)
        return torch.where(has_mask.reshape(-1, 1, 1) > 0.5, embedding, self.no_mask_embed.weight)


class PromptEncoderGraph(nn.Module):
    """The graph ``prompt_encoder``: see the table of families/sam."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns sparse_embeddings, dense_embeddings."""
        sparse = self.encoder.embed_points(point_coords, point_labels)
        return sparse, self.encoder.embed_masks(mask_input, has_mask_input)
