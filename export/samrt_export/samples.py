"""Live inputs of graphs: pictures and prompts for tracing and for comparing with PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from samrt_export.registry import Feeds


def sample_image(batch: int, size: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Smooth colour fields plus noise, float32 (B, S, S, 3) 0..255: what a convolution reacts to, unlike white noise alone."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (batch, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2)
    return np.clip(coarse + rng.normal(0, 20, (batch, size, size, 3)), 0, 255).astype(np.float32)


def sample_prompts(prompts: int, points: int, size: int, mask_size: int, seed: int) -> Feeds:
    """A prompt encoder's feeds: points with every label in turn, a mask prompt on every other prompt."""
    rng = np.random.default_rng(seed)
    block = min(8, mask_size)
    mask = rng.normal(0, 6, (prompts, 1, mask_size // block, mask_size // block)).repeat(block, 2).repeat(block, 3)
    return {
        "point_coords": rng.uniform(0, size, (prompts, points, 2)).astype(np.float32),
        "point_labels": ((np.arange(prompts * points) + seed) % 5 - 1).reshape(prompts, points).astype(np.int32),
        "mask_input": mask.astype(np.float32),
        "has_mask_input": (np.arange(prompts) % 2 == seed % 2).astype(np.float32),
    }
