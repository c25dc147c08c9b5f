"""One module for each graph, as upstream computes it and as it is exported. Inputs and outputs: the table of the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.fpn import linear_1x1
from samrt_export.blocks.layers import LayerNorm2d
from samrt_export.blocks.mask_decoder import masks_of_filters
from samrt_export.blocks.two_way import ImageProjections
from samrt_export.families.efficient_sam.config import MEAN, STD
from samrt_export.families.efficient_sam.model import EfficientSam, Head, MaskDecoder


class ImageEncoderReference(nn.Module):
    """``image_encoder`` as upstream computes it."""

    def __init__(self, model: EfficientSam) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        image_embed = self.model.encode(image)
        return image_embed, *self.model.project(image_embed)


class ImageEncoderGraph(nn.Module):
    """``image_encoder`` with all that depends on weights alone computed beforehand.

    Patches do not overlap and are not padded: normalisation goes into their convolution, its mean and the resized table of
    positions into a constant (TensorRT has no cubic resize).
    """

    weight: Tensor
    position: Tensor
    dense_position: Tensor

    def __init__(self, model: EfficientSam, ort_cpu: bool = False) -> None:
        super().__init__()
        self.ort_cpu = ort_cpu
        self.encoder = model.image_encoder
        self.first_layer = model.mask_decoder.transformer.first_layer
        mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
        patches = self.encoder.patch_embed.proj
        assert patches.bias is not None
        weight = (patches.weight / std.reshape(1, 3, 1, 1)).detach()
        bias = patches.bias - (weight.sum((2, 3)) * mean).sum(1)
        self.register_buffer("weight", weight)
        self.register_buffer("position", (self.encoder.position() + bias).detach())
        self.register_buffer("dense_position", model.prompt_encoder.dense_position().detach())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        patches = F.conv2d(image.permute(0, 3, 1, 2), self.weight, stride=self.weight.shape[-1])  # (B, dim, h, w)
        x = patches.flatten(2).transpose(1, 2) + self.position
        for block in self.encoder.blocks:
            x = block(x, self.ort_cpu)
        image_embed = self._neck(x)
        return image_embed, *self.first_layer.project(image_embed, self.dense_position)

    def _neck(self, x: Tensor) -> Tensor:
        """x: (B, hw, dim) -> (B, hw, C). Channels are last wherever the 3x3 convolution does not want them first."""
        narrow, norm, mix, last_norm = self.encoder.neck
        assert isinstance(narrow, nn.Conv2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(last_norm, LayerNorm2d)
        x = _norm(linear_1x1(x, narrow), norm)
        x = mix(x.transpose(1, 2).unflatten(2, self.encoder.embed_hw))  # (B, C, h, w)
        return _norm(x.flatten(2).transpose(1, 2), last_norm)


def _norm(x: Tensor, norm: LayerNorm2d) -> Tensor:
    """x: (..., C), the same out."""
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps)


class PromptEncoderGraph(nn.Module):
    """``prompt_encoder``."""

    def __init__(self, model: EfficientSam) -> None:
        super().__init__()
        self.encoder = model.prompt_encoder

    def forward(self, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor]:
        """See the table of the package."""
        return (self.encoder(point_coords, point_labels),)


class MaskDecoderReference(nn.Module):
    """``mask_decoder`` as upstream computes it: from the image embedding, nothing known before."""

    def __init__(self, model: EfficientSam) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image_embed: Tensor, image_queries: Tensor, image_keys: Tensor, image_values: Tensor, sparse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the table of the package."""
        model = self.model
        image = image_embed.expand(sparse.shape[0], -1, -1)  # upstream too repeats the one image
        position, hw = model.prompt_encoder.dense_position(), (model.config.embed_size,) * 2
        return model.mask_decoder(image, position, sparse, hw)  # type: ignore[no-any-return]


