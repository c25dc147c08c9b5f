"""TRELLIS as one module: an image encoder, a flow of one stream for the structure, and what it shares with SAM 3D Objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.dinov2 import Dinov2
from samrt_export.blocks.flow_transformer import ModulatedCrossBlock, TimeEmbedder, grid_positions, out_norm
from samrt_export.families.sam3d.condition import SLAT_NORM_EPS, build_vit, sample_views
from samrt_export.families.sam3d.config import MEAN, STD, Sam3dConfig
from samrt_export.families.sam3d.model import FlowHolder, VoxelModel
from samrt_export.families.sam3d.sparse_specs import make_sparse_modules
from samrt_export.families.sam3d.structure import LEAST_CHECKED, sample_flow
from samrt_export.families.trellis.config import CONFIGS, VIEWS
from samrt_export.registry import Form, GraphSpec

LAST_TIME = 1000.0


class SingleStreamFlow(nn.Module):
    """The flow of the structure latent, under the official parameter names. Its time runs from 1000, noise, to 0, data."""

    pos_emb: Tensor

    def __init__(self, config: Sam3dConfig) -> None:
        super().__init__()
        sizes, channels = config.structure_flow, config.latent_channels
        self.t_embedder = TimeEmbedder(sizes.dim, sizes.time_channels)
        self.register_buffer("pos_emb", grid_positions(config.latent_grid, sizes.dim))
        self.input_layer = nn.Linear(channels, sizes.dim)
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(sizes.dim, config.fuser.dim, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth)
        )
        self.out_layer = nn.Linear(sizes.dim, channels)

    def forward(self, latent: Tensor, time: Tensor, condition: Tensor, ort_cpu: bool = False) -> Tensor:
        """latent: (1, G^3, C), time: (1,), condition: (1, M, cond_dim) -> velocity (1, G^3, C)."""
        x = self.input_layer(latent) + self.pos_emb
        embedded = self.t_embedder(time)
        for block in self.blocks:
            x = block(x, embedded, condition, ort_cpu)
        return self.out_layer(out_norm(x))  # type: ignore[no-any-return]


class Trellis(VoxelModel):
    """The whole model. ``image_encoder`` is the public DINOv2, which the authors' folder does not hold."""

    def __init__(self, config: Sam3dConfig) -> None:
        sparse = make_sparse_modules(config)
        super().__init__(config, FlowHolder(SingleStreamFlow(config)), FlowHolder(sparse["slat_flow"]))
        self.take_decoders(sparse)
        self.image_encoder = build_vit(config.vit)


def build(model: str) -> Trellis:
    """The module of a model name."""
    return Trellis(CONFIGS[model])


class ConditionGraph(nn.Module):
    """``dino``: the condition of both flows, which is the same."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Dinov2, ort_cpu: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.ort_cpu = ort_cpu
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (1, S, S, 3), RGB 0..1, black around the object -> (1, 1 + registers + patches, dim), twice."""
        tokens = self.encoder(((pixels - self.mean) / self.std).permute(0, 3, 1, 2), self.ort_cpu)
        condition = F.layer_norm(tokens, (tokens.shape[-1],), eps=SLAT_NORM_EPS)
        return condition, condition.clone()


class StructureFlowGraph(nn.Module):
    """``ss_flow``, its time turned round: from 0, noise, to 1000, data."""

    def __init__(self, flow: SingleStreamFlow, ort_cpu: bool = False) -> None:
        super().__init__()
        self.flow = flow
        self.ort_cpu = ort_cpu

    def forward(self, shape: Tensor, time: Tensor, condition: Tensor) -> tuple[Tensor]:
        """shape: (1, G^3, C), time: (1,), condition: (1, M, cond_dim) -> velocity (1, G^3, C)."""
        return (-self.flow(shape, LAST_TIME - time, condition, self.ort_cpu),)


def condition_graph(module: Trellis) -> GraphSpec:
    """``dino``."""
    config, encoder = module.config, module.image_encoder
    side, shape = config.vit.view_px, (1, config.slat_feature_tokens, config.vit.dim)
    usual = ConditionGraph(encoder).eval()
    return GraphSpec(
        "dino",
        usual,
        (TensorSpec("pixels", "float32", (len(VIEWS), side, side, 3)),),
        (TensorSpec("ss_condition", "float32", shape), TensorSpec("slat_condition", "float32", shape)),
        profiles={},
        checks=({}, {}),
        sample=lambda sizes, seed: {"pixels": sample_views(side, seed)[:1]},
        forms=(Form(ConditionGraph(encoder, ort_cpu=True).eval(), ("onnxruntime-cpu",)), Form(usual)),
    )


def flow_graph(module: Trellis) -> GraphSpec:
    """``ss_flow``."""
    config, flow = module.config, module.ss_generator.backbone
    assert isinstance(flow, SingleStreamFlow)
    tokens = config.slat_feature_tokens
    shape = TensorSpec("shape", "float32", (1, config.structure_tokens, config.latent_channels))
    inputs = (
        shape,
        TensorSpec("ss_time", "float32", (1,)),
        TensorSpec("ss_condition", "float32", (1, "ss_tokens", config.fuser.dim)),
    )
    usual = StructureFlowGraph(flow).eval()
    return GraphSpec(
        "ss_flow",
        usual,
        inputs,
        (TensorSpec("shape_velocity", "float32", shape.shape),),
        profiles={"ss_tokens": (2, tokens, tokens)},
        checks=({"ss_tokens": LEAST_CHECKED}, {"ss_tokens": min(301, tokens)}),
        sample=lambda sizes, seed: sample_flow(inputs, sizes, seed),
        forms=(Form(StructureFlowGraph(flow, ort_cpu=True).eval(), ("onnxruntime-cpu",)), Form(usual)),
    )
