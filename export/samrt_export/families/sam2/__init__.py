"""SAM 2 and 2.1 (facebookresearch/sam2, Apache-2.0) and the shipped ``nano``.

Graphs, for the official sizes (S = 1024, C = 256, hw = (S/16)^2); B images, P prompts, N points or pointers,
K objects of one frame, M memory slots:

| graph          | inputs                                                          | outputs                                     |
|----------------|-----------------------------------------------------------------|---------------------------------------------|
| image_encoder  | image (B, S, S, 3) float32 0..255                               | image_embed (B, hw, C)                      |
|                |                                                                 | image_queries, image_keys, image_values     |
|                |                                                                 | (B, 8, hw, C/16)                            |
|                |                                                                 | high_res_feats_0 (B, hw, 16, C/8)           |
|                |                                                                 | high_res_feats_1 (B, hw, 4, C/4)            |
| prompt_encoder | point_coords (P, N, 2) input pixels, point_labels (P, N) int32, | sparse_embeddings (P, N, C)                 |
|                | mask_input (P, 1, S/4, S/4), has_mask_input (P,)                | dense_embeddings (P, hw, C)                 |
| mask_decoder   | the encoder's for one image or P, the prompt encoder's          | low_res_masks (P, 4, S/4, S/4),             |
|                |                                                                 | iou_predictions (P, 4), object_score_logits |
|                |                                                                 | (P, 1), mask_tokens (P, 4, C)               |
| memory_        | image_embed (1, hw, C); memory (K, M, hw, 64), memory_time      | conditioned_embed (K, hw, C)                |
| attention      | (K, M) int32, memory_valid (K, M); object_pointers (K, N, C),   | conditioned_queries, _keys, _values         |
|                | pointer_distance (K, N), pointer_valid (K, N)                   | (K, 8, hw, C/16)                            |
| memory_encoder | image_embed (1, hw, C), mask_logits (K, 1, S/4, S/4), binarize  | frame_memory (K, hw, 64)                    |
|                | (K,), object_score_logits (K, 1), object_token (K, C)           | object_pointer (K, C)                       |
| mask_          | mask (K, 1, S, S) 0..1, image_embed (1, hw, C)                  | mask_prompt (K, 1, S/4, S/4), plain_embed   |
| downsampler    |                                                                 | plain_queries, _keys, _values               |

``image`` is float32 and not uint8 because the official predictor resizes in float: rounding would change the values.
``image_embed`` already holds ``no_mem_embed`` (what a single image uses); the memory graphs subtract it again.
``image_queries``, ``_keys`` and ``_values`` are what the decoder's first layer makes of the image (see blocks/two_way.py).
In a video the decoder takes the conditioned maps in place of the image's, and the fine maps of the one frame for all objects;
where a user gives the mask, the ``plain`` maps. ``memory_time`` is a row of the table of temporal positions: 0 the frame
before, 5 six frames before, 6 a conditioning frame. ``pointer_distance`` is in frames, divided by the most pointers less one.
Slots and pointers whose ``_valid`` is 0 change nothing; their order is free. ``binarize`` is 1 on conditioning frames.
``object_token`` is the mask token of the chosen mask.
Where no prompt has a mask, ``mask_input`` may be 4 x 4 (of anything); ``dense_embeddings`` is then (P, 1, C).
"""

from __future__ import annotations

from samrt_export.families.sam2.config import CONFIGS, MEAN, NANO, STD, Sam2Config
from samrt_export.families.sam2.hugging_face import official_from_hf
from samrt_export.families.sam2.model import Sam2, build
from samrt_export.families.sam2.specs import graphs, numbers
from samrt_export.randomize import randomize_live
from samrt_export.registry import Family

__all__ = ["CONFIGS", "FAMILY", "MEAN", "NANO", "STD", "Sam2", "Sam2Config", "build", "graphs", "official_from_hf"]


def abilities(model: str) -> tuple[str, ...]:
    """What the exported graphs can do."""
    return ("points", "boxes", "masks", "multimask", "video")


def licence(model: str) -> tuple[str, str]:
    """All of SAM 2 is Apache-2.0; nano was trained by this project on pictures it drew itself."""
    return "Apache-2.0", ""


FAMILY = Family(
    name="sam2",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=abilities,
    official_from_hf=official_from_hf,
    randomize=randomize_live,
    licence=licence,
    hub_id=lambda model: CONFIGS[model].hub_id,
    shipped_checkpoint=lambda model: CONFIGS[model].checkpoint,
)
