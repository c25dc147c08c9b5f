"""SAM-HQ (SysCV/sam-hq, Apache-2.0; arXiv 2306.01567): SAM with finer masks; Light HQ-SAM has MobileSAM's encoder.

The graphs are those of families/sam with one more tensor, which the image encoder makes and the mask decoder takes:
``hq_features`` (B, 16hw, C/8), nested (see blocks/mask_decoder.py). It is all that the finer masks need of the encoder, so
that the decoder's graph is the same for every encoder.

Candidate k of ``low_res_masks`` is SAM's mask k and the HQ mask, added; ``iou_predictions`` are SAM's. Upstream answers a
request for several masks with the best of 1 to 3 alone; here all of them come out. The decoder's further output
``low_res_hq_masks`` (P, 1, S/4, S/4) is the HQ mask alone, which upstream gives for ``hq_token_only``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.hq_decoder import HqMaskDecoder
from samrt_export.blocks.tiny_vit import TinyVit, TinyVitConfig
from samrt_export.blocks.vit import ImageEncoderVit, VitConfig
from samrt_export.families import mobile_sam, sam
from samrt_export.families.sam.hugging_face import official_from_hf as sam_official_from_hf
from samrt_export.families.sam.model import Sam
from samrt_export.families.sam.modules import ImageEncoderGraph
from samrt_export.families.sam.specs import encoder_forms, folded_and_plain, prompted_graphs, prompted_numbers
from samrt_export.registry import Family, Form, GraphSpec

_HUB = {"b": "base", "l": "large", "h": "huge"}
CONFIGS: dict[str, tuple[VitConfig | TinyVitConfig, sam.PromptedConfig]] = {
    f"sam-hq-vit-{size}": (
        sam.CONFIGS[f"sam-vit-{size}"].encoder,
        replace(
            sam.CONFIGS[f"sam-vit-{size}"].prompted,
            hub_id=f"syscv-community/sam-hq-vit-{_HUB[size]}" if size in _HUB else None,
        ),
    )
    for size in ("b", "l", "h", "b-toy")
} | {
    "sam-hq-vit-tiny": mobile_sam.CONFIGS["mobile-sam"],
    "sam-hq-vit-tiny-toy": mobile_sam.CONFIGS["mobile-sam-toy"],
}
"""Of a model: its encoder, and all else."""
# Hugging Face (transformers ``SamHQModel``) name -> official name, of what SAM does not have.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^mask_decoder\.hq_token\.", "mask_decoder.hf_token."),
    (r"^mask_decoder\.hq_mask_mlp\.layers\.0\.", "mask_decoder.hf_mlp.layers.1."),
    (r"^mask_decoder\.hq_mask_mlp\.proj_in\.", "mask_decoder.hf_mlp.layers.0."),
    (r"^mask_decoder\.hq_mask_mlp\.proj_out\.", "mask_decoder.hf_mlp.layers.2."),
    (r"^mask_decoder\.compress_vit_conv1\.", "mask_decoder.compress_vit_feat.0."),
    (r"^mask_decoder\.compress_vit_norm\.", "mask_decoder.compress_vit_feat.1."),
    (r"^mask_decoder\.compress_vit_conv2\.", "mask_decoder.compress_vit_feat.3."),
    (r"^mask_decoder\.encoder_conv1\.", "mask_decoder.embedding_encoder.0."),
    (r"^mask_decoder\.encoder_norm\.", "mask_decoder.embedding_encoder.1."),
    (r"^mask_decoder\.encoder_conv2\.", "mask_decoder.embedding_encoder.3."),
    (r"^mask_decoder\.mask_conv1\.", "mask_decoder.embedding_maskfeature.0."),
    (r"^mask_decoder\.mask_norm\.", "mask_decoder.embedding_maskfeature.1."),
    (r"^mask_decoder\.mask_conv2\.", "mask_decoder.embedding_maskfeature.3."),
)


class MapsEncoder(Protocol):
    """An encoder that also hands on an early map: (B, h, w, C) and (B, h, w, early_dim); exported ones (B, hw, C)."""

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]: ...


class SamHq(Sam):
    """The whole model under the official parameter names."""

    @property
    def hq_decoder(self) -> HqMaskDecoder:
        """The mask decoder, as what it is."""
        assert isinstance(self.mask_decoder, HqMaskDecoder)
        return self.mask_decoder

    def encode_all(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: (B, S, S, 3) float 0..255 -> the outputs of ``image_encoder``."""
        assert isinstance(self.image_encoder, ImageEncoderVit | TinyVit)
        embedding, early = self.image_encoder.maps(self.normalize(image))
        image_embed = embedding.flatten(1, 2)
        return image_embed, *self.project(image_embed), self.hq_decoder.hq_features_as_upstream(embedding, early)


