"""The models of the family, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from samrt_export.blocks.vit import VitConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptedConfig:
    """What the prompt encoder and the mask decoder are made from, in SAM 2 and EfficientSAM too; the defaults are what all
    official models share.
    """

    image_size: int = 1024
    d_model: int = 256
    mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    hub_id: str | None = None

    @property
    def embed_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // 16

    @property
    def mask_size(self) -> int:
        """Side of the low-res logits and of a mask prompt."""
        return self.image_size // 4


@dataclass(frozen=True, slots=True)
class SamConfig:
    """One model: its encoder, and all else."""

    encoder: VitConfig
    prompted: PromptedConfig


VITS = {
    "b": VitConfig(768, 12, 12, (2, 5, 8, 11)),
    "l": VitConfig(1024, 24, 16, (5, 11, 17, 23)),
    "h": VitConfig(1280, 32, 16, (7, 15, 23, 31)),
    "b-toy": VitConfig(64, 3, 2, (1,), img_size=256, window_size=6, out_chans=64),
}
"""Encoders. The toy has all there is in the others: both kinds of blocks, windows that do not fit."""
TOY = PromptedConfig(image_size=256, d_model=64, mlp_dim=128, iou_hidden_dim=64)
"""What toys of every SAM-like family share."""
_HUB = {"b": "base", "l": "large", "h": "huge"}
CONFIGS = {
    f"sam-vit-{size}": SamConfig(vit, PromptedConfig(hub_id=f"facebook/sam-vit-{_HUB[size]}") if size in _HUB else TOY)
    for size, vit in VITS.items()
}
