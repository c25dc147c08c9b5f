"""The graphs of a loaded model: tensors, profiles, samples, forms; and the manifest's numbers.

`prompted_graphs` and `prompted_numbers` serve every model that is prompted as SAM is: SAM-HQ and MobileSAM compose them,
SAM 2 and EfficientSAM the parts that they share (`encoder_graph`, `prompt_graph`, `decoder_graph` and what these take).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.prompt_encoder import PromptEncoder, PromptEncoderGraph
from samrt_export.blocks.vit import ImageEncoderVit
from samrt_export.blocks.vit_forms import EvenAttention, OrtCpuAttention, PlainAttention, VitForm
from samrt_export.families.sam.config import CONFIGS, MEAN, STD, PromptedConfig
from samrt_export.families.sam.model import Sam
from samrt_export.families.sam.modules import (
    ImageEncoderGraph,
    ImageEncoderReference,
    MaskDecoderGraph,
    MaskDecoderReference,
)
from samrt_export.registry import Feeds, Form, GraphSpec
from samrt_export.samples import sample_image, sample_prompts

Sample = Callable[[Mapping[str, int], int], Feeds]
"""`GraphSpec.sample`."""
SampleMaps = Callable[[int], tuple[Tensor, ...]]
"""Seed -> the image encoder's outputs on a sample picture: what a decoder really meets."""
CLICK, SEVERAL = {"prompts": 1, "points": 2}, {"prompts": 2, "points": 5}
PROFILES = {"prompts": (1, 1, 64), "points": (0, 2, 65)}


def prompted_graphs(
    module: Sam,
    encoder: nn.Module,
    encoder_forms: tuple[Form, ...],
    decoder: nn.Module | None = None,
    decoder_forms: tuple[Form, ...] | None = None,
    more_features: tuple[TensorSpec, ...] = (),
) -> tuple[GraphSpec, ...]:
    """All graphs, in the order in which a self-test runs them.

    encoder: the reference of ``image_encoder``, whose outputs are `features` and ``more_features``, first axis "images"
    decoder, decoder_forms: of ``mask_decoder``, which takes the same and the prompt encoder's outputs; None: SAM's own
    """
    config = module.config
    outputs = features(config) + more_features
    prompter = prompt_graph(config, module.prompt_encoder)
    if decoder is None:
        decoder = MaskDecoderReference(module).eval()
    if decoder_forms is None:
        decoder_forms = folded_and_plain(partial(MaskDecoderGraph, module))
    image_encoder = encoder_graph(encoder, config.image_size, outputs, encoder_forms)
    inputs = outputs + prompter.outputs
    sample = decoder_sample(config, inputs, sample_maps(image_encoder), prompter)
    return image_encoder, prompter, decoder_graph(config, inputs, answers(config), sample, decoder, decoder_forms)


def encoder_graph(encoder: nn.Module, size: int, outputs: tuple[TensorSpec, ...], forms: tuple[Form, ...]) -> GraphSpec:
    """``image_encoder`` of pictures (B, size, size, 3)."""
    return GraphSpec(
        "image_encoder",
        encoder,
        (TensorSpec("image", "float32", ("images", size, size, 3)),),
        outputs,
        profiles={"images": (1, 1, 8)},
        checks=({"images": 1}, {"images": 2}),
        sample=lambda sizes, seed: {"image": sample_image(sizes["images"], size, seed)},
        forms=forms,
    )


def prompt_graph(config: PromptedConfig, encoder: PromptEncoder) -> GraphSpec:
    """``prompt_encoder``."""
    mask, prompter = config.mask_size, PromptEncoderGraph(encoder).eval()
    return GraphSpec(
        "prompt_encoder",
        prompter,
        (
            TensorSpec("point_coords", "float32", ("prompts", "points", 2)),
            TensorSpec("point_labels", "int32", ("prompts", "points")),
            TensorSpec("mask_input", "float32", ("prompts", 1, "mask_height", "mask_width")),
            TensorSpec("has_mask_input", "float32", ("prompts",)),
        ),
        (
            TensorSpec("sparse_embeddings", "float32", ("prompts", "points", config.d_model)),
            TensorSpec("dense_embeddings", "float32", ("prompts", "positions", config.d_model)),
        ),
        profiles=PROFILES | {"mask_height": (4, 4, mask), "mask_width": (4, 4, mask)},
        checks=(
            CLICK | {"mask_height": 4, "mask_width": 4},
            SEVERAL | {"mask_height": mask, "mask_width": mask},
        ),
        sample=lambda sizes, seed: sample_prompts(
            sizes["prompts"], sizes["points"], config.image_size, sizes["mask_height"], seed
        ),
        forms=(Form(prompter),),
    )


