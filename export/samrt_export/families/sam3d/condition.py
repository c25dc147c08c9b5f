"""The conditions of both flows: pictures and masks through DINOv2, pointmaps through windows, all fused into one width."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.dinov2 import Dinov2
from samrt_export.blocks.point_patch import PointPatch
from samrt_export.blocks.token_fuser import TokenFuser
from samrt_export.families.sam3d.config import MEAN, STD, VIEWS, PointConfig, Sam3dConfig, VitConfig
from samrt_export.registry import Feeds, Form, GraphSpec

SLAT_NORM_EPS = 1e-5
"""Of the LayerNorm without weights that the second stage's tokens pass."""
KINDS = len(VIEWS) // 2
"""Encoders of a condition: one for pictures, one for masks, two views each."""


class Encoder(nn.Module):
    """A DINOv2 under the official name ``backbone``."""

    def __init__(self, backbone: Dinov2) -> None:
        super().__init__()
        self.backbone = backbone


def build_vit(config: VitConfig) -> Dinov2:
    """The encoder of views."""
    return Dinov2(
        config.dim,
        config.depth,
        config.heads,
        patch_px=config.patch_px,
        registers=config.registers,
        view_px=config.view_px,
    )


def build_fuser(config: Sam3dConfig, vit: Dinov2, points: PointConfig | None) -> TokenFuser:
    """An embedder of one stage; pictures and masks have the same encoder until a file shows that they do not."""
    encoders: list[nn.Module] = [Encoder(vit) for _ in range(KINDS)]
    dims = [config.vit.dim] * KINDS
    if points is not None:
        encoders.append(
            PointPatch(points.dim, points.heads, points.mlp_ratio, view_px=points.view_px, window=points.window)
        )
        dims.append(points.dim)
    return TokenFuser(encoders, dims, config.fuser.hidden, config.fuser.dim, config.fuser.groups)


def backbones(fuser: TokenFuser) -> list[Dinov2]:
    """The encoders of pictures and of masks of one stage."""
    encoders = [part for part in fuser.module_list if isinstance(part, Encoder)]
    return [encoder.backbone for encoder in encoders]


class DinoGraph(nn.Module):
    """``dino``: the tokens of all views for both stages.

    Each distinct encoder runs once, on all the views that it serves: one batch of four where all files hold the same one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, ss: TokenFuser, slat: TokenFuser, ort_cpu: bool = False) -> None:
        super().__init__()
        self.ort_cpu = ort_cpu
        roles = [*backbones(ss), *backbones(slat)]
        distinct = list(dict.fromkeys(roles))
        self.encoders = nn.ModuleList(distinct)
        self.roles = [distinct.index(role) for role in roles]
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (4, S, S, 3), RGB 0..1 -> (4, 1 + patches, dim), (4, 1 + registers + patches, dim)."""
        pictures = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)
        made = [self._tokens(index, pictures) for index in range(len(self.encoders))]
        ss, slat = self.roles[:KINDS], self.roles[KINDS:]
        ss_features = _joined([self._encoder(index).normed(tokens) for index, tokens in _parts(ss, made)])
        tokens = _joined([tokens for _, tokens in _parts(slat, made)])
        return ss_features, F.layer_norm(tokens, (tokens.shape[-1],), eps=SLAT_NORM_EPS)

    def _encoder(self, index: int) -> Dinov2:
        encoder = self.encoders[index]
        assert isinstance(encoder, Dinov2)
        return encoder

    def _tokens(self, index: int, pictures: Tensor) -> dict[int, Tensor]:
        """Kind of view -> tokens (2, N, dim), or -1 -> those of all views (4, N, dim) where one encoder serves all."""
        served = sorted({role % KINDS for role, encoder in enumerate(self.roles) if encoder == index})
        encoder = self._encoder(index)
        if len(served) < KINDS:
            kind = served[0]
            return {kind: encoder(pictures[2 * kind : 2 * kind + 2], self.ort_cpu)}
        tokens = encoder(pictures, self.ort_cpu)
        return {-1: tokens, 0: tokens[:2], 1: tokens[2:]}


