"""The memory graphs of a loaded model: tensors, profiles, samples, forms; and the manifest's numbers for video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samrt_engines.tensors import TensorSpec
from samrt_export.families.sam.specs import SampleMaps
from samrt_export.families.sam2.config import NUM_MASKMEM, Sam2Config
from samrt_export.families.sam2.model import Sam2
from samrt_export.families.sam2.modules import (
    MaskDownsamplerGraph,
    MaskDownsamplerReference,
    MemoryAttentionForm,
    MemoryAttentionReference,
    MemoryEncoderGraph,
)
from samrt_export.registry import Feeds, Form, GraphSpec


def video_graphs(module: Sam2, sample_maps: SampleMaps) -> tuple[GraphSpec, ...]:
    """``memory_attention``, ``memory_encoder`` and ``mask_downsampler``."""
    return (
        _memory_attention(module, sample_maps),
        _memory_encoder(module, sample_maps),
        _mask_downsampler(module, sample_maps),
    )


def _memory_attention(module: Sam2, sample_maps: SampleMaps) -> GraphSpec:
    config = module.config
    dim, hw, width = config.d_model, config.embed_size**2, config.memory_dim
    tokens = len(module.bank_tokens().position)
    inputs = (
        TensorSpec("image_embed", "float32", (1, hw, dim)),
        TensorSpec("memory", "float32", ("objects", "slots", tokens, width)),
        TensorSpec("memory_time", "int32", ("objects", "slots")),
        TensorSpec("memory_valid", "float32", ("objects", "slots")),
        TensorSpec("object_pointers", "float32", ("objects", "pointers", dim)),
        TensorSpec("pointer_distance", "float32", ("objects", "pointers")),
        TensorSpec("pointer_valid", "float32", ("objects", "pointers")),
    )
    heads = ("objects", 8, hw, dim // 16)
    outputs = (
        TensorSpec("conditioned_embed", "float32", ("objects", hw, dim)),
        TensorSpec("conditioned_queries", "float32", heads),
        TensorSpec("conditioned_keys", "float32", heads),
        TensorSpec("conditioned_values", "float32", heads),
    )
    encoder = MemoryEncoderGraph(module).eval()

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        return _sample_bank(encoder, config, sample_maps, sizes, seed)

    return GraphSpec(
        "memory_attention",
        MemoryAttentionReference(module).eval(),
        inputs,
        outputs,
        profiles={"objects": (1, 1, 64), "slots": (1, NUM_MASKMEM, 16), "pointers": (1, 16, 32)},
        # Few slots: at full size, seven take an emulated fp16 graph through gigabytes of scores for each of its layers.
        checks=({"objects": 1, "slots": 2, "pointers": 3}, {"objects": 2, "slots": 2, "pointers": 5}),
        sample=sample,
        forms=(
            Form(MemoryAttentionForm(module, lean=True, ort_cpu=True).eval(), ("onnxruntime-cpu",)),
            Form(MemoryAttentionForm(module, lean=True).eval(), ("openvino",)),
            Form(MemoryAttentionForm(module).eval()),
        ),
    )


def _memory_encoder(module: Sam2, sample_maps: SampleMaps) -> GraphSpec:
    config = module.config
    dim, hw, mask = config.d_model, config.embed_size**2, config.mask_size

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        masks, flags, scores, tokens = _sample_frames(config, sizes["objects"], seed)
        names = ("mask_logits", "binarize", "object_score_logits", "object_token")
        return {"image_embed": sample_maps(seed)[0].numpy()} | dict(
            zip(names, (masks, flags, scores, tokens), strict=True)
        )

    module_graph = MemoryEncoderGraph(module).eval()
    return GraphSpec(
        "memory_encoder",
        module_graph,
        (
            TensorSpec("image_embed", "float32", (1, hw, dim)),
            TensorSpec("mask_logits", "float32", ("objects", 1, mask, mask)),
            TensorSpec("binarize", "float32", ("objects",)),
            TensorSpec("object_score_logits", "float32", ("objects", 1)),
            TensorSpec("object_token", "float32", ("objects", dim)),
        ),
        (
            TensorSpec("frame_memory", "float32", ("objects", len(module.bank_tokens().position), config.memory_dim)),
            TensorSpec("object_pointer", "float32", ("objects", dim)),
        ),
        profiles={"objects": (1, 1, 64)},
        checks=({"objects": 1}, {"objects": 3}),
        sample=sample,
        forms=(Form(module_graph),),
    )


def _mask_downsampler(module: Sam2, sample_maps: SampleMaps) -> GraphSpec:
    config = module.config
    size, mask, dim, hw = config.image_size, config.mask_size, config.d_model, config.embed_size**2

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        rng = np.random.default_rng(seed)
        blocks = rng.uniform(size=(sizes["objects"], 1, 8, 8)) > 0.5
        masks = blocks.repeat(size // 8, 2).repeat(size // 8, 3).astype(np.float32)
        return {"mask": masks, "image_embed": sample_maps(seed)[0].numpy()}

    return GraphSpec(
        "mask_downsampler",
        MaskDownsamplerReference(module).eval(),
        (TensorSpec("mask", "float32", ("objects", 1, size, size)), TensorSpec("image_embed", "float32", (1, hw, dim))),
        (
            TensorSpec("mask_prompt", "float32", ("objects", 1, mask, mask)),
            TensorSpec("plain_embed", "float32", (1, hw, dim)),
            *(TensorSpec(f"plain_{name}", "float32", (1, 8, hw, dim // 16)) for name in ("queries", "keys", "values")),
        ),
        profiles={"objects": (1, 1, 64)},
        checks=({"objects": 1}, {"objects": 3}),
        sample=sample,
        forms=(Form(MaskDownsamplerGraph(module).eval()),),
    )


def _sample_frames(config: Sam2Config, count: int, seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Low-res logits of blobs, which of them are certain, object scores of both signs, mask tokens."""
    rng = np.random.default_rng(seed)
    block = config.mask_size // 8
    masks = rng.normal(0, 8, (count, 1, 8, 8)).repeat(block, 2).repeat(block, 3)
    scores = rng.uniform(0.5, 8, (count, 1)) * np.where(np.arange(count) % 3 == 1, -1, 1)[:, None]
    flags = (np.arange(count) + seed) % 2
    tokens = rng.normal(0, 1, (count, config.d_model))
    return tuple(array.astype(np.float32) for array in (masks, flags, scores, tokens))


