"""The graphs of a loaded model: tensors, profiles, samples, forms; and the manifest's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.prompt_encoder import PromptEncoderGraph
from samrt_export.families.sam2.config import CONFIGS, MEAN, STD, Sam2Config
from samrt_export.families.sam2.model import Sam2
from samrt_export.families.sam2.modules import (
    ImageEncoderGraph,
    ImageEncoderReference,
    MaskDecoderGraph,
    MaskDecoderReference,
)
from samrt_export.families.sam2.video import video_graphs, video_numbers
from samrt_export.registry import Feeds, Form, GraphSpec
from samrt_export.samples import sample_image, sample_prompts


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, Sam2)
    on_cpu, usual = ImageEncoderGraph(module, ort_cpu=True).eval(), ImageEncoderGraph(module).eval()
    return tracker_graphs(module, (Form(on_cpu, ("onnxruntime-cpu",)), Form(usual)))


def tracker_graphs(module: Sam2, encoder_forms: tuple[Form, ...]) -> tuple[GraphSpec, ...]:
    """The graphs of SAM 2 with whatever trunk; encoder_forms: of ``image_encoder``."""
    config = module.config
    size, dim, hw, mask = config.image_size, config.d_model, config.embed_size**2, config.mask_size
    features = _features(config, "images", "images")
    embeddings = (
        TensorSpec("sparse_embeddings", "float32", ("prompts", "points", dim)),
        TensorSpec("dense_embeddings", "float32", ("prompts", "positions", dim)),
    )
    prompts = (
        TensorSpec("point_coords", "float32", ("prompts", "points", 2)),
        TensorSpec("point_labels", "int32", ("prompts", "points")),
        TensorSpec("mask_input", "float32", ("prompts", 1, "mask_height", "mask_width")),
        TensorSpec("has_mask_input", "float32", ("prompts",)),
    )
    outputs = (
        TensorSpec("low_res_masks", "float32", ("prompts", 4, mask, mask)),
        TensorSpec("iou_predictions", "float32", ("prompts", 4)),
        TensorSpec("object_score_logits", "float32", ("prompts", 1)),
        TensorSpec("mask_tokens", "float32", ("prompts", 4, dim)),
    )
    image = (TensorSpec("image", "float32", ("images", size, size, 3)),)
    encoder, prompt_encoder = ImageEncoderReference(module).eval(), PromptEncoderGraph(module.sam_prompt_encoder).eval()

    @lru_cache(maxsize=4)
    def sample_maps(seed: int) -> tuple[Tensor, ...]:
        """The encoder's outputs on a sample picture: what a decoder really meets."""
        with torch.inference_mode():
            return encoder(torch.from_numpy(sample_image(1, size, seed)))  # type: ignore[no-any-return]

    def sample_encoder(sizes: Mapping[str, int], seed: int) -> Feeds:
        return {"image": sample_image(sizes["images"], size, seed)}

    def sample_prompter(sizes: Mapping[str, int], seed: int) -> Feeds:
        return sample_prompts(sizes["prompts"], sizes["points"], size, sizes["mask_height"], seed)

    def sample_decoder(sizes: Mapping[str, int], seed: int) -> Feeds:
        mask_side = 4 if sizes["positions"] == 1 else mask
        prompts = sample_prompts(sizes["prompts"], sizes["points"], size, mask_side, seed)
        with torch.inference_mode():
            tokens = prompt_encoder(*(torch.from_numpy(value) for value in prompts.values()))
        names = [spec.name for spec in (*features, *embeddings)]
        pictures = [sample_maps(seed + index) for index in range(sizes["images"])]
        *maps, fine, middle = (torch.cat(parts) for parts in zip(*pictures, strict=True))
        tensors = (*maps, fine[: sizes["frames"]], middle[: sizes["frames"]], *tokens)
        return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}

    click, several = {"prompts": 1, "points": 2}, {"prompts": 2, "points": 5}
    prompt_profiles = {"prompts": (1, 1, 64), "points": (0, 2, 65)}
    return (
        GraphSpec(
            "image_encoder",
            encoder,
            image,
            features,
            profiles={"images": (1, 1, 8)},
            checks=({"images": 1}, {"images": 2}),
            sample=sample_encoder,
            forms=encoder_forms,
        ),
        GraphSpec(
            "prompt_encoder",
            prompt_encoder,
            prompts,
            embeddings,
            profiles=prompt_profiles | {"mask_height": (4, 4, mask), "mask_width": (4, 4, mask)},
            checks=(
                click | {"mask_height": 4, "mask_width": 4},
                several | {"mask_height": mask, "mask_width": mask},
            ),
            sample=sample_prompter,
            forms=(Form(prompt_encoder),),
        ),
        GraphSpec(
            "mask_decoder",
            MaskDecoderReference(module).eval(),
            _features(config, "images", "frames") + embeddings,
            outputs,
            profiles=prompt_profiles | {"images": (1, 1, 64), "frames": (1, 1, 64), "positions": (1, 1, hw)},
            checks=(
                click | {"images": 1, "frames": 1, "positions": 1},
                several | {"images": several["prompts"], "frames": several["prompts"], "positions": hw},
            ),
            sample=sample_decoder,
            broadcast=frozenset({"images", "frames", "positions"}),
            forms=(
                Form(MaskDecoderGraph(module, folded=True).eval(), ("onnxruntime-cpu", "openvino")),
                Form(MaskDecoderGraph(module).eval()),
            ),
        ),
        *video_graphs(module, sample_maps),
    )


def _features(config: Sam2Config, embeds: str, fine: str) -> tuple[TensorSpec, ...]:
    """What a decoder takes of the image. The first axes have names of their own: in a video, embeddings that were
    conditioned on the memory of several objects meet the fine maps of one frame."""
    dim, hw = config.d_model, config.embed_size**2
    heads = (8, hw, dim // 16)
    return (
        TensorSpec("image_embed", "float32", (embeds, hw, dim)),
        *(TensorSpec(name, "float32", (embeds, *heads)) for name in ("image_queries", "image_keys", "image_values")),
        TensorSpec("high_res_feats_0", "float32", (fine, hw, 16, dim // 8)),
        TensorSpec("high_res_feats_1", "float32", (fine, hw, 4, dim // 4)),
    )


def numbers(model: str) -> dict[str, Any]:
    """The manifest's numbers."""
    return tracker_numbers(CONFIGS[model])


def tracker_numbers(config: Sam2Config) -> dict[str, Any]:
    """The numbers of SAM 2 with whatever trunk. Stability constants: ``build_sam2`` with its default postprocessing."""
    return {
        "image": {
            "size_hw": [config.image_size] * 2,
            "mean": list(MEAN),
            "std": list(STD),
            "resize": "stretch",
            "antialias": True,
            "value_range": [0, 255],
        },
        "prompts": {
            "labels": {"negative": 0, "positive": 1, "box_top_left": 2, "box_bottom_right": 3, "padding": -1},
            "padding_point": "always",
            "max_points": 64,
            "mask_size_hw": [config.mask_size] * 2,
        },
        "masks": {
            "threshold": 0.0,
            "logits_clamp": 32.0,
            "size_hw": [config.mask_size] * 2,
            "single": [0],
            "multi": [1, 2, 3],
            "stability": {"delta": 0.05, "threshold": 0.98},
        },
        "automatic": {
            "pred_iou_thresh": config.automatic[0],
            "stability_score_thresh": config.automatic[1],
            "candidates": "all",
        },
        "video": video_numbers(config),
    }
