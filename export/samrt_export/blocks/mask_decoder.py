"""SAM's mask decoders: a token per mask candidate, hypernetworks turn each into a filter over the upscaled image.

SAM 2's (`MaskDecoder`) adds to SAM's (`SamMaskDecoder`) a token for whether there is an object, and finer image features.

A stride-2 transposed convolution with a 2x2 kernel is a matrix product per position whose four results go to four
neighbouring pixels. Here the pixels stay where the product puts them (``nested`` order: position, then its 2x2 block, then
the 2x2 blocks of that), through norms, activations and the next product; only the finished masks are put in raster order.
The finer image features come in nested order too, arranged once per image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.fpn import FpnNeck, LevelReader, linear_1x1
from samrt_export.blocks.layers import MLP, LayerNorm2d, LinearMlp
from samrt_export.blocks.two_way import ImageProjections, TwoWayTransformer


class MaskDecoder(nn.Module):
    """SAM 2's. All candidates come out; choosing among them is the runtime's."""

    def __init__(self, dim: int, mlp_dim: int, iou_hidden_dim: int, num_masks: int = 4) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.transformer = TwoWayTransformer(depth=2, dim=dim, num_heads=8, mlp_dim=mlp_dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = upscaling_layers(dim)
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, iou_hidden_dim, num_masks, 3, sigmoid_output=True)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    def forward(
        self,
        image: Tensor,
        position: Tensor,
        sparse: Tensor,
        high_res: tuple[Tensor, Tensor],
        hw: tuple[int, int],
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict every mask candidate of P prompts.

        image: (P, hw, C) image embedding with the dense prompt added; position: (1, hw, C); sparse: (P, N, C);
        high_res: (P or 1, hw, 16, C/8) and (P or 1, hw, 4, C/4), from `high_res_features`; hw: of the embedding;
        projected, folded: see two_way.
        Returns masks (P, M, 4h, 4w) logits, iou (P, M) in 0..1, object score (P, 1) logit, mask tokens (P, M, C).
        """
        own = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))  # (2 + M, C)
        tokens = torch.cat((own[None].expand(sparse.shape[0], -1, -1), sparse), dim=1)  # (P, 2 + M + N, C)
        tokens, keys = self.transformer(image, position, tokens, projected, folded)
        mask_tokens = tokens[:, 2 : 2 + self.num_masks]  # (P, M, C)
        filters = mask_filters(self.output_hypernetworks_mlps, mask_tokens)  # (P, M, C/8)
        masks = masks_of_filters(filters, self._upscale(keys, *high_res), hw)
        return masks, self.iou_prediction_head(tokens[:, 1]), self.pred_obj_score_head(tokens[:, 0]), mask_tokens

    def high_res_features(self, fine: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """fine: (B, 4h, 4w, C), middle: (B, 2h, 2w, C) pyramid levels -> (B, hw, 16, C/8), (B, hw, 4, C/4), nested.

        The upscaling layers' biases are added here, once per image, and not in every answer to a prompt.
        """
        up1, _, up2 = self._upscaling_layers()
        assert up1.bias is not None
        assert up2.bias is not None
        return (
            nested_from_map(linear_1x1(fine, self.conv_s0) + up2.bias, 2),
            nested_from_map(linear_1x1(middle, self.conv_s1) + up1.bias, 1),
        )

    def high_res_readers(self, neck: FpnNeck) -> tuple[LevelReader, LevelReader]:
        """`high_res_features` before nesting, straight from the trunk: for levels 0 and 1."""
        up1, _, up2 = self._upscaling_layers()
        assert up1.bias is not None
        assert up2.bias is not None
        return LevelReader(neck, 0, self.conv_s0, up2.bias), LevelReader(neck, 1, self.conv_s1, up1.bias)

    def _upscaling_layers(self) -> tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]:
        return weighted_layers(self.output_upscaling)

    def _upscale(self, keys: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        """keys: (P, hw, C) -> (P, hw, 16, C/8), the finer image features added on the way."""
        return upscale(keys, self.output_upscaling, middle, fine)


class SamMaskDecoder(nn.Module):
    """SAM's. All candidates come out; choosing among them is the runtime's."""

    def __init__(self, dim: int, mlp_dim: int, iou_hidden_dim: int, num_masks: int = 4) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.transformer = TwoWayTransformer(2, dim, 8, mlp_dim, make_mlp=lambda: LinearMlp(dim, mlp_dim, nn.ReLU))
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = upscaling_layers(dim)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, iou_hidden_dim, num_masks, 3)

    def forward(
        self,
        image: Tensor,
        position: Tensor,
        sparse: Tensor,
        hw: tuple[int, int],
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict every mask candidate of P prompts.

        image: (P, hw, C) image embedding with the dense prompt added; position: (1, hw, C); sparse: (P, N, C);
        hw: of the embedding; projected, folded: see two_way.
        Returns masks (P, M, 4h, 4w) logits, iou (P, M), about 0..1.
        """
        tokens, keys = self.attend(image, position, sparse, projected, folded)
        filters = mask_filters(self.output_hypernetworks_mlps, tokens[:, 1 : 1 + self.num_masks])
        masks = masks_of_filters(filters, self.upscale(keys), hw)
        return masks, self.iou_prediction_head(tokens[:, 0])

    def own_tokens(self) -> Tensor:
        """The tokens that come before the prompts', (1 + M, C): the scores', the masks'."""
        return torch.cat((self.iou_token.weight, self.mask_tokens.weight))

    def attend(
        self,
        image: Tensor,
        position: Tensor,
        sparse: Tensor,
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What the transformer makes of the tokens, own ones first, (P, own + N, C), and of the image, (P, hw, C)."""
        own = self.own_tokens()[None].expand(sparse.shape[0], -1, -1)
        return self.transformer(image, position, torch.cat((own, sparse), dim=1), projected, folded)  # type: ignore[no-any-return]

    def upscale(self, keys: Tensor) -> Tensor:
        """keys: (P, hw, C) -> (P, hw, 16, C/8), nested."""
        up1, _, up2 = weighted_layers(self.output_upscaling)
        assert up1.bias is not None
        assert up2.bias is not None
        return upscale(keys, self.output_upscaling, up1.bias, up2.bias)


def upscaling_layers(dim: int) -> nn.Sequential:
    """(P, C, h, w) -> (P, C/8, 4h, 4w), under the official names. `upscale` computes it."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
        LayerNorm2d(dim // 4),
        nn.GELU(),
        nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
        nn.GELU(),
    )


def weighted_layers(upscaling: nn.Sequential) -> tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]:
    """Of `upscaling_layers` those with weights; between them run activations."""
    up1, norm, _, up2, _ = upscaling
    assert isinstance(up1, nn.ConvTranspose2d)
    assert isinstance(norm, LayerNorm2d)
    assert isinstance(up2, nn.ConvTranspose2d)
    return up1, norm, up2


def upscale(keys: Tensor, upscaling: nn.Sequential, middle: Tensor, fine: Tensor) -> Tensor:
    """keys: (P, hw, C) -> (P, hw, 16, C/8), nested.

    middle: added to (P, hw, 4, C/4) on the way, fine: to the result before its activation; each layer's bias, or more
    """
    up1, norm, up2 = weighted_layers(upscaling)
    x = upscaled_by(keys, up1) + middle  # (P, hw, 4, C/4)
    x = F.gelu(F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps))
    return F.gelu(upscaled_by(x, up2).flatten(2, 3) + fine)


