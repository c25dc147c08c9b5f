"""The key map from the Hugging Face layout to the official one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Hugging Face (transformers) name -> official name, in this order, of the prompt encoder and the mask decoder: in SAM 2 too.
PROMPTED_RENAMES: tuple[tuple[str, str], ...] = (
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm_final_attn", "norm_final_attn"),
)
# The same of all of ``SamModel``.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^image_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^image_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    *PROMPTED_RENAMES,
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"\.layer_norm(\d)", r".norm\1"),
)
_HEAD = re.compile(
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.(proj_in|layers\.0|proj_out)\."
)
_LAYERS = {"proj_in": 0, "layers.0": 1, "proj_out": 2}


def official_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face layout (``SamModel``, as on the hub) -> official layout."""
    official: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "shared_image_embedding.positional_embedding":
            continue  # a second copy of the prompt encoder's matrix
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        official[_HEAD.sub(lambda match: f"{match[1]}.layers.{_LAYERS[match[2]]}.", name)] = value
    return official
