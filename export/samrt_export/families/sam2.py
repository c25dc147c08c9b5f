"""SAM 2 and 2.1 (facebookresearch/sam2, Apache-2.0) and the shipped ``nano``.

Graphs, for the official sizes (S = 1024, C = 256, hw = (S/16)^2); B images, P prompts, N points:

| graph          | inputs                                                          | outputs                                     |
|----------------|-----------------------------------------------------------------|---------------------------------------------|
| image_encoder  | image (B, S, S, 3) float32 0..255                               | image_embed (B, hw, C)                      |
|                |                                                                 | image_queries, image_keys, image_values     |
|                |                                                                 | (B, 8, hw, C/16)                            |
|                |                                                                 | high_res_feats_0 (B, hw, 16, C/8)           |
|                |                                                                 | high_res_feats_1 (B, hw, 4, C/4)            |
| prompt_encoder | point_coords (P, N, 2) input pixels, point_labels (P, N) int32, | sparse_embeddings (P, N, C)                 |
|                | mask_input (P, 1, S/4, S/4), has_mask_input (P,)                | dense_embeddings (P, hw, C)                 |
| mask_decoder   | the encoder's for one image or P, the prompt encoder's          | low_res_masks (P, 4, S/4, S/4),             |
|                |                                                                 | iou_predictions (P, 4), object_score_logits |
|                |                                                                 | (P, 1), mask_tokens (P, 4, C)               |

``image`` is float32 and not uint8 because the official predictor resizes in float: rounding would change the values.
``image_embed`` already holds ``no_mem_embed`` (what a single image uses); the memory graphs subtract it again.
``image_queries``, ``_keys`` and ``_values`` are what the decoder's first layer makes of the image (see blocks/two_way.py).
Where no prompt has a mask, ``mask_input`` may be 4 x 4 (of anything); ``dense_embeddings`` is then (P, 1, C).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.fpn import FpnNeck
from samrt_export.blocks.hiera import Hiera, HieraConfig
from samrt_export.blocks.layers import MLP
from samrt_export.blocks.mask_decoder import MaskDecoder, nested_from_map
from samrt_export.blocks.memory import MemoryAttention, MemoryEncoder
from samrt_export.blocks.prompt_encoder import PromptEncoder
from samrt_export.blocks.two_way import ImageProjections
from samrt_export.randomize import randomize_live
from samrt_export.registry import Family, Feeds, Form, GraphSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NUM_MASKMEM = 7


@dataclass(frozen=True, slots=True)
class Sam2Config:
    """The numbers in which variants differ; the defaults are what the eight official ones share."""

    trunk: HieraConfig
    pointer_positions: bool
    """2.1: temporal positions of object pointers are projected, and absent objects have a spatial embedding."""
    image_size: int = 1024
    d_model: int = 256
    memory_dim: int = 64
    memory_layers: int = 4
    mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    top_down_levels: tuple[int, ...] = (2, 3)
    hub_id: str | None = None
    checkpoint: Path | None = None

    @property
    def embed_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // 16

    @property
    def mask_size(self) -> int:
        """Side of the low-res logits and of a mask prompt."""
        return self.image_size // 4


TRUNKS = {
    "tiny": HieraConfig(96, 1, (1, 2, 7, 2), (5, 7, 9), (7, 7)),
    "small": HieraConfig(96, 1, (1, 2, 11, 2), (7, 10, 13), (7, 7)),
    "base-plus": HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20), (14, 14)),
    "large": HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (7, 7), (8, 4, 16, 8)),
}
NANO = Sam2Config(
    trunk=HieraConfig(32, 1, (1, 2, 5, 1), (4, 7), (8, 8), (8, 4, 8, 4)),
    pointer_positions=True,
    image_size=256,
    d_model=128,
    memory_dim=64,
    memory_layers=2,
    mlp_dim=512,
    iou_hidden_dim=128,
    top_down_levels=(0, 1, 2, 3),
    checkpoint=Path(__file__).parent.parent / "nano" / "nano.safetensors",
)
CONFIGS = {
    f"{version}-hiera-{size}": Sam2Config(trunk, version == "sam2.1", hub_id=f"facebook/{version}-hiera-{size}")
    for version in ("sam2.1", "sam2")
    for size, trunk in TRUNKS.items()
} | {"nano": NANO}


class ImageEncoder(nn.Module):
    """Trunk and neck."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config.trunk)
        self.neck = FpnNeck(config.d_model, config.trunk.channels, config.top_down_levels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: (B, 3, S, S) normalised -> (B, S/4, S/4, C), (B, S/8, S/8, C), (B, S/16, S/16, C).

        The coarsest level only feeds the one below it.
        """
        levels = self.neck(self.trunk(image))
        return levels[0], levels[1], levels[2]


class Sam2(nn.Module):
    """The whole model under the official parameter names."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim, memory_dim = config.d_model, config.memory_dim
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.sam_prompt_encoder = PromptEncoder(dim, (config.embed_size,) * 2, (config.image_size,) * 2)
        self.sam_mask_decoder = MaskDecoder(dim, config.mlp_dim, config.iou_hidden_dim)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        # What follows serves video only.
        self.memory_attention = MemoryAttention(dim, memory_dim, config.mlp_dim, config.memory_layers)
        self.memory_encoder = MemoryEncoder(dim, memory_dim)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(NUM_MASKMEM, 1, 1, memory_dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        self.obj_ptr_proj = MLP(dim, dim, dim, 3)
        if config.pointer_positions:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, memory_dim))
            self.obj_ptr_tpos_proj = nn.Linear(dim, memory_dim)

    def normalize(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) float 0..255 -> (B, 3, S, S) as the trunk takes it."""
        mean, std = image.new_tensor(MEAN) * 255, image.new_tensor(STD) * 255
        return ((image - mean) / std).permute(0, 3, 1, 2)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: (B, S, S, 3) float 0..255 -> image_embed, high_res_feats_0, high_res_feats_1."""
        return self.features(*self.image_encoder(self.normalize(image)))

    def features(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pyramid levels -> what the mask decoder takes: image_embed, high_res_feats_0, high_res_feats_1."""
        return coarse.flatten(1, 2) + self.no_mem_embed, *self.sam_mask_decoder.high_res_features(fine, middle)

    def project(self, image_embed: Tensor) -> ImageProjections:
        """image_embed: (B, hw, C) -> image_queries, image_keys, image_values."""
        first = self.sam_mask_decoder.transformer.first_layer
        return first.project(image_embed, self.sam_prompt_encoder.dense_position())


class ImageEncoderReference(nn.Module):
    """``image_encoder`` as upstream computes it."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table at the top of this file."""
        image_embed, *high_res = self.model.encode(image)
        return image_embed, *self.model.project(image_embed), *high_res


class ImageEncoderGraph(nn.Module):
    """``image_encoder`` with all that depends on weights alone computed beforehand.

    Normalisation and positions are folded into the patch convolution (TensorRT has no cubic resize); the two finest levels,
    which only 1x1 convolutions read, are never built.
    """

    weight: Tensor
    position: Tensor
    dense_position: Tensor

    def __init__(self, model: Sam2, ort_cpu: bool = False) -> None:
        super().__init__()
        self.ort_cpu = ort_cpu
        self.model = model
        mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
        weight, position = model.image_encoder.trunk.patch_form(mean, std, (model.config.image_size,) * 2)
        self.register_buffer("weight", weight)
        self.register_buffer("position", position)
        self.register_buffer("dense_position", model.sam_prompt_encoder.dense_position().detach())
        self.fine, self.middle = model.sam_mask_decoder.high_res_readers(model.image_encoder.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table at the top of this file."""
        model = self.model
        trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
        patches = F.conv2d(image.permute(0, 3, 1, 2), self.weight, stride=4, padding=3).permute(0, 2, 3, 1)
        maps = trunk.stages(patches + self.position, self.ort_cpu)
        levels = neck(maps, finest=1 if neck.has_above(0) else 2)
        image_embed = levels[2].flatten(1, 2) + model.no_mem_embed
        projections = model.sam_mask_decoder.transformer.first_layer.project(image_embed, self.dense_position)
        fine, middle = self.fine(maps, levels), self.middle(maps, levels)
        return image_embed, *projections, nested_from_map(fine, 2), nested_from_map(middle, 1)


class PromptEncoderGraph(nn.Module):
    """``prompt_encoder``."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.encoder = model.sam_prompt_encoder

    def forward(
        self, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the table at the top of this file."""
        sparse = self.encoder.embed_points(point_coords, point_labels)
        return sparse, self.encoder.embed_masks(mask_input, has_mask_input)


class MaskDecoderReference(nn.Module):
    """``mask_decoder`` as upstream computes it: from the image embedding, nothing known before."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the table at the top of this file."""
        model = self.model
        position, hw = model.sam_prompt_encoder.dense_position(), (model.config.embed_size,) * 2
        high_res = (high_res_feats_0, high_res_feats_1)
        return model.sam_mask_decoder(image_embed + dense, position, sparse, high_res, hw)  # type: ignore[no-any-return]


class MaskDecoderGraph(nn.Module):
    """``mask_decoder`` with the image's position encoding baked in and its first projections taken from the encoder."""

    position: Tensor

    def __init__(self, model: Sam2, folded: bool = False) -> None:
        super().__init__()
        self.folded = folded
        self.hw = (model.config.embed_size,) * 2
        self.decoder = model.sam_mask_decoder
        self.register_buffer("position", model.sam_prompt_encoder.dense_position().detach())

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the table at the top of this file."""
        changes = self.decoder.transformer.first_layer.project_change(dense)
        known = (image_queries, image_keys, image_values)
        projected = ImageProjections(*(a + b for a, b in zip(known, changes, strict=True)))
        high_res = (high_res_feats_0, high_res_feats_1)
        return self.decoder(  # type: ignore[no-any-return]
            image_embed + dense, self.position, sparse, high_res, self.hw, projected, self.folded
        )


def build(model: str) -> Sam2:
    """The module of a model name."""
    return Sam2(CONFIGS[model])


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """The three image graphs of a loaded model."""
    assert isinstance(module, Sam2)
    config = CONFIGS[model]
    size, dim, hw, mask = config.image_size, config.d_model, config.embed_size**2, config.mask_size
    features = tuple(
        TensorSpec(name, "float32", ("images", *shape))
        for name, shape in (
            ("image_embed", (hw, dim)),
            ("image_queries", (8, hw, dim // 16)),
            ("image_keys", (8, hw, dim // 16)),
            ("image_values", (8, hw, dim // 16)),
            ("high_res_feats_0", (hw, 16, dim // 8)),
            ("high_res_feats_1", (hw, 4, dim // 4)),
        )
    )
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
    encoder, prompt_encoder = ImageEncoderReference(module).eval(), PromptEncoderGraph(module).eval()

    @lru_cache(maxsize=4)
    def sample_maps(seed: int) -> tuple[Tensor, ...]:
        """The encoder's outputs on a sample picture: what a decoder really meets."""
        with torch.inference_mode():
            return encoder(torch.from_numpy(_sample_image(1, size, seed)))  # type: ignore[no-any-return]

    def sample_image(sizes: Mapping[str, int], seed: int) -> Feeds:
        return {"image": _sample_image(sizes["images"], size, seed)}

    def sample_prompts(sizes: Mapping[str, int], seed: int) -> Feeds:
        return _sample_prompts(sizes["prompts"], sizes["points"], size, sizes["mask_height"], seed)

    def sample_decoder(sizes: Mapping[str, int], seed: int) -> Feeds:
        mask_side = 4 if sizes["positions"] == 1 else mask
        prompts = _sample_prompts(sizes["prompts"], sizes["points"], size, mask_side, seed)
        with torch.inference_mode():
            tokens = prompt_encoder(*(torch.from_numpy(value) for value in prompts.values()))
        names = [spec.name for spec in (*features, *embeddings)]
        pictures = [sample_maps(seed + index) for index in range(sizes["images"])]
        tensors = (*(torch.cat(maps) for maps in zip(*pictures, strict=True)), *tokens)
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
            sample=sample_image,
            forms=(
                Form(ImageEncoderGraph(module, ort_cpu=True).eval(), ("onnxruntime-cpu",)),
                Form(ImageEncoderGraph(module).eval()),
            ),
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
            sample=sample_prompts,
            forms=(Form(prompt_encoder),),
        ),
        GraphSpec(
            "mask_decoder",
            MaskDecoderReference(module).eval(),
            features + embeddings,
            outputs,
            profiles=prompt_profiles | {"images": (1, 1, 64), "positions": (1, 1, hw)},
            checks=(click | {"images": 1, "positions": 1}, several | {"images": several["prompts"], "positions": hw}),
            sample=sample_decoder,
            broadcast=frozenset({"images", "positions"}),
            forms=(
                Form(MaskDecoderGraph(module, folded=True).eval(), ("onnxruntime-cpu", "openvino")),
                Form(MaskDecoderGraph(module).eval()),
            ),
        ),
    )


def _sample_image(batch: int, size: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Smooth colour fields plus noise: something a convolution reacts to, unlike white noise alone."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (batch, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2)
    return np.clip(coarse + rng.normal(0, 20, (batch, size, size, 3)), 0, 255).astype(np.float32)


def _sample_prompts(prompts: int, points: int, size: int, mask_size: int, seed: int) -> Feeds:
    """Points with every label in turn, a mask prompt on every other prompt."""
    rng = np.random.default_rng(seed)
    block = min(8, mask_size)
    mask = rng.normal(0, 6, (prompts, 1, mask_size // block, mask_size // block)).repeat(block, 2).repeat(block, 3)
    return {
        "point_coords": rng.uniform(0, size, (prompts, points, 2)).astype(np.float32),
        "point_labels": ((np.arange(prompts * points) + seed) % 5 - 1).reshape(prompts, points).astype(np.int32),
        "mask_input": mask.astype(np.float32),
        "has_mask_input": (np.arange(prompts) % 2 == seed % 2).astype(np.float32),
    }


def numbers(model: str) -> dict[str, Any]:
    """The manifest's numbers. Stability constants: ``build_sam2`` with its default postprocessing."""
    config = CONFIGS[model]
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
    }


# Hugging Face (transformers ``Sam2VideoModel``) name -> official name, applied in this order.
HF_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^memory_encoder\.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"^memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"depthwise_conv", "dwconv"),
    (r"pointwise_conv", "pwconv"),
    (r"(fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"(fuser\.layers\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"\.layer_norm(\d)", r".norm\1"),
    (r"\.o_proj\.", ".out_proj."),
)
_DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.(?:layers\.(\d+)\.(conv|layer_norm)|final_conv)\.")
_MLP = re.compile(
    r"^(.*(?:mlp|hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj))\.(proj_in|proj_out|layers\.0)\."
)


def official_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face layout (``Sam2VideoModel``, as on the hub) -> official layout."""
    official: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "shared_image_embedding.positional_embedding":
            continue  # a second copy of the prompt encoder's matrix
        name = key
        for pattern, replacement in HF_RENAMES:
            name = re.sub(pattern, replacement, name)
        name = _DOWNSAMPLER.sub(_official_downsampler, name)
        name = _MLP.sub(_official_mlp, name)
        if name == "sam_prompt_encoder.point_embed.weight":  # one table of four rows -> four tables of one
            official |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(value)}
        else:
            official[name] = value
    return official


def _official_downsampler(match: re.Match[str]) -> str:
    """``layers.i.conv`` / ``layers.i.layer_norm`` / ``final_conv`` -> the index in the official Sequential."""
    layer, kind = match.groups()
    index = 12 if layer is None else 3 * int(layer) + (kind == "layer_norm")
    return f"memory_encoder.mask_downsampler.encoder.{index}."


def _official_mlp(match: re.Match[str]) -> str:
    """``proj_in``, ``layers.0``, ``proj_out`` -> ``layers.0``, ``.1``, ``.2``; two-layer MLPs have no ``layers.0`` in between."""
    head, part = match.groups()
    two_layers = head.endswith(".mlp")
    index = {"proj_in": 0, "layers.0": 1, "proj_out": 1 if two_layers else 2}[part]
    return f"{head}.layers.{index}."


def abilities(model: str) -> tuple[str, ...]:
    """What the exported graphs can do."""
    return ("points", "boxes", "masks", "multimask")


def licence(model: str) -> tuple[str, str]:
    """All of SAM 2 is Apache-2.0; nano was trained by this project on pictures it drew itself."""
    return "Apache-2.0", ""


FAMILY = Family(
    name="sam2",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=abilities,
    official_from_hf=official_from_hf,
    randomize=randomize_live,
    licence=licence,
    hub_id=lambda model: CONFIGS[model].hub_id,
    shipped_checkpoint=lambda model: CONFIGS[model].checkpoint,
)
