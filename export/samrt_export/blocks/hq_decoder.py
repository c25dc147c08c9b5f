"""SAM-HQ's mask decoder (arXiv 2306.01567): SAM's with one more token, whose mask is made of finer image features.

`hq_features` depend on the image alone: they are for the image encoder's graph, so that the decoder's graph is the same for
every backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.layers import MLP, LayerNorm2d
from samrt_export.blocks.mask_decoder import (
    SamMaskDecoder,
    mask_filters,
    nested_from_map,
    raster_from_nested,
    upscaled_by,
)
from samrt_export.blocks.two_way import ImageProjections


class HqMaskDecoder(SamMaskDecoder):
    """Candidate k is SAM's mask k with the HQ mask added, logit by logit; the scores are SAM's. The HQ mask alone comes last.

    Upstream answers a request for several masks with one, the best of 1 to 3; choosing is the runtime's here.
    """

    def __init__(self, dim: int, mlp_dim: int, iou_hidden_dim: int, early_dim: int, num_masks: int = 4) -> None:
        """early_dim: width of the map that the encoder hands on before its end."""
        super().__init__(dim, mlp_dim, iou_hidden_dim, num_masks)
        self.hf_token = nn.Embedding(1, dim)
        self.hf_mlp = MLP(dim, dim, dim // 8, 3)
        self.compress_vit_feat = _enlarging(early_dim, dim, dim // 8)
        self.embedding_encoder = _enlarging(dim, dim // 4, dim // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(dim // 8, dim // 4, kernel_size=3, padding=1),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.Conv2d(dim // 4, dim // 8, kernel_size=3, padding=1),
        )

    def own_tokens(self) -> Tensor:
        """The scores' token, the masks', the HQ mask's: (1 + M + 1, C)."""
        return torch.cat((super().own_tokens(), self.hf_token.weight))

    def hq_features(self, embedding: Tensor, early: Tensor) -> Tensor:
        """embedding: (B, hw, C), early: (B, hw, early_dim), the encoder's -> (B, hw * 16, C/8), nested."""
        return _enlarged(embedding, self.embedding_encoder) + _enlarged(early, self.compress_vit_feat)

    def hq_features_as_upstream(self, embedding: Tensor, early: Tensor) -> Tensor:
        """The same of maps (B, h, w, ...), by the layers as they are."""
        nchw = self.embedding_encoder(embedding.permute(0, 3, 1, 2)) + self.compress_vit_feat(early.permute(0, 3, 1, 2))
        return nested_from_map(nchw.permute(0, 2, 3, 1), 2).flatten(1, 2)

    def predict_as_upstream(
        self, image: Tensor, position: Tensor, sparse: Tensor, hq_features: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`SamMaskDecoder.forward` with hq_features: (P or 1, hw * 16, C/8), from `hq_features`.

        returns: logits (P, M, 4h, 4w), scores (P, M), the HQ mask's logits (P, 1, 4h, 4w)
        """
        tokens, keys = self.attend(image, position, sparse)
        upscaled = map_from_nested(self.upscale(keys), hw)  # (P, C/8, 4h, 4w)
        refined = self.embedding_maskfeature(upscaled) + map_from_nested(hq_features.unflatten(1, (-1, 16)), hw)
        filters, hq_filter = self._filters(tokens)
        hq_masks = (hq_filter @ refined.flatten(2)).unflatten(2, upscaled.shape[2:])  # (P, 1, 4h, 4w)
        masks = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])  # (P, M, 4h, 4w)
        return masks + hq_masks, self.iou_prediction_head(tokens[:, 0]), hq_masks

    def predict(
        self,
        image: Tensor,
        position: Tensor,
        sparse: Tensor,
        hq_features: Tensor,
        hw: tuple[int, int],
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with less to compute.

        Of what ``embedding_maskfeature`` makes of a prompt, one filter is all that is read: it is multiplied into the last
        convolution's weights, which leaves one channel of C/8. The image's share is filtered in nested order.
        """
        tokens, keys = self.attend(image, position, sparse, projected, folded)
        upscaled = self.upscale(keys)  # (P, hw, 16, C/8)
        filters, hq_filter = self._filters(tokens)
        plain = filters @ upscaled.flatten(1, 2).transpose(1, 2)  # (P, M, hw * 16)
        of_image = (hq_features @ hq_filter.transpose(1, 2)).transpose(1, 2)  # (P, 1, hw * 16)
        hq_masks = raster_from_nested(of_image, hw) + self._refined(map_from_nested(upscaled, hw), hq_filter)
        return raster_from_nested(plain, hw) + hq_masks, self.iou_prediction_head(tokens[:, 0]), hq_masks

    def _filters(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: (P, 1 + M + 1 + N, C) -> (P, M, C/8) and the HQ mask's (P, 1, C/8)."""
        filters = mask_filters(self.output_hypernetworks_mlps, tokens[:, 1 : 1 + self.num_masks])
        return filters, self.hf_mlp(tokens[:, 1 + self.num_masks]).unsqueeze(1)

    def _refined(self, upscaled: Tensor, hq_filter: Tensor) -> Tensor:
        """``embedding_maskfeature`` of upscaled: (P, C/8, 4h, 4w), through the filter: (P, 1, C/8) -> (P, 1, 4h, 4w)."""
        first, norm, _, last = self.embedding_maskfeature
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        x = first(upscaled).permute(0, 2, 3, 1)  # (P, 4h, 4w, C/4)
        x = F.gelu(F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps))
        weight = last.weight.flatten(1)  # (C/8, C/4 * 9)
        taps = (hq_filter @ weight).squeeze(1).unflatten(1, (last.in_channels, 9))  # (P, C/4, 9)
        x = x.flatten(1, 2) @ taps  # (P, 16hw, 9), what each pixel is to its neighbours
        x = x.transpose(1, 2).unflatten(2, upscaled.shape[2:])  # (P, 9, 4h, 4w)
        gather = torch.eye(9, dtype=x.dtype, device=x.device).reshape(1, 9, 3, 3)
        return F.conv2d(x, gather, padding=1) + (hq_filter @ last.bias).unsqueeze(-1).unsqueeze(-1)


def _enlarging(dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """(B, dim, h, w) -> (B, out_dim, 4h, 4w), under the official names."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, hidden_dim, kernel_size=2, stride=2),
        LayerNorm2d(hidden_dim),
        nn.GELU(),
        nn.ConvTranspose2d(hidden_dim, out_dim, kernel_size=2, stride=2),
    )


def _enlarged(x: Tensor, layers: nn.Sequential) -> Tensor:
    """x: (B, hw, dim) -> (B, hw * 16, out_dim), nested."""
    up1, norm, _, up2 = layers
    assert isinstance(up1, nn.ConvTranspose2d)
    assert isinstance(norm, LayerNorm2d)
    assert isinstance(up2, nn.ConvTranspose2d)
    assert up1.bias is not None
    assert up2.bias is not None
    y = upscaled_by(x, up1) + up1.bias  # (B, hw, 4, hidden_dim)
    y = F.gelu(F.layer_norm(y, (y.shape[-1],), norm.weight, norm.bias, norm.eps))
    return upscaled_by(y, up2).flatten(1, 3) + up2.bias


def map_from_nested(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """x: (P, hw, 16, c) nested -> (P, c, 4h, 4w)."""
    x = x.unflatten(2, (2, 2, 2, 2)).unflatten(1, hw).permute(0, 7, 1, 3, 5, 2, 4, 6)  # (P, c, h, 2, 2, w, 2, 2)
    return x.flatten(5, 7).flatten(2, 4)
