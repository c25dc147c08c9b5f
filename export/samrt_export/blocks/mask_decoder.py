"""SAM 2's mask decoder: a token per mask candidate, hypernetworks turn each into a filter over the upscaled image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.layers import MLP, LayerNorm2d
from samrt_export.blocks.two_way import TwoWayTransformer


class MaskDecoder(nn.Module):
    """All candidates come out; choosing among them is the runtime's."""

    def __init__(self, dim: int, mlp_dim: int, iou_hidden_dim: int, num_masks: int = 4) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.transformer = TwoWayTransformer(depth=2, dim=dim, num_heads=8, mlp_dim=mlp_dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, iou_hidden_dim, num_masks, 3, sigmoid_output=True)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    def forward(
        self, image: Tensor, position: Tensor, sparse: Tensor, high_res: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict every mask candidate of P prompts.

        image: (P, C, h, w) image embedding with the dense prompt added; position: (1, C, h, w); sparse: (P, N, C);
        high_res: (P or 1, C/8, 4h, 4w) and (P or 1, C/4, 2h, 2w), already through conv_s0 and conv_s1.
        Returns masks (P, M, 4h, 4w) logits, iou (P, M) in 0..1, object score (P, 1) logit, mask tokens (P, M, C).
        """
        h, w = image.shape[-2:]
        own = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))  # (2 + M, C)
        tokens = torch.cat((own[None].expand(sparse.shape[0], -1, -1), sparse), dim=1)  # (P, 2 + M + N, C)
        keys, key_pe = image.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)  # (P, hw, C)
        tokens, keys = self.transformer(keys, key_pe, tokens)
        mask_tokens = tokens[:, 2 : 2 + self.num_masks]  # (P, M, C)

        upscaled = self._upscale(keys.transpose(1, 2).unflatten(2, (h, w)), high_res)  # (P, C/8, 4h, 4w)
        filters = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # (P, M, C/8)
        masks = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])  # (P, M, 4h, 4w)
        return masks, self.iou_prediction_head(tokens[:, 1]), self.pred_obj_score_head(tokens[:, 0]), mask_tokens

    def _upscale(self, image: Tensor, high_res: tuple[Tensor, Tensor]) -> Tensor:
        """image: (P, C, h, w) -> (P, C/8, 4h, 4w), the finer image features added on the way."""
        up1, norm, _, up2, _ = self.output_upscaling
        fine, middle = high_res
        x = F.gelu(norm(up1(image) + middle))
        return F.gelu(up2(x) + fine)
