"""MoGe v1 (microsoft/MoGe, MIT): what a single picture shows of the world's depth, as points of its pixels.

One graph, for a picture of h x w pixels that is already at the network's size, whole patches of 14 pixels (R x S of them):

| graph | inputs                                                        | outputs                                               |
|-------|---------------------------------------------------------------|-------------------------------------------------------|
| moge  | image (1, h, w, 3) float32 0..1, row_weights (R, 37),         | pointmap (1, h, w, 3) OpenCV axes, up to a scale and a |
|       | column_weights (S, 37)                                        | shift in depth; pointmap_mask (1, h, w), > 0.5: valid |

The encoder knows 37 x 37 positions; another number of them is a bicubic resize of the table, which TensorRT has not. It is
linear in the table and separable, so its weights come in and the table stays in the graph. Normalisation is inside.
"""

from __future__ import annotations

from typing import Any

from samrt_export.families.moge.config import CONFIGS, MEAN, PATCH_PX, STD
from samrt_export.families.moge.model import Moge, build, graphs, randomize
from samrt_export.registry import Family

__all__ = ["CONFIGS", "FAMILY", "Moge", "build", "graphs", "numbers"]


def numbers(model: str) -> dict[str, Any]:
    """The manifest's."""
    config = CONFIGS[model]
    return {
        "depth": {
            "remap": "exp",
            "patch_px": PATCH_PX,
            "tokens": list(config.tokens),
            "mean": list(MEAN),
            "std": list(STD),
            "position_grid": config.grid,
            "position_offset": 0.1,
            "mask_threshold": 0.5,
        }
    }


FAMILY = Family(
    name="moge",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=lambda model: ("depth",),
    official_from_hf=dict,
    randomize=randomize,
    licence=lambda model: ("MIT", ""),
    hub_id=lambda model: CONFIGS[model].hub_id,
    shipped_checkpoint=lambda model: None,
)
