"""The parts of a model that work on voxels, and their graphs: tensors, profiles, samples, forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.sparse_conv import TAPS, ConvWeights
from samrt_export.families.sam3d.config import Sam3dConfig
from samrt_export.families.sam3d.decoders import (
    CORNERS,
    CUBE_SDF,
    CUBE_WEIGHTS,
    GaussiansGraph,
    MeshAttributesGraph,
    MeshUpGraph,
    MeshUpReference,
    SlatDecoderGs,
    SlatDecoderMesh,
    TrunkGraph,
)
from samrt_export.families.sam3d.latent import SlatFlow, SlatFlowGraph, SlatFlowReference
from samrt_export.registry import Feeds, Form, GraphSpec

if TYPE_CHECKING:  # the model is built of what is made here
    from samrt_export.families.sam3d.model import VoxelModel

ORT_CPU = ("onnxruntime-cpu",)
CUBES_PER_VOXEL = 64

Range = tuple[int, int, int]


def make_sparse_modules(config: Sam3dConfig) -> dict[str, nn.Module]:
    """``slat_flow`` (the backbone of ``slat_generator``) and the decoders under the names of their files, uninitialised."""
    return {"slat_flow": SlatFlow(config)} | make_decoders(config)


def make_decoders(config: Sam3dConfig) -> dict[str, nn.Module]:
    """The decoders under the names of their files, uninitialised."""
    made: dict[str, nn.Module] = {
        "slat_decoder_gs": SlatDecoderGs(config, config.gaussians),
        "slat_decoder_mesh": SlatDecoderMesh(config),
    }
    if config.small_gaussians is not None:
        made["slat_decoder_gs_4"] = SlatDecoderGs(config, config.small_gaussians)
    return made


def randomize_sparse(module: nn.Module, seed: int) -> None:
    """Live random weights of what `randomize_live` does not know: convolutions of voxels, and the offsets of Gaussians.

    About a third of a voxel's 27 neighbours are there in the shells that these models meet.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, ConvWeights):
                present = max(1.0, part.weight[0].numel() / 3)
                part.weight.normal_(0, 1 / math.sqrt(present), generator=generator)
            elif isinstance(part, SlatDecoderGs):
                part.offset_perturbation.uniform_(-0.8, 0.8, generator=generator)


def sparse_graphs(module: VoxelModel, *, mirrored: bool = False) -> tuple[GraphSpec, ...]:
    """``slat_flow`` and the graphs of the decoders.

    mirrored: of a model whose own time runs from 1, noise, to 0, data
    """
    flow = module.slat_generator.backbone
    assert isinstance(flow, SlatFlow)
    return _flow_graph(module.config, flow, mirrored), *decoder_graphs(module.config, module)


def decoder_graphs(config: Sam3dConfig, owner: nn.Module) -> tuple[GraphSpec, ...]:
    """``slat_gs``, ``slat_gs_4`` where there is one, ``slat_mesh_trunk``, ``slat_mesh_up`` and ``slat_mesh_attr``.

    owner: what has the decoders under the names of `make_decoders`
    """
    found = dict(owner.named_children())
    gaussians, mesh, small = (found.get(f"slat_decoder_{name}") for name in ("gs", "mesh", "gs_4"))
    assert isinstance(gaussians, SlatDecoderGs)
    assert isinstance(mesh, SlatDecoderMesh)
    more = (_gaussian_graph(config, "slat_gs_4", "gaussian4", small),) if isinstance(small, SlatDecoderGs) else ()
    return (
        _gaussian_graph(config, "slat_gs", "gaussian", gaussians),
        *more,
        _trunk_graph(config, mesh),
        _mesh_up_graph(config, mesh),
        _mesh_attributes_graph(config, mesh),
    )


