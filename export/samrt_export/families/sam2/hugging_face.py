"""The key map from the Hugging Face layout to the official one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from samrt_export.families.sam.hugging_face import PROMPTED_RENAMES

# Hugging Face (transformers ``Sam2VideoModel``) name -> official name, applied in this order.
HF_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    *PROMPTED_RENAMES,
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^memory_encoder\.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"^memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"depthwise_conv", "dwconv"),
    (r"pointwise_conv", "pwconv"),
    (r"(fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"(fuser\.layers\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (r"\.layer_norm(\d)", r".norm\1"),
    (r"\.o_proj\.", ".out_proj."),
)
_DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.(?:layers\.(\d+)\.(conv|layer_norm)|final_conv)\.")
_MLP = re.compile(
    r"^(.*(?:mlp|hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj))\.(proj_in|proj_out|layers\.0)\."
)


def official_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face layout (``Sam2VideoModel``, as on the hub) -> official layout."""
    official: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "shared_image_embedding.positional_embedding":
            continue  # a second copy of the prompt encoder's matrix
        name = key
        for pattern, replacement in HF_RENAMES:
            name = re.sub(pattern, replacement, name)
        name = _DOWNSAMPLER.sub(_official_downsampler, name)
        name = _MLP.sub(_official_mlp, name)
        if name == "sam_prompt_encoder.point_embed.weight":  # one table of four rows -> four tables of one
            official |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(value)}
        else:
            official[name] = value
    return official


def _official_downsampler(match: re.Match[str]) -> str:
    """``layers.i.conv`` / ``layers.i.layer_norm`` / ``final_conv`` -> the index in the official Sequential."""
    layer, kind = match.groups()
    index = 12 if layer is None else 3 * int(layer) + (kind == "layer_norm")
    return f"memory_encoder.mask_downsampler.encoder.{index}."


def _official_mlp(match: re.Match[str]) -> str:
    """``proj_in``, ``layers.0``, ``proj_out`` -> ``layers.0``, ``.1``, ``.2``; two-layer MLPs have no ``layers.0`` in between."""
    head, part = match.groups()
    two_layers = head.endswith(".mlp")
    index = {"proj_in": 0, "layers.0": 1, "proj_out": 1 if two_layers else 2}[part]
    return f"{head}.layers.{index}."
