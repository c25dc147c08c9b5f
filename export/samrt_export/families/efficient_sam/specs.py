"""The graphs of a loaded model: tensors, profiles, samples, forms; and the manifest's numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import nn

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
from samrt_export.families.sam.specs import (
    PROFILES,
    answers,
    decoder_graph,
    decoder_sample,
    encoder_graph,
    features,
    folded_and_plain,
    sample_maps,
)
from samrt_export.registry import Feeds, Form, GraphSpec
from samrt_export.samples import sample_prompts


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, EfficientSam)
    config = module.config
    encoder, decoder = ImageEncoderReference(module).eval(), MaskDecoderReference(module).eval()
    encoder_forms = (
        Form(ImageEncoderGraph(module, ort_cpu=True).eval(), ("onnxruntime-cpu",)),
        Form(ImageEncoderGraph(module).eval()),
    )
    image_encoder = encoder_graph(encoder, config.image_size, features(config), encoder_forms)
    prompter = point_graph(module)
    inputs = image_encoder.outputs + prompter.outputs
    sample = decoder_sample(config, inputs, sample_maps(image_encoder), prompter)
    forms = folded_and_plain(partial(MaskDecoderGraph, module))
    return image_encoder, prompter, decoder_graph(config, inputs, answers(config, NUM_MASKS), sample, decoder, forms)


def point_graph(module: EfficientSam) -> GraphSpec:
    """``prompt_encoder``: of points alone, a fixed number of them."""
    size, prompter = module.config.image_size, PromptEncoderGraph(module).eval()
    return GraphSpec(
        "prompt_encoder",
        prompter,
        (
            TensorSpec("point_coords", "float32", ("prompts", MAX_POINTS, 2)),
            TensorSpec("point_labels", "int32", ("prompts", MAX_POINTS)),
        ),
        (TensorSpec("sparse_embeddings", "float32", ("prompts", MAX_POINTS, module.config.d_model)),),
        profiles={"prompts": PROFILES["prompts"]},
        checks=({"prompts": 1}, {"prompts": 3}),
        sample=lambda sizes, seed: sample_points(sizes["prompts"], size, seed),
        forms=(Form(prompter),),
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
