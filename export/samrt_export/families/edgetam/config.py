"""The numbers of EdgeTAM: sam2/configs/edgetam.yaml of facebookresearch/EdgeTAM."""

from __future__ import annotations

from samrt_export.blocks.repvit import M1
from samrt_export.families.sam2.config import Sam2Config

CONFIGS = {
    "edgetam": Sam2Config(
        trunk=M1,
        pointer_positions=False,  # nor is an absent object marked in its memory
        memory_layers=2,
        hub_id="yonigozlan/EdgeTAM-hf",
    )
}
NUM_LATENTS = 256
"""Latent tokens that read a frame's whole memory map."""
LATENT_GRID = 16
"""Side of the grid of those that read a window each."""
PERCEIVER_DEPTH = 2
