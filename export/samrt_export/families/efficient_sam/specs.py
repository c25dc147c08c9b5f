"""The graphs of a loaded model: tensors, profiles, samples, forms; and the manifest's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samrt_engines.tensors import TensorSpec
from samrt_export.families.efficient_sam.config import CONFIGS, MAX_POINTS, MEAN, NUM_MASKS, STD
from samrt_export.families.efficient_sam.model import EfficientSam
from samrt_export.families.efficient_sam.modules import (
    ImageEncoderGraph,
    ImageEncoderReference,
    MaskDecoderGraph,
    MaskDecoderReference,
    PromptEncoderGraph,
)
from samrt_export.registry import Feeds, Form, GraphSpec
from samrt_export.samples import sample_image, sample_prompts

MOST_PROMPTS = 64


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, EfficientSam)
    config = module.config
    size, dim, hw, mask = config.image_size, config.d_model, config.embed_size**2, config.mask_size
    features = (
        TensorSpec("image_embed", "float32", ("images", hw, dim)),
        *(
            TensorSpec(name, "float32", ("images", 8, hw, dim // 16))
            for name in ("image_queries", "image_keys", "image_values")
        ),
    )
    prompts = (
        TensorSpec("point_coords", "float32", ("prompts", MAX_POINTS, 2)),
        TensorSpec("point_labels", "int32", ("prompts", MAX_POINTS)),
    )
    sparse = TensorSpec("sparse_embeddings", "float32", ("prompts", MAX_POINTS, dim))
    outputs = (
        TensorSpec("low_res_masks", "float32", ("prompts", NUM_MASKS, mask, mask)),
        TensorSpec("iou_predictions", "float32", ("prompts", NUM_MASKS)),
    )
    encoder, prompt_encoder = ImageEncoderReference(module).eval(), PromptEncoderGraph(module).eval()

    @lru_cache(maxsize=4)
    def sample_maps(seed: int) -> tuple[Tensor, ...]:
        """The encoder's outputs on a sample picture: what a decoder really meets."""
        with torch.inference_mode():
            return encoder(torch.from_numpy(sample_image(1, size, seed)))  # type: ignore[no-any-return]

    def sample_decoder(sizes: Mapping[str, int], seed: int) -> Feeds:
        feeds = sample_points(sizes["prompts"], size, seed)
        with torch.inference_mode():
            (tokens,) = prompt_encoder(*(torch.from_numpy(value) for value in feeds.values()))
        pictures = [sample_maps(seed + index) for index in range(sizes["images"])]
        maps = {spec.name: torch.cat(parts) for spec, parts in zip(features, zip(*pictures, strict=True), strict=True)}
        return {name: tensor.numpy() for name, tensor in (maps | {sparse.name: tokens}).items()}

    return (
        GraphSpec(
            "image_encoder",
            encoder,
            (TensorSpec("image", "float32", ("images", size, size, 3)),),
            features,
            profiles={"images": (1, 1, 8)},
            checks=({"images": 1}, {"images": 2}),
            sample=lambda sizes, seed: {"image": sample_image(sizes["images"], size, seed)},
            forms=(
                Form(ImageEncoderGraph(module, ort_cpu=True).eval(), ("onnxruntime-cpu",)),
                Form(ImageEncoderGraph(module).eval()),
            ),
        ),
        GraphSpec(
            "prompt_encoder",
            prompt_encoder,
            prompts,
            (sparse,),
            profiles={"prompts": (1, 1, MOST_PROMPTS)},
            checks=({"prompts": 1}, {"prompts": 3}),
            sample=lambda sizes, seed: sample_points(sizes["prompts"], size, seed),
            forms=(Form(prompt_encoder),),
        ),
        GraphSpec(
            "mask_decoder",
            MaskDecoderReference(module).eval(),
            (*features, sparse),
            outputs,
            profiles={"prompts": (1, 1, MOST_PROMPTS), "images": (1, 1, MOST_PROMPTS)},
            checks=({"prompts": 1, "images": 1}, {"prompts": 2, "images": 2}),
            sample=sample_decoder,
            broadcast=frozenset({"images"}),
            forms=(
                Form(MaskDecoderGraph(module, folded=True).eval(), ("onnxruntime-cpu", "openvino")),
                Form(MaskDecoderGraph(module).eval()),
            ),
        ),
    )


def sample_points(prompts: int, size: int, seed: int) -> Feeds:
    """A prompt encoder's feeds: points with every label that it knows in turn, -1 included."""
    feeds = sample_prompts(prompts, MAX_POINTS, size, 4, seed)
    labels = feeds["point_labels"]
    return {"point_coords": feeds["point_coords"], "point_labels": np.where(labels == 0, np.int32(1), labels)}


def numbers(model: str) -> dict[str, Any]:
    """The manifest's numbers. A request for a single mask gets the best-scored of the three, as upstream does."""
    config = CONFIGS[model]
    return {
        "image": {
            "size_hw": [config.image_size] * 2,
            "mean": list(MEAN),
            "std": list(STD),
            "resize": "stretch",
            "antialias": False,
            "value_range": [0, 255],
        },
        "prompts": {
            "labels": {"negative": None, "positive": 1, "box_top_left": 2, "box_bottom_right": 3, "padding": -1},
            "padding_point": "fill",
            "max_points": MAX_POINTS,
            "mask_size_hw": None,
        },
        "masks": {
            "threshold": 0.0,
            "logits_clamp": 32.0,
            "size_hw": [config.mask_size] * 2,
            "single": list(range(NUM_MASKS)),
            "multi": list(range(NUM_MASKS)),
            "stability": None,
        },
    }