def _sample_bank(
    encoder: MemoryEncoderGraph, config: Sam2Config, sample_maps: SampleMaps, sizes: Mapping[str, int], seed: int
) -> Feeds:
    """A bank that the memory encoder made: all slots there for one object, every third missing for a second one."""
    objects, slots, pointers = sizes["objects"], sizes["slots"], sizes["pointers"]
    rng = np.random.default_rng(seed + 1000)
    with torch.inference_mode():
        image = sample_maps(seed)[0]

        def encode(count: int, seed: int) -> tuple[Tensor, Tensor]:
            return encoder(image, *(torch.from_numpy(part) for part in _sample_frames(config, count, seed)))  # type: ignore[no-any-return]

        memory = torch.cat([encode(slots, seed + 10 * index)[0][None] for index in range(objects)])
        pointer = torch.cat([encode(pointers, seed + 10 * index + 5)[1][None] for index in range(objects)])
    time = np.arange(slots) % NUM_MASKMEM
    time[0] = NUM_MASKMEM - 1  # the conditioning frame
    there = [np.ones((objects, count), np.float32) for count in (slots, pointers)]
    for valid in there:
        valid[1:, 1::3] = 0
    return {
        "image_embed": sample_maps(seed + 1)[0].numpy(),
        "memory": memory.numpy(),
        "memory_time": np.tile(time, (objects, 1)).astype(np.int32),
        "memory_valid": there[0],
        "object_pointers": pointer.numpy(),
        "pointer_distance": (rng.integers(-3, 60, (objects, pointers)) / 15).astype(np.float32),
        "pointer_valid": there[1],
    }


def video_numbers(config: Sam2Config) -> dict[str, Any]:
    """The manifest's numbers for video. Source: sam2/modeling/sam2_base.py with the published configurations."""
    return {
        "max_conditioning_frames": None,
        "recent_frames": NUM_MASKMEM - 1,
        "temporal_stride": 1,
        "conditioning_time": NUM_MASKMEM - 1,
        "max_object_pointers": 16,
        "past_pointers_only": True,
        "signed_pointer_distance": config.pointer_positions,
        "multimask_points": [0, 1],
        "empty_prompt_points": 1,
        "absent_logit": -1024.0,
        "fill_hole_area": 8,
    }