def _flow_graph(config: Sam3dConfig, flow: SlatFlow, mirrored: bool) -> GraphSpec:
    inputs = (
        TensorSpec("slat", "float32", ("voxels", config.latent_channels)),
        TensorSpec("slat_time", "float32", (1,)),
        TensorSpec("slat_condition", "float32", (1, "slat_tokens", config.fuser.dim)),
        TensorSpec("neighbours", "int32", ("voxels", TAPS)),
        TensorSpec("coarse_neighbours", "int32", ("coarse", TAPS)),
        TensorSpec("children", "int32", ("coarse", 8)),
        TensorSpec("children_inverse", "float32", ("coarse", 1)),
        TensorSpec("parents", "int32", ("voxels",)),
        TensorSpec("coarse_coords", "int32", ("coarse", 3)),
    )
    scale = config.latent_sampling.time_scale

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        rng = np.random.default_rng(seed)
        voxels, coarse, tokens = sizes["voxels"], sizes["coarse"], sizes["slat_tokens"]
        return {
            "slat": _normal(rng, voxels, config.latent_channels),
            "slat_time": np.array([rng.uniform(0.05, 0.95) * scale], np.float32),
            "slat_condition": _normal(rng, 1, tokens, config.fuser.dim),
            "neighbours": _neighbours(rng, voxels),
            "coarse_neighbours": _neighbours(rng, coarse),
            "children": _some_missing(rng, voxels, (coarse, 8), 0.5),
            "children_inverse": (1 / rng.integers(2, 10, (coarse, 1))).astype(np.float32),
            "parents": rng.integers(0, coarse, voxels).astype(np.int32),
            "coarse_coords": rng.integers(0, -(-config.grid // 2), (coarse, 3)).astype(np.int32),
        }

    return GraphSpec(
        "slat_flow",
        SlatFlowReference(flow, scale, mirrored).eval(),
        inputs,
        (TensorSpec("slat_velocity", "float32", ("voxels", config.latent_channels)),),
        profiles=_only(config, "voxels", "coarse", "slat_tokens"),
        checks=(
            {"voxels": 96, "coarse": 26, "slat_tokens": 2},
            {"voxels": 150, "coarse": 41, "slat_tokens": min(33, config.slat_tokens)},
        ),
        sample=sample,
        forms=(
            Form(SlatFlowGraph(flow, scale, mirrored, ort_cpu=True).eval(), ORT_CPU),
            Form(SlatFlowGraph(flow, scale, mirrored).eval()),
        ),
    )


def _gaussian_graph(config: Sam3dConfig, name: str, prefix: str, decoder: SlatDecoderGs) -> GraphSpec:
    widths = {"offsets": 3, "colors": 3, "scales": 3, "rotations": 4, "opacities": 1}
    outputs = tuple(
        TensorSpec(f"{prefix}_{part}", "float32", ("voxels", decoder.gaussians, width))
        for part, width in widths.items()
    )
    lean, usual = GaussiansGraph(decoder, lean=True).eval(), GaussiansGraph(decoder).eval()
    return _window_graph(config, name, outputs, (Form(lean, ORT_CPU), Form(usual)))


def _trunk_graph(config: Sam3dConfig, decoder: SlatDecoderMesh) -> GraphSpec:
    lean, usual = TrunkGraph(decoder, lean=True).eval(), TrunkGraph(decoder).eval()
    return _window_graph(config, "slat_mesh_trunk", (_mesh_features(config),), (Form(lean, ORT_CPU), Form(usual)))


def _window_graph(
    config: Sam3dConfig, name: str, outputs: tuple[TensorSpec, ...], forms: tuple[Form, ...]
) -> GraphSpec:
    """A graph that begins with a decoder's trunk."""
    inputs = (
        TensorSpec("latent", "float32", ("voxels", config.latent_channels)),
        TensorSpec("coords", "int32", ("voxels", 3)),
        TensorSpec("windows", "int32", ("windows", "window_length")),
        TensorSpec("window_slots", "int32", ("voxels",)),
        TensorSpec("shifted_windows", "int32", ("shifted_windows", "shifted_length")),
        TensorSpec("shifted_window_slots", "int32", ("voxels",)),
    )
    deviation = np.asarray(config.latent_std, np.float32)
    mean = np.asarray(config.latent_mean, np.float32)

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        rng = np.random.default_rng(seed)
        voxels = sizes["voxels"]
        windows, slots = _windows(rng, voxels, sizes["windows"], sizes["window_length"])
        shifted, shifted_slots = _windows(rng, voxels, sizes["shifted_windows"], sizes["shifted_length"])
        return {
            "latent": _normal(rng, voxels, config.latent_channels) * deviation + mean,
            "coords": rng.integers(0, config.grid, (voxels, 3)).astype(np.int32),
            "windows": windows,
            "window_slots": slots,
            "shifted_windows": shifted,
            "shifted_window_slots": shifted_slots,
        }

    usual = {"voxels": 96, "windows": 7, "window_length": 24, "shifted_windows": 9, "shifted_length": 21}
    larger = {"voxels": 150, "windows": 8, "window_length": 32, "shifted_windows": 11, "shifted_length": 29}
    return GraphSpec(
        name,
        forms[-1].module,
        inputs,
        outputs,
        profiles=_only(config, "voxels", "windows", "window_length", "shifted_windows", "shifted_length"),
        checks=(usual, larger),
        sample=sample,
        forms=forms,
    )


def _mesh_features(config: Sam3dConfig) -> TensorSpec:
    return TensorSpec("mesh_features", "float32", ("voxels", config.decoder.dim))


def _mesh_up_graph(config: Sam3dConfig, decoder: SlatDecoderMesh) -> GraphSpec:
    width = config.decoder.mesh_channels[-1]

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        rng = np.random.default_rng(seed)
        features = _normal(rng, sizes["voxels"], config.decoder.dim)
        features *= rng.uniform(0.5, 2, config.decoder.dim).astype(np.float32)  # group norms undo what all share
        return {"mesh_features": features, "neighbours": _neighbours(rng, sizes["voxels"])}

    return GraphSpec(
        "slat_mesh_up",
        MeshUpReference(decoder).eval(),
        (_mesh_features(config), TensorSpec("neighbours", "int32", ("voxels", TAPS))),
        (
            TensorSpec("cube_features", "float32", ("cubes", width)),
            TensorSpec("cube_sdf", "float32", ("cubes", CUBE_SDF)),
        ),
        profiles=_only(config, "voxels"),
        checks=({"voxels": 96}, {"voxels": 150}),
        sample=sample,
        forms=(Form(MeshUpGraph(decoder).eval()),),
    )


def _mesh_attributes_graph(config: Sam3dConfig, decoder: SlatDecoderMesh) -> GraphSpec:
    width = config.decoder.mesh_channels[-1]
    graph = MeshAttributesGraph(decoder).eval()
    return GraphSpec(
        "slat_mesh_attr",
        graph,
        (TensorSpec("surface_features", "float32", ("surface", width)),),
        (
            TensorSpec("cube_deform", "float32", ("surface", CORNERS, 3)),
            TensorSpec("cube_weights", "float32", ("surface", CUBE_WEIGHTS)),
            TensorSpec("cube_colors", "float32", ("surface", CORNERS, 6)),
        ),
        profiles=_only(config, "surface"),
        checks=({"surface": 200}, {"surface": 333}),
        sample=lambda sizes, seed: {"surface_features": _normal(np.random.default_rng(seed), sizes["surface"], width)},
        forms=(Form(graph),),
    )


def _only(config: Sam3dConfig, *symbols: str) -> dict[str, Range]:
    """(min, opt, max) of some symbols, for the official sizes and in proportion for smaller ones.

    Voxels: of a shell; coarse ones have half the fineness, windows a side of 8. A window may be full.
    """
    side = -(-config.grid // config.decoder.window) + 1  # windows along an axis, shifted ones stick out
    longest, tokens, most = config.decoder.window**3, config.slat_tokens, config.max_voxels
    usual = max(64, most * 10 // 21)
    known: dict[str, Range] = {
        "voxels": (64, usual, most),
        "coarse": (16, max(16, usual * 3 // 10), max(16, most * 8 // 21)),
        "windows": (1, min(256, side**3), side**3),
        "window_length": (1, max(1, longest // 2), longest),
        "slat_tokens": (2, tokens, tokens),
        "surface": (1, 5 * usual, max(2_000_000, CUBES_PER_VOXEL * 2 * usual)),
    }
    known["shifted_windows"], known["shifted_length"] = known["windows"], known["window_length"]
    return {symbol: known[symbol] for symbol in symbols}


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.normal(0, 1, shape).astype(np.float32)


def _some_missing(rng: np.random.Generator, rows: int, shape: tuple[int, ...], present: float) -> NDArray[np.int32]:
    """A random one-based map of rows with a share of entries present."""
    found = rng.integers(1, rows + 1, shape)
    return (found * (rng.uniform(size=shape) < present)).astype(np.int32)


def _neighbours(rng: np.random.Generator, rows: int) -> NDArray[np.int32]:
    """A random map of neighbours, one-based; the middle tap is the row itself."""
    neighbours = _some_missing(rng, rows, (rows, TAPS), 0.4)
    neighbours[:, TAPS // 2] = np.arange(1, rows + 1)
    return neighbours


def _windows(
    rng: np.random.Generator, voxels: int, windows: int, length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Windows of random voxels, none empty; every voxel reads a slot of some voxel. windows (W, L), slots (voxels,)."""
    rows = _some_missing(rng, voxels, (windows, length), 0.5)
    rows[:, 0] = rng.integers(1, voxels + 1, windows)
    return rows, rng.choice(np.flatnonzero(rows), voxels).astype(np.int32)
