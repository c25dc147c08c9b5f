"""An independent SAM: transformers' ``SamModel`` with our weights, and the official processing with Pillow and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from samrt_export.blocks.vit import VitConfig
from samrt_export.families.sam import CONFIGS, PromptedConfig, Sam, official_from_hf

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def vision_config(vit: VitConfig) -> SamVisionConfig:
    """transformers' configuration of an encoder."""
    return SamVisionConfig(
        hidden_size=vit.embed_dim,
        output_channels=vit.out_chans,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.num_heads,
        image_size=vit.img_size,
        patch_size=vit.patch_size,
        window_size=vit.window_size,
        global_attn_indexes=list(vit.global_attn_indexes),
        num_pos_feats=vit.out_chans // 2,
        mlp_dim=4 * vit.embed_dim,
    )


def prompt_config(prompted: PromptedConfig) -> SamPromptEncoderConfig:
    """transformers' configuration of a prompt encoder."""
    return SamPromptEncoderConfig(hidden_size=prompted.d_model, image_size=prompted.image_size)


def decoder_numbers(prompted: PromptedConfig) -> dict[str, Any]:
    """What transformers' configuration of a mask decoder takes.

    ``layer_norm_eps``: transformers has 1e-6 in the decoder's blocks where the official code has torch's 1e-5.
    """
    return {
        "hidden_size": prompted.d_model,
        "mlp_dim": prompted.mlp_dim,
        "iou_head_hidden_dim": prompted.iou_hidden_dim,
        "layer_norm_eps": 1e-5,
    }


def hf_config(model: str) -> SamConfig:
    """transformers' configuration of one of our models."""
    config = CONFIGS[model]
    return SamConfig(
        vision_config=vision_config(config.encoder),
        prompt_encoder_config=prompt_config(config.prompted),
        mask_decoder_config=SamMaskDecoderConfig(**decoder_numbers(config.prompted)),
    )


def hf_state(template: dict[str, torch.Tensor], official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official weights under transformers' names: the key map, asked name by name, read backwards."""
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    return {key: official[next(iter(official_from_hf({key: value})), matrix)] for key, value in template.items()}


def hf_model(module: Sam, model: str) -> SamModel:
    """transformers' model with the weights of ours, every key matched."""
    oracle = SamModel(hf_config(model)).eval()
    oracle.load_state_dict(hf_state(oracle.state_dict(), module.state_dict()), strict=True)
    return oracle


def content_hw(hw: tuple[int, int], size: int) -> tuple[int, int]:
    """What the longest side becomes ``size`` with."""
    scale = size / max(hw)
    return int(hw[0] * scale + 0.5), int(hw[1] * scale + 0.5)


def preprocess(image: np.ndarray, size: int) -> torch.Tensor:
    """uint8 (H, W, 3) -> (1, 3, S, S), as ``SamPredictor.set_image``: Pillow in bytes, normalise, zeros right and below."""
    height, width = content_hw((image.shape[0], image.shape[1]), size)
    resized = np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized.astype(np.float32)).permute(2, 0, 1)[None]
    mean, std = torch.tensor(PIXEL_MEAN).reshape(1, 3, 1, 1), torch.tensor(PIXEL_STD).reshape(1, 3, 1, 1)
    return F.pad((pixels - mean) / std, (0, size - width, 0, size - height))


def picture_logits(logits: torch.Tensor, hw: tuple[int, int], size: int) -> torch.Tensor:
    """(P, C, h, w) -> (P, C, H, W) in the picture's pixels, as ``Sam.postprocess_masks``."""
    height, width = content_hw(hw, size)
    full = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)[..., :height, :width]
    return F.interpolate(full, hw, mode="bilinear", align_corners=False)


def oracle_masks(
    oracle: Any,
    image: np.ndarray,
    *,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    multimask: bool = True,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """points (P, N, 2), labels (P, N), boxes (P, 4) in pixels, mask (h, w) -> bool (P, C, H, W), scores (P, C).

    options: further arguments of the oracle
    """
    hw = (image.shape[0], image.shape[1])
    size = oracle.config.prompt_encoder_config.image_size
    height, width = content_hw(hw, size)
    scale = np.array([width / hw[1], height / hw[0]])
    feeds: dict[str, Any] = {}
    if points is not None and labels is not None:
        feeds["input_points"] = torch.from_numpy((points * scale).astype(np.float32))[None]
        feeds["input_labels"] = torch.from_numpy(labels.astype(np.int64))[None]
    if boxes is not None:
        corners = (boxes.reshape(-1, 2, 2) * scale).reshape(-1, 4)
        feeds["input_boxes"] = torch.from_numpy(corners.astype(np.float32))[None]
    if mask is not None:
        feeds["input_masks"] = torch.from_numpy(mask)[None, None]
    with torch.inference_mode():
        out = oracle(pixel_values=preprocess(image, size), multimask_output=multimask, **feeds, **options)
        full = picture_logits(out.pred_masks[0], hw, size)
    return (full > 0).numpy(), out.iou_scores[0].numpy()
