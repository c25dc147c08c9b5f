"""One module for each graph, as upstream computes it and as it is exported. Inputs and outputs: the table of the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.hiera import Hiera
from samrt_export.blocks.mask_decoder import nested_from_map
from samrt_export.blocks.memory import mask_for_memory
from samrt_export.blocks.memory_bank import Bank, MemoryAttentionGraph, condition_as_upstream
from samrt_export.families.sam2.config import MEAN, STD
from samrt_export.families.sam2.model import Sam2


class ImageEncoderReference(nn.Module):
    """``image_encoder`` as upstream computes it."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        image_embed, *high_res = self.model.encode(image)
        return image_embed, *self.model.project(image_embed), *high_res


class ImageEncoderGraph(nn.Module):
    """``image_encoder`` with all that depends on weights alone computed beforehand.

    Normalisation and positions are folded into the patch convolution (TensorRT has no cubic resize); the two finest levels,
    which only 1x1 convolutions read, are never built.
    """

    weight: Tensor
    position: Tensor
    dense_position: Tensor

    def __init__(self, model: Sam2, ort_cpu: bool = False) -> None:
        super().__init__()
        self.ort_cpu = ort_cpu
        self.model = model
        mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
        trunk = model.image_encoder.trunk
        assert isinstance(trunk, Hiera)
        weight, position = trunk.patch_form(mean, std, (model.config.image_size,) * 2)
        self.register_buffer("weight", weight)
        self.register_buffer("position", position)
        self.register_buffer("dense_position", model.sam_prompt_encoder.dense_position().detach())
        self.fine, self.middle = model.sam_mask_decoder.high_res_readers(model.image_encoder.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        model = self.model
        trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
        assert isinstance(trunk, Hiera)
        patches = F.conv2d(image.permute(0, 3, 1, 2), self.weight, stride=4, padding=3).permute(0, 2, 3, 1)
        maps = trunk.stages(patches + self.position, self.ort_cpu)
        levels = neck(maps, finest=1 if neck.has_above(0) else 2)
        image_embed = levels[2].flatten(1, 2) + model.no_mem_embed
        projections = model.sam_mask_decoder.transformer.first_layer.project(image_embed, self.dense_position)
        fine, middle = self.fine(maps, levels), self.middle(maps, levels)
        return image_embed, *projections, nested_from_map(fine, 2), nested_from_map(middle, 1)


class MaskDecoderReference(nn.Module):
    """``mask_decoder`` as upstream computes it: from the image embedding, nothing known before."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the table of the package."""
        model = self.model
        position, hw = model.sam_prompt_encoder.dense_position(), (model.config.embed_size,) * 2
        high_res = (high_res_feats_0, high_res_feats_1)
        return model.sam_mask_decoder(image_embed + dense, position, sparse, high_res, hw)  # type: ignore[no-any-return]


class MaskDecoderGraph(nn.Module):
    """``mask_decoder`` with the image's position encoding baked in and its first projections taken from the encoder."""

    position: Tensor

    def __init__(self, model: Sam2, folded: bool = False) -> None:
        super().__init__()
        self.folded = folded
        self.hw = (model.config.embed_size,) * 2
        self.decoder = model.sam_mask_decoder
        self.register_buffer("position", model.sam_prompt_encoder.dense_position().detach())

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the table of the package."""
        projected = self.decoder.transformer.projections_with((image_queries, image_keys, image_values), dense)
        high_res = (high_res_feats_0, high_res_feats_1)
        return self.decoder(  # type: ignore[no-any-return]
            image_embed + dense, self.position, sparse, high_res, self.hw, projected, self.folded
        )


class MemoryAttentionReference(nn.Module):
    """``memory_attention`` as upstream computes it."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image_embed: Tensor,
        memory: Tensor,
        memory_time: Tensor,
        memory_valid: Tensor,
        object_pointers: Tensor,
        pointer_distance: Tensor,
        pointer_valid: Tensor,
    ) -> tuple[Tensor, ...]:
        """See the table of the package."""
        bank = Bank(memory, memory_time, memory_valid, object_pointers, pointer_distance, pointer_valid)
        model = self.model
        with image_embed.device:  # where the tables are made
            image = image_embed - model.no_mem_embed + model.image_position()
            tokens, times = model.bank_tokens(), model.time_positions()
            embed = condition_as_upstream(model.memory_attention, image, model.rotation(), bank, tokens, times)
        return embed, *model.project(embed)


