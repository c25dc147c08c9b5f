"""An independent EdgeTAM: transformers' image and video models with our weights, and what they remember of a video."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    EdgeTamConfig,
    EdgeTamMaskDecoderConfig,
    EdgeTamModel,
    EdgeTamPromptEncoderConfig,
    EdgeTamVideoConfig,
    EdgeTamVideoMaskDecoderConfig,
    EdgeTamVideoPromptEncoderConfig,
    EdgeTamVisionConfig,
    Sam2HieraDetConfig,
)

from samrt_export.families.edgetam import EdgeTam, official_from_hf


class OurTrunk(torch.nn.Module):
    """Stands where transformers has timm, which is checked apart."""

    def __init__(self, module: EdgeTam) -> None:
        super().__init__()
        self.trunk = module.image_encoder.trunk

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        maps = [level.permute(0, 3, 1, 2) for level in self.trunk(pixel_values)]
        return SimpleNamespace(last_hidden_state=maps, hidden_states=None)


def vision_config(size: int) -> EdgeTamVisionConfig:
    """The published numbers; a small Hiera keeps the trunk's place."""
    return EdgeTamVisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=8, blocks_per_stage=[1] * 4, embed_dim_per_stage=[8, 16, 32, 64]
        ),
        backbone_feature_sizes=[[size // stride] * 2 for stride in (4, 8, 16)],
    )


def with_weights(oracle: Any, module: EdgeTam) -> Any:
    """The weights of ours, every key matched, the trunk's apart."""
    place = oracle.vision_encoder.backbone
    oracle.vision_encoder.backbone = torch.nn.Identity()
    oracle.load_state_dict(hf_state(oracle.state_dict(), module.state_dict()), strict=True)
    assert sum(1 for _ in place.parameters())  # there was one
    oracle.vision_encoder.backbone = OurTrunk(module)
    return oracle.eval()


def image_oracle(module: EdgeTam) -> EdgeTamModel:
    """transformers' image model with our weights."""
    size = module.config.image_size
    config = EdgeTamConfig(
        vision_config=vision_config(size),
        prompt_encoder_config=EdgeTamPromptEncoderConfig(image_size=size),
        mask_decoder_config=EdgeTamMaskDecoderConfig(),
    )
    return with_weights(EdgeTamModel(config), module)


def video_config(size: int) -> EdgeTamVideoConfig:
    """As published: ``EdgeTamVideoConfig()`` alone has another trunk and two embeddings that EdgeTAM lacks."""
    return EdgeTamVideoConfig(
        vision_config=vision_config(size),
        prompt_encoder_config=EdgeTamVideoPromptEncoderConfig(image_size=size),
        mask_decoder_config=EdgeTamVideoMaskDecoderConfig(),
        image_size=size,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
        enable_occlusion_spatial_embedding=False,
        enable_temporal_pos_encoding_for_object_pointers=False,
    )


def hf_state(template: dict[str, Tensor], official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official weights under transformers' names: the key map, asked name by name, read backwards."""
    state = {}
    for key, value in template.items():
        if key.startswith("spatial_perceiver.") and (".k_proj." in key or ".v_proj." in key):
            pair = (key.replace(".v_proj.", ".k_proj."), key.replace(".k_proj.", ".v_proj."))
            (name,) = official_from_hf(dict.fromkeys(pair, value))
            state[key] = official[name].chunk(2)[pair.index(key)].clone()
            continue
        names = list(official_from_hf({key: value})) or [
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        ]
        state[key] = torch.cat([official[name] for name in names]) if len(names) > 1 else official[names[0]].clone()
    return state


@torch.inference_mode()
def oracle_memory(oracle: Any, embed: Tensor, logits: Tensor, certain: bool) -> tuple[Tensor, Tensor]:
    """What transformers keeps of one object on one frame. embed: (1, hw, C) without no_mem_embed; logits: (1, 1, h, w)."""
    side = oracle.image_size
    fine = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
    memory, position = oracle._encode_new_memory(embed.transpose(0, 1), fine, torch.ones(1, 1), certain)
    return memory, position


def session(oracle: Any, frames: int) -> SimpleNamespace:
    """As much of transformers' inference session as memory attention reads: frame 0 prompted, the others tracked."""
    rng = np.random.default_rng(4)
    kept: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for frame in range(frames):
        embed = torch.from_numpy(rng.normal(0, 2, (1, 1024, 256)).astype(np.float32))
        logits = torch.from_numpy(rng.normal(0, 8, (1, 1, 8, 8)).repeat(16, 2).repeat(16, 3).astype(np.float32))
        memory, position = oracle_memory(oracle, embed, logits, frame == 0)
        pointer = torch.from_numpy(rng.normal(0, 1, (1, 256)).astype(np.float32))
        kind = "non_cond_frame_outputs" if frame else "cond_frame_outputs"
        kept[kind][frame] = {
            "maskmem_features": memory,
            "maskmem_pos_enc": position,
            "object_pointer": pointer,
        }
    return SimpleNamespace(output_dict_per_obj=[kept])


def bank_feeds(bank: SimpleNamespace, frame: int) -> dict[str, np.ndarray]:
    """A session's memory as the graph takes it, with one slot and one pointer that are not there and hold nonsense."""
    (kept,) = bank.output_dict_per_obj
    tracked = kept["non_cond_frame_outputs"]
    slots = [(6, kept["cond_frame_outputs"][0])]
    slots += [(frame - before - 1, tracked[before]) for before in range(max(1, frame - 6), frame)]
    outputs = [kept["cond_frame_outputs"][0], *tracked.values()]
    memory = torch.cat([output["maskmem_features"] for _, output in slots])
    pointers = torch.cat([output["object_pointer"] for output in outputs])
    nonsense = torch.full_like(memory[:1], 9.0), torch.full_like(pointers[:1], -9.0)
    return {
        "memory": torch.cat((memory, nonsense[0]))[None].numpy(),
        "memory_time": np.array([[age for age, _ in slots] + [0]], np.int32),
        "memory_valid": np.array([[1] * len(slots) + [0]], np.float32),
        "object_pointers": torch.cat((pointers, nonsense[1]))[None].numpy(),
        "pointer_distance": np.linspace(0, 1, len(outputs) + 1, dtype=np.float32)[None],
        "pointer_valid": np.array([[1] * len(outputs) + [0]], np.float32),
    }