class ImageEncoderReference(nn.Module):
    """``image_encoder`` as upstream computes it."""

    def __init__(self, model: SamHq) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of families/sam."""
        return self.model.encode_all(image)


class HqImageEncoderGraph(ImageEncoderGraph):
    """``image_encoder`` around an exportable form of the encoder that has `MapsEncoder.maps`."""

    def __init__(self, model: SamHq, encoder: nn.Module) -> None:
        super().__init__(model, encoder)
        self.decoder = model.hq_decoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of families/sam."""
        encoder: MapsEncoder = self.encoder  # type: ignore[assignment]
        image_embed, early = encoder.maps(image)
        projections = self.first_layer.project(image_embed, self.dense_position)
        return image_embed, *projections, self.decoder.hq_features(image_embed, early.flatten(1, 2))


class MaskDecoderReference(nn.Module):
    """``mask_decoder`` as upstream computes it, but for the HQ features."""

    def __init__(self, model: SamHq) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        hq_features: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the table of families/sam; and the HQ mask alone."""
        model = self.model
        position, hw = model.prompt_encoder.dense_position(), (model.config.embed_size,) * 2
        return model.hq_decoder.predict_as_upstream(image_embed + dense, position, sparse, hq_features, hw)


class MaskDecoderGraph(nn.Module):
    """``mask_decoder`` with the image's position encoding baked in and its first projections taken from the encoder."""

    position: Tensor

    def __init__(self, model: SamHq, folded: bool = False) -> None:
        super().__init__()
        self.folded = folded
        self.hw = (model.config.embed_size,) * 2
        self.decoder = model.hq_decoder
        self.register_buffer("position", model.prompt_encoder.dense_position().detach())

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        hq_features: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the table of families/sam; and the HQ mask alone."""
        projected = self.decoder.transformer.projections_with((image_queries, image_keys, image_values), dense)
        image = image_embed + dense
        return self.decoder.predict(image, self.position, sparse, hq_features, self.hw, projected, self.folded)


def build(model: str) -> SamHq:
    """The module of a model name."""
    encoder, config = CONFIGS[model]
    dim = config.d_model
    trunk: TinyVit | ImageEncoderVit
    if isinstance(encoder, TinyVitConfig):
        trunk, early_dim = TinyVit(encoder, dim), encoder.channels[2]
    else:
        trunk, early_dim = ImageEncoderVit(encoder), encoder.embed_dim
    return SamHq(config, trunk, HqMaskDecoder(dim, config.mlp_dim, config.iou_hidden_dim, early_dim))


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place."""
    assert isinstance(module, SamHq)
    if isinstance(module.image_encoder, TinyVit):
        mobile_sam.randomize(module, seed)
    else:
        sam.model.randomize(module, seed)


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, SamHq)
    hw, dim, mask = module.config.embed_size**2, module.config.d_model, module.config.mask_size
    *others, decoder = prompted_graphs(
        module,
        ImageEncoderReference(module).eval(),
        tuple(Form(HqImageEncoderGraph(module, form).eval(), targets) for form, targets in _encoders(module)),
        MaskDecoderReference(module).eval(),
        folded_and_plain(partial(MaskDecoderGraph, module)),
        (TensorSpec("hq_features", "float32", ("images", 16 * hw, dim // 8)),),
    )
    hq_masks = TensorSpec("low_res_hq_masks", "float32", ("prompts", 1, mask, mask))
    return *others, replace(decoder, outputs=(*decoder.outputs, hq_masks))


def _encoders(module: SamHq) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """The encoder in the forms that SAM and MobileSAM export, and for which targets."""
    if isinstance(module.image_encoder, TinyVit):
        return [(form, targets) for form, targets in mobile_sam.tiny_encoder_forms(module)]
    encoders = []
    for form in encoder_forms(module):
        assert isinstance(form.module, ImageEncoderGraph)
        encoders.append((form.module.encoder, form.targets))
    return encoders


def numbers(model: str) -> dict[str, Any]:
    """The manifest's numbers. Source of ``automatic``: sam-hq's mask generator keeps the one mask that its predictor gives."""
    automatic = {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "candidates": "best"}
    return prompted_numbers(CONFIGS[model][1]) | {"automatic": automatic}


def official_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face layout (``SamHQModel``, as on the hub) -> official layout. It has no light variant."""
    official = {}
    for key, value in sam_official_from_hf(state).items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        official[key] = value
    return official


FAMILY = Family(
    name="sam-hq",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=lambda model: ("points", "boxes", "masks", "multimask"),
    official_from_hf=official_from_hf,
    randomize=randomize,
    licence=lambda model: ("Apache-2.0", ""),
    hub_id=lambda model: CONFIGS[model][1].hub_id,
    shipped_checkpoint=lambda model: None,
)