def mask_filters(mlps: nn.ModuleList, tokens: Tensor) -> Tensor:
    """tokens: (P, M, C) -> (P, M, C/8), a filter over the upscaled image for each."""
    return torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mlps)], dim=1)


def masks_of_filters(filters: Tensor, upscaled: Tensor, hw: tuple[int, int]) -> Tensor:
    """filters: (P, M, c), upscaled: (P, hw, 16, c) nested -> (P, M, 4h, 4w) logits."""
    return raster_from_nested(filters @ upscaled.flatten(1, 2).transpose(1, 2), hw)


def upscaled_by(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """x: (..., C) -> (..., 4, C'), the four pixels that a 2x2 stride-2 transposed convolution makes of each, bias apart."""
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 2 * 2 * C')
    return (x @ weight).unflatten(-1, (4, layer.out_channels))  # type: ignore[no-any-return]


def nested_from_map(x: Tensor, levels: int) -> Tensor:
    """x: (B, H, W, C) -> (B, hw, 4**levels, C): every position of the h x w grid with its pixels, block within block."""
    assert levels in (1, 2)
    if levels == 1:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5)  # (B, h, w, 2, 2, C)
    else:
        x = (
            x.unflatten(2, (-1, 2, 2)).unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        )  # (B, h, w, 2, 2, 2, 2, C)
    return x.flatten(3, -2).flatten(1, 2)


def raster_from_nested(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """x: (P, M, hw * 16) -> (P, M, 4h, 4w)."""
    h, w = hw
    x = x.unflatten(2, (h, w, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)  # (P, M, h, 2, 2, w, 2, 2)
    return x.flatten(5, 7).flatten(2, 4)
