"""SAM as modules under the official parameter names: the target of a strict load, and the reference of every graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samrt_export.blocks.mask_decoder import SamMaskDecoder
from samrt_export.blocks.prompt_encoder import PromptEncoder
from samrt_export.blocks.two_way import ImageProjections
from samrt_export.blocks.vit import ImageEncoderVit, VitAttention, VitBlock
from samrt_export.families.sam.config import CONFIGS, MEAN, STD, PromptedConfig
from samrt_export.randomize import randomize_live

BRANCH_GAIN = 0.5
"""Of a random encoder's residual branches: at unit gain what the patches brought would drown in 32 blocks."""
RELATIVE_GAIN = 0.2
"""Of random relative positions: a query of unit values times a table of unit values would make softmax a choice of one."""


class Sam(nn.Module):
    """The whole model under the official parameter names; SAM-HQ and MobileSAM have other encoders or decoders."""

    def __init__(self, config: PromptedConfig, encoder: nn.Module, decoder: nn.Module | None = None) -> None:
        """encoder: (B, 3, S, S) normalised -> (B, h, w, C); decoder: None is SAM's."""
        super().__init__()
        self.config = config
        self.image_encoder = encoder
        self.prompt_encoder = PromptEncoder(config.d_model, (config.embed_size,) * 2, (config.image_size,) * 2)
        self.mask_decoder = decoder or SamMaskDecoder(config.d_model, config.mlp_dim, config.iou_hidden_dim)

    @property
    def decoder(self) -> SamMaskDecoder:
        """The mask decoder, as what it is."""
        assert isinstance(self.mask_decoder, SamMaskDecoder)
        return self.mask_decoder

    def normalize(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) float 0..255 -> (B, 3, S, S) as the encoder takes it."""
        mean, std = image.new_tensor(MEAN) * 255, image.new_tensor(STD) * 255
        return ((image - mean) / std).permute(0, 3, 1, 2)

    def encode(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) float 0..255 -> image_embed (B, hw, C)."""
        return self.image_encoder(self.normalize(image)).flatten(1, 2)  # type: ignore[no-any-return]

    def project(self, image_embed: Tensor) -> ImageProjections:
        """image_embed: (B, hw, C) -> what the decoder's first layer makes of it."""
        return self.decoder.transformer.first_layer.project(image_embed, self.prompt_encoder.dense_position())


def build(model: str) -> Sam:
    """The module of a model name."""
    config = CONFIGS[model]
    return Sam(config.prompted, ImageEncoderVit(config.encoder))


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place: `randomize_live`, and what keeps a deep encoder's blocks in proportion."""
    randomize_live(module, seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, VitBlock):
                for layer in (part.attn.proj, part.mlp.lin2):
                    layer.weight.mul_(BRANCH_GAIN)
            elif isinstance(part, VitAttention):
                for table in (part.rel_pos_h, part.rel_pos_w):
                    table.mul_(RELATIVE_GAIN)
