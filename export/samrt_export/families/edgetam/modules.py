"""The one graph that EdgeTAM does not share with SAM 2, as it is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samrt_export.blocks.mask_decoder import nested_from_map
from samrt_export.families.edgetam.model import EdgeTam, Trunk
from samrt_export.families.sam2.config import MEAN, STD


class ImageEncoderGraph(nn.Module):
    """``image_encoder`` with all that depends on weights alone computed beforehand.

    The trunk's branches and norms are one convolution each. The pictures' spread is folded into the first one, their mean is
    not: it pads with zeros, which stand for the mean. The two finest levels, which only 1x1 convolutions read, are never built.
    """

    mean: Tensor
    dense_position: Tensor

    def __init__(self, model: EdgeTam) -> None:
        super().__init__()
        trunk = model.image_encoder.trunk
        assert isinstance(trunk, Trunk)
        self.model = model
        self.trunk = trunk.body.fused()
        first = self.trunk.stem.conv1
        assert isinstance(first, nn.Conv2d)
        first.weight = nn.Parameter(first.weight / (torch.tensor(STD) * 255).reshape(1, 3, 1, 1), requires_grad=False)
        self.register_buffer("mean", torch.tensor(MEAN) * 255)
        self.register_buffer("dense_position", model.sam_prompt_encoder.dense_position().detach())
        self.fine, self.middle = model.sam_mask_decoder.high_res_readers(model.image_encoder.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of families/sam2."""
        model = self.model
        maps = [level.permute(0, 2, 3, 1) for level in self.trunk((image - self.mean).permute(0, 3, 1, 2))]
        levels = model.image_encoder.neck(maps, finest=2)
        image_embed = levels[2].flatten(1, 2) + model.no_mem_embed
        projections = model.sam_mask_decoder.transformer.first_layer.project(image_embed, self.dense_position)
        fine, middle = self.fine(maps, levels), self.middle(maps, levels)
        return image_embed, *projections, nested_from_map(fine, 2), nested_from_map(middle, 1)
