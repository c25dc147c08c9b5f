"""The first stage: a flow of two streams, shape and pose, and the decoder from its shape latent to occupied voxels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.dense3d import DenseDecoder, grid_from_tokens
from samrt_export.blocks.flow_transformer import (
    NORM_EPS,
    CrossAttention,
    FeedForward,
    MultiHeadRmsNorm,
    TimeEmbedder,
    attend,
    grid_positions,
    modulated,
    modulation_layer,
    modulation_of,
    normed_qkv,
    out_norm,
)
from samrt_export.families.sam3d.config import POSE_STREAM, POSE_TOKENS, SHAPE_STREAM, FlowConfig, Sam3dConfig
from samrt_export.registry import Feeds, Form, GraphSpec

STREAMS = (SHAPE_STREAM, POSE_STREAM)
Streams = tuple[Tensor, Tensor]
"""Tokens of shape (1, G^3, dim) and of pose (1, 4, dim)."""

LEAST_CHECKED = 2
"""Tokens of a condition from which parity is measured on every backend. OpenVINO 2026.4 answers wrongly, by tens of times, when
an attention whose number of keys is dynamic meets one key and then more; from two keys on it is right."""


def by_stream(**parts: nn.Module) -> nn.ModuleDict:
    """A part for each stream under its official name; keywords: shape, pose."""
    return nn.ModuleDict({SHAPE_STREAM: parts["shape"], POSE_STREAM: parts["pose"]})


class LatentMapping(nn.Module):
    """One modality in and out of the width of the transformer. learned: whether its position is a parameter."""

    pos_emb: Tensor

    def __init__(self, channels: int, dim: int, position: Tensor, learned: bool) -> None:
        super().__init__()
        self.input_layer = nn.Linear(channels, dim)
        self.out_layer = nn.Linear(dim, channels)
        if learned:
            self.pos_emb = nn.Parameter(position)
        else:
            self.register_buffer("pos_emb", position)

    def embed(self, latent: Tensor) -> Tensor:
        """latent: (1, N, channels) -> (1, N, dim)."""
        return self.input_layer(latent) + self.pos_emb  # type: ignore[no-any-return]

    def read(self, tokens: Tensor) -> Tensor:
        """tokens: (1, N, dim) -> (1, N, channels)."""
        return self.out_layer(out_norm(tokens))  # type: ignore[no-any-return]


class StreamAttention(nn.Module):
    """Self-attention of two streams with weights of their own: shape sees shape, pose sees pose and shape."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = by_stream(shape=nn.Linear(dim, 3 * dim), pose=nn.Linear(dim, 3 * dim))
        self.q_rms_norm, self.k_rms_norm = (
            by_stream(shape=MultiHeadRmsNorm(dim // heads, heads), pose=MultiHeadRmsNorm(dim // heads, heads))
            for _ in range(2)
        )
        self.to_out = by_stream(shape=nn.Linear(dim, dim), pose=nn.Linear(dim, dim))

    def forward(self, streams: Streams, ort_cpu: bool = False) -> Streams:
        """Two attentions instead of one with a mask: nothing of 4100 x 4100 is masked out, or made at all."""
        (q, k, v), (pose_q, pose_k, pose_v) = (
            normed_qkv(x, self.to_qkv[name], self.q_rms_norm[name], self.k_rms_norm[name], self.heads)
            for name, x in zip(STREAMS, streams, strict=True)
        )
        shape = attend(q, k, v, self.heads, ort_cpu)
        pose = attend(pose_q, torch.cat((pose_k, k), dim=1), torch.cat((pose_v, v), dim=1), self.heads, ort_cpu)
        return self.to_out[SHAPE_STREAM](shape), self.to_out[POSE_STREAM](pose)


class StreamBlock(nn.Module):
    """A block of two streams under one modulation."""

    def __init__(self, dim: int, cond_dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm2 = by_stream(shape=nn.LayerNorm(dim, eps=NORM_EPS), pose=nn.LayerNorm(dim, eps=NORM_EPS))
        self.self_attn = StreamAttention(dim, heads)
        self.cross_attn = by_stream(
            shape=CrossAttention(dim, cond_dim, heads), pose=CrossAttention(dim, cond_dim, heads)
        )
        self.mlp = by_stream(shape=FeedForward(dim, mlp_ratio * dim), pose=FeedForward(dim, mlp_ratio * dim))
        self.adaLN_modulation = modulation_layer(dim)

    def forward(self, streams: Streams, time: Tensor, condition: Tensor, ort_cpu: bool = False) -> Streams:
        """time: (1, dim), embedded; condition: (1, M, cond_dim)."""
        mod = modulation_of(self.adaLN_modulation, time)
        shape, pose = (modulated(x, mod.scale_attention, mod.shift_attention) for x in streams)
        attended = self.self_attn((shape, pose), ort_cpu)
        made = []
        for name, x, h in zip(STREAMS, streams, attended, strict=True):
            x = x + h * mod.gate_attention
            x = x + self.cross_attn[name](self.norm2[name](x), condition, ort_cpu)
            made.append(x + self.mlp[name](modulated(x, mod.scale_mlp, mod.shift_mlp)) * mod.gate_mlp)
        return made[0], made[1]


class StructureFlow(nn.Module):
    """The flow of shape and pose latents, under the official parameter names."""

    def __init__(self, config: FlowConfig, cond_dim: int, latent_channels: int, latent_grid: int) -> None:
        super().__init__()
        dim = config.dim
        self.t_embedder = TimeEmbedder(dim, config.time_channels)
        self.d_embedder = TimeEmbedder(dim, config.time_channels)
        position = grid_positions(latent_grid, dim)
        mappings = {SHAPE_STREAM: LatentMapping(latent_channels, dim, position, learned=False)}
        for name, channels in POSE_TOKENS:
            mappings[name] = LatentMapping(channels, dim, torch.zeros(1, dim), learned=True)
        self.latent_mapping = nn.ModuleDict(mappings)
        self.blocks = nn.ModuleList(
            StreamBlock(dim, cond_dim, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )

    def forward(
        self, latents: tuple[Tensor, ...], time: Tensor, step: Tensor, condition: Tensor, ort_cpu: bool = False
    ) -> tuple[Tensor, ...]:
        """The velocity of each latent.

        latents: shape (1, G^3, C), then each of `POSE_TOKENS` (1, 1, channels). time, step: (1,), in the unit of the
        embedding, 1000 t. condition: (1, M, cond_dim)
        """
        shape, *pose_latents = latents
        embedded = self.t_embedder(time) + self.d_embedder(step)
        pose = [self._mapping(name).embed(x) for (name, _), x in zip(POSE_TOKENS, pose_latents, strict=True)]
        streams: Streams = self._mapping(SHAPE_STREAM).embed(shape), torch.cat(pose, dim=1)
        for block in self.blocks:
            streams = block(streams, embedded, condition, ort_cpu)
        tokens = streams[1].split(1, dim=1)
        velocities = [self._mapping(name).read(x) for (name, _), x in zip(POSE_TOKENS, tokens, strict=True)]
        return self._mapping(SHAPE_STREAM).read(streams[0]), *velocities

    def _mapping(self, name: str) -> LatentMapping:
        mapping = self.latent_mapping[name]
        assert isinstance(mapping, LatentMapping)
        return mapping


class StructureFlowGraph(nn.Module):
    """``ss_flow``."""

    def __init__(self, flow: nn.Module, ort_cpu: bool = False) -> None:
        super().__init__()
        self.flow = flow
        self.ort_cpu = ort_cpu

    def forward(
        self,
        shape: Tensor,
        rotation_6d: Tensor,
        translation: Tensor,
        scale: Tensor,
        translation_scale: Tensor,
        time: Tensor,
        step: Tensor,
        condition: Tensor,
    ) -> tuple[Tensor, ...]:
        """See `StructureFlow`."""
        latents = (shape, rotation_6d, translation, scale, translation_scale)
        return self.flow(latents, time, step, condition, self.ort_cpu)  # type: ignore[no-any-return]


class StructureDecoderGraph(nn.Module):
    """``ss_decoder``: the decoder on tokens."""

    def __init__(self, decoder: DenseDecoder, latent_grid: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.latent_grid = latent_grid

    def forward(self, shape: Tensor) -> tuple[Tensor]:
        """shape: (1, G^3, C) -> (1, 1, S, S, S)."""
        return (self.decoder(grid_from_tokens(shape, self.latent_grid)),)


def structure_graphs(config: Sam3dConfig, flow: StructureFlow, decoder: DenseDecoder) -> tuple[GraphSpec, ...]:
    """``ss_flow`` and ``ss_decoder``."""
    poses = (("rotation_6d", 6), ("translation", 3), ("scale", 3), ("translation_scale", 1))
    latents = (
        TensorSpec("shape", "float32", (1, config.structure_tokens, config.latent_channels)),
        *(TensorSpec(name, "float32", (1, 1, channels)) for name, channels in poses),
    )
    times = (TensorSpec("ss_time", "float32", (1,)), TensorSpec("ss_step", "float32", (1,)))
    inputs = (*latents, *times, TensorSpec("ss_condition", "float32", (1, "ss_tokens", config.fuser.dim)))
    usual = StructureFlowGraph(flow).eval()
    flow_spec = GraphSpec(
        "ss_flow",
        usual,
        inputs,
        tuple(TensorSpec(f"{latent.name}_velocity", "float32", latent.shape) for latent in latents),
        profiles={"ss_tokens": (2, config.ss_tokens, config.ss_tokens)},
        checks=({"ss_tokens": LEAST_CHECKED}, {"ss_tokens": min(301, config.ss_tokens)}),
        sample=lambda sizes, seed: sample_flow(inputs, sizes, seed),
        forms=(Form(StructureFlowGraph(flow, ort_cpu=True).eval(), ("onnxruntime-cpu",)), Form(usual)),
    )
    return flow_spec, decoder_graph(config, decoder)


def decoder_graph(config: Sam3dConfig, decoder: DenseDecoder) -> GraphSpec:
    """``ss_decoder``."""
    shape = TensorSpec("shape", "float32", (1, config.structure_tokens, config.latent_channels))
    module = StructureDecoderGraph(decoder, config.latent_grid).eval()
    return GraphSpec(
        "ss_decoder",
        module,
        (shape,),
        (TensorSpec("occupancy_logits", "float32", (1, 1, *(config.grid,) * 3)),),
        profiles={},
        checks=({}, {}),
        sample=lambda sizes, seed: sample_flow((shape,), sizes, seed),
        forms=(Form(module),),
    )


def sample_flow(inputs: tuple[TensorSpec, ...], sizes: Mapping[str, int], seed: int) -> Feeds:
    """Noise for latents and conditions; a time within the schedule, a step of some of its length on odd seeds."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        feeds[spec.name] = rng.normal(0, 1, shape).astype(np.float32)
        if spec.name.endswith("_time"):
            feeds[spec.name] = rng.uniform(0, 1000, shape).astype(np.float32)
        elif spec.name.endswith("_step"):
            feeds[spec.name] = np.full(shape, 40.0 * (seed % 2), np.float32)
    return feeds
