"""The key map from the Hugging Face layout to the official one: EdgeTAM's own parts, then what it shares with SAM 2."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from samrt_export.families.sam2.hugging_face import official_from_hf as sam2_official_from_hf

# Hugging Face (transformers ``EdgeTamVideoModel``) name -> official name.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_encoder\.backbone\.timm_model\.", "image_encoder.trunk.body."),
    (r"^(memory_attention\.layers\.\d+)\.mlp\.up_proj\.", r"\1.linear1."),
    (r"^(memory_attention\.layers\.\d+)\.mlp\.down_proj\.", r"\1.linear2."),
)
PERCEIVER = re.compile(r"^spatial_perceiver\.")
PERCEIVER_RENAMES: tuple[tuple[str, str], ...] = (
    (r"\.latents_1d$", ".latents"),
    (r"\.layer_norm_input\.", ".attn.norm_x."),
    (r"\.layer_norm_latents\.", ".attn.norm_latents."),
    (r"\.layer_norm_self\.", ".self_attn.norm."),
    (r"\.cross_attention\.", ".attn."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.q_proj\.", ".to_q."),
    (r"\.o_proj\.", ".to_out."),
    (r"\.mlp\.", ".ff."),
    (r"\.self_mlp\.", ".self_ff."),
    (r"(ff)\.layer_norm\.", r"\1.0."),
    (r"(ff)\.up_proj\.", r"\1.1."),
    (r"(ff)\.down_proj\.", r"\1.3."),
    (r"^spatial_perceiver\.layer_norm\.", "spatial_perceiver.norm."),
)


def official_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face layout (``EdgeTamVideoModel``, as on the hub) -> official layout."""
    perceiver: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, value in state.items():
        if PERCEIVER.match(key):
            perceiver[_renamed(key, PERCEIVER_RENAMES)] = value
        else:
            others[_renamed(key, RENAMES)] = value
    return sam2_official_from_hf(others) | _joined(perceiver)


def _joined(perceiver: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projections to keys and to values are one in the official layout."""
    official = dict(perceiver)
    for key in perceiver:
        partner = key.replace(".k_proj.", ".v_proj.")
        if partner != key and partner in perceiver:
            official[key.replace(".k_proj.", ".to_kv.")] = torch.cat((official.pop(key), official.pop(partner)))
    return official


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
