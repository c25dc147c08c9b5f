"""MobileSAM (ChaoningZhang/MobileSAM, Apache-2.0; arXiv 2306.14289): SAM with a TinyViT for an encoder.

All else is SAM's, and so are the graphs and their tensors: see families/sam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samrt_export.blocks.tiny_vit import TinyVit, TinyVitConfig, randomize_tiny_vit
from samrt_export.blocks.tiny_vit_forms import OrtCpuAttention, PlainAttention, TinyVitForm
from samrt_export.families.sam.config import MEAN, STD, TOY, PromptedConfig
from samrt_export.families.sam.model import Sam
from samrt_export.families.sam.modules import ImageEncoderGraph, ImageEncoderReference
from samrt_export.families.sam.specs import prompted_graphs, prompted_numbers
from samrt_export.randomize import randomize_live
from samrt_export.registry import Family, Form, GraphSpec

TINY = TinyVitConfig()
TINY_TOY = TinyVitConfig(channels=(16, 32, 48, 64), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4))
"""Has all there is in the other: windows of both sizes, neither of which fits."""
CONFIGS: dict[str, tuple[TinyVitConfig, PromptedConfig]] = {
    "mobile-sam": (TINY, PromptedConfig()),
    "mobile-sam-toy": (TINY_TOY, TOY),
}
"""Of a model: its encoder, and all else."""


def build(model: str) -> Sam:
    """The module of a model name."""
    encoder, config = CONFIGS[model]
    return Sam(config, TinyVit(encoder, config.d_model))


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place."""
    assert isinstance(module, Sam)
    randomize_live(module, seed)
    assert isinstance(module.image_encoder, TinyVit)
    randomize_tiny_vit(module.image_encoder, torch.Generator().manual_seed(seed))


def tiny_encoder_forms(module: Sam) -> tuple[tuple[TinyVitForm, tuple[str, ...]], ...]:
    """The encoder as it is exported, and for which targets."""
    encoder = module.image_encoder
    assert isinstance(encoder, TinyVit)
    return (
        (TinyVitForm(encoder, MEAN, STD, OrtCpuAttention), ("onnxruntime-cpu",)),
        (TinyVitForm(encoder, MEAN, STD, PlainAttention), ()),
    )


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, Sam)
    forms = (Form(ImageEncoderGraph(module, form).eval(), targets) for form, targets in tiny_encoder_forms(module))
    return prompted_graphs(module, ImageEncoderReference(module).eval(), tuple(forms))


def numbers(model: str) -> dict[str, Any]:
    """The manifest's numbers."""
    return prompted_numbers(CONFIGS[model][1])


def official_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers has no MobileSAM: there is only the official layout."""
    return dict(state)


FAMILY = Family(
    name="mobile-sam",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=lambda model: ("points", "boxes", "masks", "multimask"),
    official_from_hf=official_from_hf,
    randomize=randomize,
    licence=lambda model: ("Apache-2.0", ""),
    hub_id=lambda model: None,
    shipped_checkpoint=lambda model: None,
)