class MemoryAttentionForm(nn.Module):
    """``memory_attention`` as exported: see blocks/memory_bank.py."""

    offset: Tensor
    dense_position: Tensor

    def __init__(self, model: Sam2, lean: bool = False, ort_cpu: bool = False) -> None:
        super().__init__()
        tokens, times = model.bank_tokens(), model.time_positions()
        self.attention = MemoryAttentionGraph(model.memory_attention, model.rotation(), tokens, times, lean, ort_cpu)
        self.first_layer = model.sam_mask_decoder.transformer.first_layer
        self.register_buffer("offset", (model.image_position() - model.no_mem_embed).detach())
        self.register_buffer("dense_position", model.sam_prompt_encoder.dense_position().detach())

    def forward(
        self,
        image_embed: Tensor,
        memory: Tensor,
        memory_time: Tensor,
        memory_valid: Tensor,
        object_pointers: Tensor,
        pointer_distance: Tensor,
        pointer_valid: Tensor,
    ) -> tuple[Tensor, ...]:
        """See the table of the package."""
        bank = Bank(memory, memory_time, memory_valid, object_pointers, pointer_distance, pointer_valid)
        embed = self.attention(image_embed + self.offset, bank)
        return embed, *self.first_layer.project(embed, self.dense_position)


class MemoryEncoderGraph(nn.Module):
    """``memory_encoder``, and the pointer: all that a frame leaves in the bank."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image_embed: Tensor, mask_logits: Tensor, binarize: Tensor, object_score: Tensor, mask_token: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the table of the package."""
        model = self.model
        side = model.config.embed_size
        image = (image_embed - model.no_mem_embed).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        mask = mask_for_memory(mask_logits, binarize, (model.config.image_size,) * 2)
        memory = model.memory_encoder(image, mask).flatten(2).transpose(1, 2)  # (K, hw, memory_dim)
        absent = (object_score <= 0).to(memory.dtype)  # (K, 1)
        if model.no_obj_embed_spatial is not None:
            memory = memory + absent.unsqueeze(1) * model.no_obj_embed_spatial
        pointer = model.obj_ptr_proj(mask_token)
        return model.memory_tokens(memory), torch.where(absent > 0.5, model.no_obj_ptr, pointer)


class MaskDownsamplerReference(nn.Module):
    """``mask_downsampler``: a mask at model size becomes a mask prompt, and the image is as the neck left it.

    Upstream leaves ``no_mem_embed`` out where a user gives the mask (``SAM2Base._use_mask_as_output``).
    """

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(self, mask: Tensor, image_embed: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        plain = image_embed - self.model.no_mem_embed
        return self.model.mask_downsample(mask), plain, *self.model.project(plain)


class MaskDownsamplerGraph(nn.Module):
    """``mask_downsampler`` with the image's position encoding baked in."""

    no_mem_embed: Tensor
    dense_position: Tensor

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.conv = model.mask_downsample
        self.first_layer = model.sam_mask_decoder.transformer.first_layer
        self.register_buffer("no_mem_embed", model.no_mem_embed.detach())
        self.register_buffer("dense_position", model.sam_prompt_encoder.dense_position().detach())

    def forward(self, mask: Tensor, image_embed: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        plain = image_embed - self.no_mem_embed
        return self.conv(mask), plain, *self.first_layer.project(plain, self.dense_position)