def decoder_graph(
    config: PromptedConfig,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    sample: Sample,
    decoder: nn.Module,
    forms: tuple[Form, ...],
) -> GraphSpec:
    """``mask_decoder``: takes all that the image encoder makes, of one picture or one for each prompt, and all that the prompt
    encoder makes.

    inputs: `features`, maybe more of the picture, and the prompt encoder's. The first axis of the picture's is "images"; it is
    "frames" where one for all prompts may meet features that are each prompt's own.
    outputs: `answers`, and maybe more
    sample: from `decoder_sample`
    """
    hw, most, many = config.embed_size**2, PROFILES["prompts"], SEVERAL["prompts"]
    profiles = PROFILES | {"images": most, "frames": most, "positions": (1, 1, hw)}
    click = CLICK | {"images": 1, "frames": 1, "positions": 1}
    several = SEVERAL | {"images": many, "frames": many, "positions": hw}
    symbols = [symbol for symbol in profiles if any(symbol in tensor.shape for tensor in inputs)]
    return GraphSpec(
        "mask_decoder",
        decoder,
        inputs,
        outputs,
        profiles={symbol: profiles[symbol] for symbol in symbols},
        checks=({symbol: click[symbol] for symbol in symbols}, {symbol: several[symbol] for symbol in symbols}),
        sample=sample,
        broadcast=frozenset({"images", "frames", "positions"}.intersection(symbols)),
        forms=forms,
    )


def decoder_sample(
    config: PromptedConfig, inputs: tuple[TensorSpec, ...], maps: SampleMaps, prompter: GraphSpec
) -> Sample:
    """Samples of ``mask_decoder``: what the image encoder and the prompt encoder make of theirs."""

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        side = 4 if sizes.get("positions", 1) == 1 else config.mask_size
        prompts = prompter.sample(dict(sizes) | {"mask_height": side, "mask_width": side}, seed)
        pictures = [maps(seed + index) for index in range(sizes["images"])]
        tensors = (*(torch.cat(parts) for parts in zip(*pictures, strict=True)), *run(prompter, prompts))
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(inputs, tensors, strict=True)}
        return feeds | {spec.name: feeds[spec.name][: sizes["frames"]] for spec in inputs if spec.shape[0] == "frames"}

    return sample


def sample_maps(image_encoder: GraphSpec) -> SampleMaps:
    """Of an image encoder; the last few pictures' are kept."""

    @lru_cache(maxsize=4)
    def maps(seed: int) -> tuple[Tensor, ...]:
        return run(image_encoder, image_encoder.sample({"images": 1}, seed))

    return maps


def folded_and_plain(make: Callable[..., nn.Module]) -> tuple[Form, ...]:
    """The forms of ``mask_decoder``, made with ``folded=True`` and without (see blocks/two_way.py), and for which targets."""
    return Form(make(folded=True).eval(), ("onnxruntime-cpu", "openvino")), Form(make().eval())


def run(spec: GraphSpec, feeds: Feeds) -> tuple[Tensor, ...]:
    """A graph's module on feeds."""
    with torch.inference_mode():
        return spec.module(*(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs))  # type: ignore[no-any-return]


def features(config: PromptedConfig) -> tuple[TensorSpec, ...]:
    """What every decoder takes of the image."""
    dim, hw = config.d_model, config.embed_size**2
    names = ("image_queries", "image_keys", "image_values")
    return (
        TensorSpec("image_embed", "float32", ("images", hw, dim)),
        *(TensorSpec(name, "float32", ("images", 8, hw, dim // 16)) for name in names),
    )


def answers(config: PromptedConfig, candidates: int = 4) -> tuple[TensorSpec, ...]:
    """What every decoder makes of a prompt."""
    mask = config.mask_size
    return (
        TensorSpec("low_res_masks", "float32", ("prompts", candidates, mask, mask)),
        TensorSpec("iou_predictions", "float32", ("prompts", candidates)),
    )


def prompted_numbers(config: PromptedConfig) -> dict[str, Any]:
    """The numbers of SAM with whatever encoder. Source: segment_anything's ``build_sam`` and ``SamPredictor``."""
    return {
        "image": {
            "size_hw": [config.image_size] * 2,
            "mean": list(MEAN),
            "std": list(STD),
            "resize": "longest_side",
            "antialias": True,
            "resize_dtype": "uint8",
            "value_range": [0, 255],
        },
        "prompts": {
            "labels": {"negative": 0, "positive": 1, "box_top_left": 2, "box_bottom_right": 3, "padding": -1},
            "padding_point": "without_box",
            "max_points": 64,
            "mask_size_hw": [config.mask_size] * 2,
        },
        "masks": {
            "threshold": 0.0,
            "logits_clamp": 1e9,  # nothing is clamped
            "size_hw": [config.mask_size] * 2,
            "single": [0],
            "multi": [1, 2, 3],
            "stability": None,
        },
    }


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model."""
    assert isinstance(module, Sam)
    return prompted_graphs(module, ImageEncoderReference(module).eval(), encoder_forms(module))


def encoder_forms(module: Sam) -> tuple[Form, ...]:
    """Of SAM's own encoder."""
    encoder = module.image_encoder
    assert isinstance(encoder, ImageEncoderVit)
    attentions = (("onnxruntime-cpu",), OrtCpuAttention), (("openvino",), PlainAttention), ((), EvenAttention)
    return tuple(
        Form(ImageEncoderGraph(module, VitForm(encoder, MEAN, STD, attention)).eval(), targets)
        for targets, attention in attentions
    )


def numbers(model: str) -> dict[str, Any]:
    """The manifest's numbers."""
    return prompted_numbers(CONFIGS[model].prompted)
