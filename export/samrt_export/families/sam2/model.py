"""SAM 2 as modules under the official parameter names: the target of a strict load, and the reference of every graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samrt_export.blocks.fpn import FpnNeck
from samrt_export.blocks.hiera import Hiera, HieraConfig
from samrt_export.blocks.layers import MLP
from samrt_export.blocks.mask_decoder import MaskDecoder
from samrt_export.blocks.memory import MemoryAttention, MemoryEncoder
from samrt_export.blocks.memory_bank import BankTokens, TimePositions
from samrt_export.blocks.positions import Rotation, axial_rotation, sine_grid
from samrt_export.blocks.prompt_encoder import PromptEncoder
from samrt_export.blocks.two_way import ImageProjections
from samrt_export.families.sam2.config import CONFIGS, MEAN, NUM_MASKMEM, STD, Sam2Config


class ImageEncoder(nn.Module):
    """Trunk and neck."""

    def __init__(self, config: Sam2Config, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = FpnNeck(config.d_model, config.trunk.channels, config.top_down_levels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: (B, 3, S, S) normalised -> (B, S/4, S/4, C), (B, S/8, S/8, C), (B, S/16, S/16, C).

        The coarsest level only feeds the one below it.
        """
        levels = self.neck(self.trunk(image))
        return levels[0], levels[1], levels[2]


class Sam2(nn.Module):
    """The whole model under the official parameter names."""

    def __init__(self, config: Sam2Config, trunk: nn.Module) -> None:
        """trunk: (B, 3, S, S) normalised -> its maps (B, H_i, W_i, C_i), finest first."""
        super().__init__()
        dim, memory_dim = config.d_model, config.memory_dim
        self.config = config
        self.image_encoder = ImageEncoder(config, trunk)
        self.sam_prompt_encoder = PromptEncoder(dim, (config.embed_size,) * 2, (config.image_size,) * 2)
        self.sam_mask_decoder = MaskDecoder(dim, config.mlp_dim, config.iou_hidden_dim)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        # What follows serves video only.
        self.memory_attention = MemoryAttention(dim, memory_dim, config.mlp_dim, config.memory_layers)
        self.memory_encoder = MemoryEncoder(dim, memory_dim)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(NUM_MASKMEM, 1, 1, memory_dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        self.obj_ptr_proj = MLP(dim, dim, dim, 3)
        if config.pointer_positions:
            self.no_obj_embed_spatial: Tensor | None = nn.Parameter(torch.zeros(1, memory_dim))
            self.obj_ptr_tpos_proj: nn.Linear | None = nn.Linear(dim, memory_dim)
        else:
            self.no_obj_embed_spatial = self.obj_ptr_tpos_proj = None

    def normalize(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) float 0..255 -> (B, 3, S, S) as the trunk takes it."""
        mean, std = image.new_tensor(MEAN) * 255, image.new_tensor(STD) * 255
        return ((image - mean) / std).permute(0, 3, 1, 2)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: (B, S, S, 3) float 0..255 -> image_embed, high_res_feats_0, high_res_feats_1."""
        return self.features(*self.image_encoder(self.normalize(image)))

    def features(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pyramid levels -> what the mask decoder takes: image_embed, high_res_feats_0, high_res_feats_1."""
        return coarse.flatten(1, 2) + self.no_mem_embed, *self.sam_mask_decoder.high_res_features(fine, middle)

    def project(self, image_embed: Tensor) -> ImageProjections:
        """image_embed: (B, hw, C) -> image_queries, image_keys, image_values."""
        first = self.sam_mask_decoder.transformer.first_layer
        return first.project(image_embed, self.sam_prompt_encoder.dense_position())

    def image_position(self) -> Tensor:
        """A tenth of the sine positions, as they are added to what memory attention takes: (hw, C)."""
        return 0.1 * sine_grid((self.config.embed_size,) * 2, self.config.d_model)

    def rotation(self) -> Rotation:
        """How memory attention turns the image's queries and keys."""
        return axial_rotation((self.config.embed_size,) * 2, self.config.d_model)

    def bank_tokens(self) -> BankTokens:
        """A slot of the memory bank is a map as large as the embedding."""
        return BankTokens(sine_grid((self.config.embed_size,) * 2, self.config.memory_dim), self.rotation())

    def memory_tokens(self, memory: Tensor) -> Tensor:
        """memory: (K, hw, memory_dim) of K objects -> (K, tokens, memory_dim), what a slot of the bank keeps of it."""
        return memory

    def time_positions(self) -> TimePositions:
        """Ages of slots: row 0 is the frame before, the last row a conditioning frame of whatever age."""
        return TimePositions(self.maskmem_tpos_enc.flatten(1), self.obj_ptr_tpos_proj)


def build(model: str) -> Sam2:
    """The module of a model name."""
    config = CONFIGS[model]
    assert isinstance(config.trunk, HieraConfig)
    return Sam2(config, Hiera(config.trunk))
