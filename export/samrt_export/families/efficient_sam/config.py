"""The numbers of EfficientSAM: efficient_sam/build_efficient_sam.py of yformer/EfficientSAM."""

from __future__ import annotations

from dataclasses import dataclass

from samrt_export.families.sam.config import MEAN, STD, PromptedConfig

__all__ = ["CONFIGS", "MAX_POINTS", "MEAN", "NUM_MASKS", "STD", "EfficientSamConfig"]

MAX_POINTS = 6
"""Columns of every prompt, the two corners of a box counted; the decoder was trained with no other number."""
NUM_MASKS = 3
"""Candidates that are used. The fourth mask token, the first in the file, takes part in attention alone."""


@dataclass(frozen=True, slots=True)
class EfficientSamConfig(PromptedConfig):
    """The numbers in which variants differ; the defaults are what the official two share."""

    dim: int
    heads: int
    depth: int = 12
    position_grid: int = 14
    """Side of the table of positions, made for pictures of 224 pixels."""


CONFIGS = {
    "efficient-sam-ti": EfficientSamConfig(dim=192, heads=3),
    "efficient-sam-s": EfficientSamConfig(dim=384, heads=6),
    "efficient-sam-ti-toy": EfficientSamConfig(
        dim=48, heads=3, depth=2, image_size=256, d_model=64, mlp_dim=128, iou_hidden_dim=64
    ),
}
