"""An independent SAM 2: transformers' ``Sam2Model`` with our weights, and the official preprocessing written with torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
)

from samrt_export.families.sam2 import CONFIGS, MEAN, STD, Sam2, official_from_hf


def hf_config(model: str) -> Sam2Config:
    """transformers' configuration of one of our models.

    ``layer_norm_eps``: transformers takes 1e-6 in the mask decoder's blocks where the official code has torch's 1e-5.
    """
    config, trunk = CONFIGS[model], CONFIGS[model].trunk
    size, embed = config.image_size, config.embed_size
    backbone = Sam2HieraDetConfig(
        hidden_size=trunk.embed_dim,
        num_attention_heads=trunk.num_heads,
        image_size=[size, size],
        blocks_per_stage=list(trunk.stages),
        embed_dim_per_stage=list(trunk.channels),
        num_attention_heads_per_stage=[trunk.num_heads * 2**i for i in range(4)],
        window_size_per_stage=list(trunk.window_spec),
        global_attention_blocks=list(trunk.global_att_blocks),
        window_positional_embedding_background_size=list(trunk.window_pos_embed_bkg_spatial_size),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(reversed(trunk.channels)),
        backbone_feature_sizes=[[embed * 4] * 2, [embed * 2] * 2, [embed] * 2],
        fpn_hidden_size=config.d_model,
        fpn_top_down_levels=list(config.top_down_levels),
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=config.d_model, image_size=size)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=config.d_model,
        mlp_dim=config.mlp_dim,
        iou_head_hidden_dim=config.iou_hidden_dim,
        layer_norm_eps=1e-5,
    )
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def hf_state(template: dict[str, torch.Tensor], official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official weights under transformers' names: the key map, asked name by name, read backwards."""
    state = {}
    for key, value in template.items():
        names = list(official_from_hf({key: value})) or [
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        ]
        state[key] = torch.cat([official[name] for name in names]) if len(names) > 1 else official[names[0]]
    return state


def hf_image_model(module: Sam2, model: str) -> Sam2Model:
    """transformers' model with the weights of ours, every key matched."""
    oracle = Sam2Model(hf_config(model)).eval()
    oracle.load_state_dict(hf_state(oracle.state_dict(), module.state_dict()), strict=True)
    return oracle


def hf_video_state(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole sam2.1-hiera-tiny state as the hub's files have it (``Sam2VideoModel``)."""
    with torch.device("meta"):
        template = Sam2VideoModel(Sam2VideoConfig()).state_dict()
    return hf_state(template, official)


def preprocess(image: np.ndarray, size: int) -> torch.Tensor:
    """uint8 (H, W, 3) -> (1, 3, S, S), as ``SAM2Transforms``: to 0..1, antialiased resize in float, normalise."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()[None] / 255
    if image.shape[:2] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = torch.tensor(MEAN).reshape(1, 3, 1, 1), torch.tensor(STD).reshape(1, 3, 1, 1)
    return (pixels - mean) / std


def oracle_masks(
    oracle: Sam2Model,
    image: np.ndarray,
    *,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    multimask: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """points (P, N, 2), labels (P, N), boxes (P, 4) in pixels, mask (h, w) -> bool (P, C, H, W), scores (P, C)."""
    height, width = image.shape[:2]
    size = oracle.config.prompt_encoder_config.image_size
    scale = np.array([size / width, size / height])
    feeds: dict[str, Any] = {}
    if points is not None and labels is not None:
        feeds["input_points"] = torch.from_numpy((points * scale).astype(np.float32))[None]
        feeds["input_labels"] = torch.from_numpy(labels.astype(np.int64))[None]
    if boxes is not None:
        feeds["input_boxes"] = torch.from_numpy((boxes.reshape(-1, 2, 2) * scale).reshape(-1, 4).astype(np.float32))[
            None
        ]
    if mask is not None:
        feeds["input_masks"] = torch.from_numpy(mask)[None, None]
    with torch.inference_mode():
        out = oracle(pixel_values=preprocess(image, size), multimask_output=multimask, **feeds)
        full = F.interpolate(out.pred_masks[0], size=(height, width), mode="bilinear", align_corners=False)
    return (full > 0).numpy(), out.iou_scores[0].numpy()