class MaskDecoderGraph(nn.Module):
    """``mask_decoder`` with the image's position encoding baked in and its first projections taken from the encoder.

    Of the mask token that nothing is read from, only the part in attention is computed.
    """

    position: Tensor

    def __init__(self, model: EfficientSam, folded: bool = False) -> None:
        super().__init__()
        self.folded = folded
        self.hw = (model.config.embed_size,) * 2
        self.decoder = model.mask_decoder
        self.upscaling = NestedUpscaling(model.mask_decoder)
        self.register_buffer("position", model.prompt_encoder.dense_position().detach())

    def forward(
        self, image_embed: Tensor, image_queries: Tensor, image_keys: Tensor, image_values: Tensor, sparse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the table of the package."""
        prompts = sparse.shape[0]
        # Attention as one operator wants one image for each prompt. What is multiplied or added broadcasts.
        keys, values = (x.expand(prompts, -1, -1, -1) for x in (image_keys, image_values))
        queries = image_queries if self.folded else image_queries.expand(prompts, -1, -1, -1)
        projected = ImageProjections(queries, keys, values)
        tokens, image = self.decoder.attend(image_embed, self.position, sparse, projected, self.folded)
        heads = self.decoder.output_hypernetworks_mlps
        filters = torch.stack([heads[i](tokens[:, 1 + i]) for i in range(1, len(heads))], dim=1)  # (P, 3, C/8)
        return masks_of_filters(filters, self.upscaling(image), self.hw), self._scores(tokens[:, 0])

    def _scores(self, token: Tensor) -> Tensor:
        """token: (P, C) -> (P, 3), the first candidate's score left out before it is made."""
        head = self.decoder.iou_prediction_head
        assert isinstance(head, Head)
        return F.linear(head.hidden(token), head.fc.weight[1:], head.fc.bias[1:])


class NestedUpscaling(nn.Module):
    """The upscaling layers in nested order (see blocks/mask_decoder.py), the four pixels of a position side by side.

    The norm is over a whole image of (2h, 2w, C/4), a million values. Its means are taken over channels and then over
    positions: summed one by one, a million fp32 terms lose two digits (ONNX Runtime 1.31, ``LayerNormalization``), and fp16
    would hold neither the sum nor the squares. Written out, every step of it can be kept in fp32 where a graph is narrow.
    """

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    last_weight: Tensor
    last_bias: Tensor

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        up, norm, last = (decoder.final_output_upscaling_layers.get_submodule(name) for name in ("0.0", "0.1", "1.0"))
        assert isinstance(up, nn.ConvTranspose2d)
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(last, nn.ConvTranspose2d)
        assert up.bias is not None
        assert last.bias is not None
        self.eps = norm.eps
        tensors = {
            "weight": _product(up),
            "bias": up.bias.tile(4),
            "norm_weight": norm.weight.tile(4),
            "norm_bias": norm.bias.tile(4),
            "last_weight": _product(last),
            "last_bias": last.bias.tile(4),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().contiguous())

    def forward(self, image: Tensor) -> Tensor:
        """image: (P, hw, C) -> (P, hw, 16, C/8)."""
        x = image @ self.weight  # (P, hw, 4 * C/4), the bias to come with the mean
        centred = x + (self.bias - (_mean(x) + self.bias.mean()))
        factor = self.norm_weight * torch.rsqrt(_mean(centred * centred) + self.eps)  # (P, 1, 4 * C/4)
        x = F.gelu(centred * factor + self.norm_bias).unflatten(2, (4, -1))  # (P, hw, 4, C/4)
        return F.gelu(x @ self.last_weight + self.last_bias).flatten(2).unflatten(2, (16, -1))  # type: ignore[no-any-return]


def _mean(x: Tensor) -> Tensor:
    """Over all but the first axis: (P, N, K) -> (P, 1, 1)."""
    return x.mean(2, keepdim=True).mean(1, keepdim=True)


def _product(layer: nn.ConvTranspose2d) -> Tensor:
    """A 2x2 stride-2 transposed convolution as a matrix (C, 2 * 2 * C')."""
    return layer.weight.permute(0, 2, 3, 1).flatten(1)