def _parts(roles: list[int], made: list[dict[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """(encoder, tokens) that make up the views of a stage in their order."""
    if len(set(roles)) == 1:
        return [(roles[0], made[roles[0]][-1])]
    return [(index, made[index][kind]) for kind, index in enumerate(roles)]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class StructureCondition(nn.Module):
    """``ss_cond``: the condition of the first stage. whole_block: see `PointPatch`."""

    def __init__(self, fuser: TokenFuser, whole_block: bool = True) -> None:
        super().__init__()
        self.fuser = fuser
        self.whole_block = whole_block

    def forward(self, features: Tensor, points: Tensor, valid: Tensor) -> tuple[Tensor]:
        """features: (4, N, dim), points: (2, S, S, 3), valid: (2, S, S) -> (1, tokens, dim)."""
        read = self.fuser.module_list[KINDS](points, valid, self.whole_block)
        return (self.fuser.fuse((features[:2], features[2:], read)),)


class LatentCondition(nn.Module):
    """``slat_cond``: the condition of the second stage."""

    def __init__(self, fuser: TokenFuser) -> None:
        super().__init__()
        self.fuser = fuser

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """features: (4, N, dim) -> (1, tokens, dim)."""
        return (self.fuser.fuse((features[:2], features[2:])),)


def condition_graphs(config: Sam3dConfig, ss: TokenFuser, slat: TokenFuser) -> tuple[GraphSpec, ...]:
    """``dino``, ``ss_cond`` and ``slat_cond``."""
    assert config.points is not None
    views, width, side, point_px = len(VIEWS), config.vit.dim, config.vit.view_px, config.points.view_px
    ss_features = TensorSpec("ss_features", "float32", (views, config.ss_feature_tokens, width))
    slat_features = TensorSpec("slat_features", "float32", (views, config.slat_feature_tokens, width))
    points = (
        TensorSpec("points", "float32", (2, point_px, point_px, 3)),
        TensorSpec("points_valid", "float32", (2, point_px, point_px)),
    )
    usual, lean = StructureCondition(ss).eval(), StructureCondition(ss, whole_block=False).eval()
    slat_cond, dino = LatentCondition(slat).eval(), DinoGraph(ss, slat).eval()
    on_cpu = DinoGraph(ss, slat, ort_cpu=True).eval()
    return (
        GraphSpec(
            "dino",
            dino,
            (TensorSpec("pixels", "float32", (views, side, side, 3)),),
            (ss_features, slat_features),
            profiles={},
            checks=({}, {}),
            sample=lambda sizes, seed: {"pixels": sample_views(side, seed)},
            forms=(Form(on_cpu, ("onnxruntime-cpu",)), Form(dino)),
        ),
        GraphSpec(
            "ss_cond",
            usual,
            (ss_features, *points),
            (TensorSpec("ss_condition", "float32", (1, config.ss_tokens, config.fuser.dim)),),
            profiles={},
            checks=({}, {}),
            sample=lambda sizes, seed: _sample_features(ss_features, seed) | sample_points(point_px, seed),
            forms=(Form(lean),),
        ),
        GraphSpec(
            "slat_cond",
            slat_cond,
            (slat_features,),
            (TensorSpec("slat_condition", "float32", (1, config.slat_tokens, config.fuser.dim)),),
            profiles={},
            checks=({}, {}),
            sample=lambda sizes, seed: _sample_features(slat_features, seed),
            forms=(Form(slat_cond),),
        ),
    )


def sample_views(side: int, seed: int) -> NDArray[np.float32]:
    """Two pictures of colour fields and two masks of a disc: (4, side, side, 3), 0..1."""
    rng = np.random.default_rng(seed)
    fields = rng.uniform(0, 1, (2, 7, 7, 3)).repeat(-(-side // 7), 1).repeat(-(-side // 7), 2)[:, :side, :side]
    pictures = np.clip(fields + rng.normal(0, 0.08, fields.shape), 0, 1)
    y, x = np.mgrid[:side, :side] / side
    centre, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.2, 0.35)
    disc = np.hypot(y - centre[0], x - centre[1])[None] < np.array([radius, radius / 2]).reshape(2, 1, 1)
    return np.concatenate((pictures, disc[..., None].repeat(3, -1))).astype(np.float32)


def sample_points(side: int, seed: int) -> Feeds:
    """Two views of a bumpy surface, a corner and scattered pixels of it without points."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side * 4 - 2
    turn = rng.uniform(0, 3, (2, 1, 1))
    depth = 1 + 0.5 * np.sin(2 * x[None] + turn) * np.cos(3 * y[None] - turn)
    points = np.stack((x * depth, y * depth, depth), axis=-1)
    valid = rng.uniform(size=(2, side, side)) < 0.9
    valid[:, : side // 4, : side // 3] = False
    return {"points": (points * valid[..., None]).astype(np.float32), "points_valid": valid.astype(np.float32)}


def _sample_features(spec: TensorSpec, seed: int) -> Feeds:
    """Tokens as they come out of a LayerNorm."""
    shape = [int(size) for size in spec.shape]
    return {spec.name: np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)}
