"""EfficientSAM as modules under the official parameter names: the target of a strict load, and the reference of every graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.dinov2 import PatchEmbed, VitBlock
from samrt_export.blocks.layers import LayerNorm2d
from samrt_export.blocks.prompt_encoder import PositionEmbeddingRandom
from samrt_export.blocks.two_way import Attention, ImageProjections, TwoWayTransformer
from samrt_export.families.efficient_sam.config import CONFIGS, MEAN, NUM_MASKS, STD, EfficientSamConfig
from samrt_export.randomize import ATTENTION_GAIN, randomize_live


class ImageEncoder(nn.Module):
    """A plain ViT, every block over all patches, and SAM's neck."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        dim, out, grid = config.dim, config.d_model, config.position_grid
        self.embed_hw = (config.embed_size,) * 2
        self.grid_hw = (grid, grid)
        self.patch_embed = PatchEmbed(dim, config.image_size // config.embed_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))  # the first row is of a class token
        self.blocks = nn.ModuleList(VitBlock(dim, config.heads, 4 * dim) for _ in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out, kernel_size=1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out),
        )

    def position(self) -> Tensor:
        """The table of positions at the embedding's size, without the class token's: (1, hw, dim)."""
        table = self.pos_embed[:, 1:].unflatten(1, self.grid_hw).permute(0, 3, 1, 2)  # (1, dim, grid, grid)
        return F.interpolate(table, size=self.embed_hw, mode="bicubic").flatten(2).transpose(1, 2)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S) normalised -> (B, hw, C)."""
        x = self.patch_embed(image) + self.position()  # (B, hw, dim)
        for block in self.blocks:
            x = block(x)
        embed = self.neck(x.transpose(1, 2).unflatten(2, self.embed_hw))  # (B, C, h, w)
        return embed.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class PromptEncoder(nn.Module):
    """Labels: 1 a point on the object, 2 and 3 the corners of a box, -1 not a point (padding).

    Each kind's embedding is added to the position's. There are no points off the object: upstream gives a 0 the position
    alone, which no picture of the training showed.
    """

    def __init__(self, dim: int, embed_hw: tuple[int, int], input_hw: tuple[int, int]) -> None:
        super().__init__()
        self.embed_hw = embed_hw
        self.input_hw = input_hw
        self.pe_layer = PositionEmbeddingRandom(dim // 2)
        self.invalid_points = nn.Embedding(1, dim)
        self.point_embeddings = nn.Embedding(1, dim)
        self.bbox_top_left_embeddings = nn.Embedding(1, dim)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, dim)

    def dense_position(self) -> Tensor:
        """Position encoding of the image embedding, (1, hw, dim)."""
        return self.pe_layer.grid(self.embed_hw).flatten(2).transpose(1, 2)

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        """coords: (P, N, 2) xy in input pixels, labels: (P, N) -> (P, N, dim).

        Upstream pads with points at (-1, -1), and puts every coordinate below 0 there (``EfficientSam.get_rescaled_pts``).
        """
        h, w = self.input_hw
        labels = labels[..., None]  # (P, N, 1)
        coords = torch.where((labels == -1) | (coords < 0), -1.0, coords)
        embedding: Tensor = self.pe_layer((coords + 0.5) / coords.new_tensor([w, h]))  # +0.5: the centre of the pixel
        tables = (
            (-1, self.invalid_points),
            (1, self.point_embeddings),
            (2, self.bbox_top_left_embeddings),
            (3, self.bbox_bottom_right_embeddings),
        )
        for label, table in tables:
            embedding = embedding + (labels == label).to(embedding.dtype) * table.weight
        return embedding


class Head(nn.Module):
    """Linear layers, each but the last followed by GELU, under the official names ``layers.N.0`` and ``fc``."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, hidden_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (hidden_layers - 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, hidden_dim), nn.GELU()) for width in widths)
        self.fc = nn.Linear(hidden_dim, output_dim)

    def hidden(self, x: Tensor) -> Tensor:
        """x: (..., input_dim) -> (..., hidden_dim), what the last layer takes."""
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., input_dim) -> (..., output_dim)."""
        return self.fc(self.hidden(x))  # type: ignore[no-any-return]


class MaskDecoder(nn.Module):
    """SAM's, but for GELU in place of ReLU, one norm over the whole upscaled image, and another self-attention (see two_way)."""

    def __init__(self, dim: int, mlp_dim: int, iou_hidden_dim: int) -> None:
        super().__init__()
        tokens = 1 + NUM_MASKS
        self.transformer = TwoWayTransformer(
            2, dim, 8, mlp_dim, make_mlp=lambda: Head(dim, mlp_dim, dim, 1), positions_stay=True
        )
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(tokens, dim)
        self.final_output_upscaling_layers = nn.ModuleList(
            (
                nn.Sequential(nn.ConvTranspose2d(dim, dim // 4, 2, stride=2), nn.GroupNorm(1, dim // 4), nn.GELU()),
                nn.Sequential(nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2), nn.Identity(), nn.GELU()),
            )
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Head(dim, dim, dim // 8, 2) for _ in range(tokens))
        self.iou_prediction_head = Head(dim, iou_hidden_dim, tokens, 2)

    def attend(
        self,
        image: Tensor,
        position: Tensor,
        sparse: Tensor,
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What the transformer makes of the tokens, own ones first, and of the image.

        image: (P, hw, C); position: (1, hw, C); sparse: (P, N, C); projected, folded: see two_way
        Returns (P, 1 + 4 + N, C) and (P, hw, C).
        """
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight))  # (1 + 4, C)
        tokens = torch.cat((own.expand(sparse.shape[0], -1, -1), sparse), dim=1)
        return self.transformer(image, position, tokens, projected, folded)  # type: ignore[no-any-return]

    def forward(self, image: Tensor, position: Tensor, sparse: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As upstream computes it: every candidate, then all but the first.

        image: (P, hw, C); position: (1, hw, C); sparse: (P, 6, C); hw: of the image
        Returns masks (P, 3, 4h, 4w) logits, iou (P, 3).
        """
        tokens, keys = self.attend(image, position, sparse)
        upscaled = keys.transpose(1, 2).unflatten(2, hw)  # (P, C, h, w)
        for layer in self.final_output_upscaling_layers:
            upscaled = layer(upscaled)  # (P, C/8, 4h, 4w) in the end
        filters = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = (torch.stack(filters, dim=1) @ upscaled.flatten(2)).unflatten(2, tuple(upscaled.shape[2:]))
        return masks[:, 1:], self.iou_prediction_head(tokens[:, 0])[:, 1:]


class EfficientSam(nn.Module):
    """The whole model under the official parameter names."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config.d_model, (config.embed_size,) * 2, (config.image_size,) * 2)
        self.mask_decoder = MaskDecoder(config.d_model, config.mlp_dim, config.iou_hidden_dim)

    def encode(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) float 0..255 -> (B, hw, C)."""
        mean, std = image.new_tensor(MEAN) * 255, image.new_tensor(STD) * 255
        return self.image_encoder(((image - mean) / std).permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    def project(self, image_embed: Tensor) -> ImageProjections:
        """image_embed: (B, hw, C) -> image_queries, image_keys, image_values."""
        return self.mask_decoder.transformer.first_layer.project(image_embed, self.prompt_encoder.dense_position())


def build(model: str) -> EfficientSam:
    """The module of a model name."""
    return EfficientSam(CONFIGS[model])


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place: `randomize_live`, and the decoder's attention as wide as its inputs, no wider.

    Its tokens are larger than SAM's, since positions stay in the stream: they make softmax pick by themselves. Wider still, it
    would magnify every rounding, and half of a random decoder would have to stay in fp32.
    """
    assert isinstance(module, EfficientSam)
    randomize_live(module, seed)
    with torch.no_grad():
        for part in module.mask_decoder.transformer.modules():
            if isinstance(part, Attention):
                part.q_proj.weight.div_(ATTENTION_GAIN)
                part.k_proj.weight.div_(ATTENTION_GAIN)
