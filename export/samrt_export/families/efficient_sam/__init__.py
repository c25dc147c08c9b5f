"""EfficientSAM (yformer/EfficientSAM, Apache-2.0): a plain ViT that learned from SAM's, with a decoder of its own.

Graphs, for the official sizes (S = 1024, C = 256, hw = (S/16)^2); B images, P prompts:

| graph          | inputs                                                       | outputs                                     |
|----------------|--------------------------------------------------------------|---------------------------------------------|
| image_encoder  | image (B, S, S, 3) float32 0..255                            | image_embed (B, hw, C)                      |
|                |                                                              | image_queries, image_keys, image_values     |
|                |                                                              | (B, 8, hw, C/16)                            |
| prompt_encoder | point_coords (P, 6, 2) input pixels, point_labels (P, 6)     | sparse_embeddings (P, 6, C)                 |
|                | int32                                                        |                                             |
| mask_decoder   | the encoder's for one image or P, sparse_embeddings          | low_res_masks (P, 3, S/4, S/4),             |
|                |                                                              | iou_predictions (P, 3)                      |

Unlike SAM it stretches pictures to a square, without antialiasing; every prompt has six columns, filled up with label -1; a
box takes two of them, labelled 2 and 3; there are no points off the object and no mask prompts. Scores are not bounded.
``image_queries``, ``_keys`` and ``_values`` are what the decoder's first layer makes of the image (see blocks/two_way.py).
"""

from __future__ import annotations

from samrt_export.families.efficient_sam.config import CONFIGS, MAX_POINTS, MEAN, STD, EfficientSamConfig
from samrt_export.families.efficient_sam.model import EfficientSam, build, randomize
from samrt_export.families.efficient_sam.specs import graphs, numbers
from samrt_export.registry import Family

__all__ = [
    "CONFIGS",
    "FAMILY",
    "MAX_POINTS",
    "MEAN",
    "STD",
    "EfficientSam",
    "EfficientSamConfig",
    "build",
    "graphs",
    "numbers",
    "randomize",
]

FAMILY = Family(
    name="efficient-sam",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=lambda model: ("points", "boxes", "multimask"),
    official_from_hf=dict,
    randomize=randomize,
    licence=lambda model: ("Apache-2.0", ""),
    hub_id=lambda model: None,
    shipped_checkpoint=lambda model: None,
)
