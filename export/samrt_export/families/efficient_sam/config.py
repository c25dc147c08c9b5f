"""The numbers of EfficientSAM: efficient_sam/build_efficient_sam.py of yformer/EfficientSAM."""

from __future__ import annotations

from dataclasses import dataclass

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MAX_POINTS = 6
"""Columns of every prompt, the two corners of a box counted; the decoder was trained with no other number."""
NUM_MASKS = 3
"""Candidates that are used. The fourth mask token, the first in the file, takes part in attention alone."""


@dataclass(frozen=True, slots=True)
class EfficientSamConfig:
    """The numbers in which variants differ; the defaults are what the official two share."""

    dim: int
    heads: int
    depth: int = 12
    image_size: int = 1024
    patch_px: int = 16
    position_grid: int = 14
    """Side of the table of positions, made for pictures of 224 pixels."""
    d_model: int = 256
    mlp_dim: int = 2048
    iou_hidden_dim: int = 256

    @property
    def embed_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // self.patch_px

    @property
    def mask_size(self) -> int:
        """Side of the low-res logits."""
        return 4 * self.embed_size


CONFIGS = {
    "efficient-sam-ti": EfficientSamConfig(dim=192, heads=3),
    "efficient-sam-s": EfficientSamConfig(dim=384, heads=6),
    "efficient-sam-ti-toy": EfficientSamConfig(
        dim=48, heads=3, depth=2, image_size=256, d_model=64, mlp_dim=128, iou_hidden_dim=64
    ),
}
