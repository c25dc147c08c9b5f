"""The graphs of a loaded model: tensors, profiles, samples, forms; and the manifest's numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from samrt_engines.tensors import TensorSpec
from samrt_export.families.sam.specs import (
    answers,
    decoder_graph,
    decoder_sample,
    encoder_graph,
    features,
    folded_and_plain,
    prompt_graph,
    sample_maps,
)
from samrt_export.families.sam2.config import CONFIGS, MEAN, STD, Sam2Config
from samrt_export.families.sam2.model import Sam2
from samrt_export.families.sam2.modules import (
    ImageEncoderGraph,
    ImageEncoderReference,
    MaskDecoderGraph,
    MaskDecoderReference,
)
from samrt_export.families.sam2.video import video_graphs, video_numbers
from samrt_export.registry import Form, GraphSpec


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, Sam2)
    on_cpu, usual = ImageEncoderGraph(module, ort_cpu=True).eval(), ImageEncoderGraph(module).eval()
    return tracker_graphs(module, (Form(on_cpu, ("onnxruntime-cpu",)), Form(usual)))


def tracker_graphs(module: Sam2, encoder_forms: tuple[Form, ...]) -> tuple[GraphSpec, ...]:
    """The graphs of SAM 2 with whatever trunk; encoder_forms: of ``image_encoder``."""
    config = module.config
    encoder, decoder = ImageEncoderReference(module).eval(), MaskDecoderReference(module).eval()
    made = features(config) + fine_maps(config, "images")
    image_encoder = encoder_graph(encoder, config.image_size, made, encoder_forms)
    prompter = prompt_graph(config, module.sam_prompt_encoder)
    maps = sample_maps(image_encoder)
    inputs = features(config) + fine_maps(config, "frames") + prompter.outputs
    outputs = (
        *answers(config),
        TensorSpec("object_score_logits", "float32", ("prompts", 1)),
        TensorSpec("mask_tokens", "float32", ("prompts", 4, config.d_model)),
    )
    sample, forms = decoder_sample(config, inputs, maps, prompter), folded_and_plain(partial(MaskDecoderGraph, module))
    return (
        image_encoder,
        prompter,
        decoder_graph(config, inputs, outputs, sample, decoder, forms),
        *video_graphs(module, maps),
    )


def fine_maps(config: Sam2Config, axis: str) -> tuple[TensorSpec, ...]:
    """What a decoder takes of the image beside `features`. The first axis has a name of its own there: in a video, embeddings
    that were conditioned on the memory of several objects meet the fine maps of one frame.
    """
    dim, hw = config.d_model, config.embed_size**2
    return (
        TensorSpec("high_res_feats_0", "float32", (axis, hw, 16, dim // 8)),
        TensorSpec("high_res_feats_1", "float32", (axis, hw, 4, dim // 4)),
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
