"""SAM (facebookresearch/segment-anything, Apache-2.0): ViT-B, ViT-L and ViT-H.

Graphs, for the official sizes (S = 1024, C = 256, hw = (S/16)^2); B images, P prompts, N points:

| graph          | inputs                                                          | outputs                                     |
|----------------|-----------------------------------------------------------------|---------------------------------------------|
| image_encoder  | image (B, S, S, 3) float32 0..255                               | image_embed (B, hw, C)                      |
|                |                                                                 | image_queries, image_keys, image_values     |
|                |                                                                 | (B, 8, hw, C/16)                            |
| prompt_encoder | point_coords (P, N, 2) input pixels, point_labels (P, N) int32, | sparse_embeddings (P, N, C)                 |
|                | mask_input (P, 1, S/4, S/4), has_mask_input (P,)                | dense_embeddings (P, hw, C)                 |
| mask_decoder   | the encoder's for one image or P, the prompt encoder's          | low_res_masks (P, 4, S/4, S/4),             |
|                |                                                                 | iou_predictions (P, 4)                      |

``image`` is the picture resized in 8 bits, top left, and the mean colour around it. ``image_queries``, ``_keys`` and ``_values``
are what the decoder's first layer makes of the image (see blocks/two_way.py). Candidate 0 answers a request for one mask, 1 to 3
one for several. Where no prompt has a mask, ``mask_input`` may be 4 x 4 (of anything); ``dense_embeddings`` is then (P, 1, C).
"""

from __future__ import annotations

from samrt_export.families.sam.config import CONFIGS, MEAN, STD, PromptedConfig, SamConfig
from samrt_export.families.sam.hugging_face import official_from_hf
from samrt_export.families.sam.model import Sam, build, randomize
from samrt_export.families.sam.specs import graphs, numbers
from samrt_export.registry import Family

__all__ = [
    "CONFIGS",
    "FAMILY",
    "MEAN",
    "STD",
    "PromptedConfig",
    "Sam",
    "SamConfig",
    "build",
    "graphs",
    "official_from_hf",
]

FAMILY = Family(
    name="sam",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=lambda model: ("points", "boxes", "masks", "multimask"),
    official_from_hf=official_from_hf,
    randomize=randomize,
    licence=lambda model: ("Apache-2.0", ""),
    hub_id=lambda model: CONFIGS[model].prompted.hub_id,
    shipped_checkpoint=lambda model: None,
)
