"""SAM 3D Objects as one module: a submodule for each official file, under the file's name and its parameter names."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from samrt_export.blocks.dense3d import DenseDecoder
from samrt_export.blocks.dinov2 import Dinov2
from samrt_export.blocks.flow_transformer import MultiHeadRmsNorm
from samrt_export.blocks.token_fuser import TokenFuser
from samrt_export.families.sam3d.condition import Encoder, build_fuser, build_vit
from samrt_export.families.sam3d.config import CONFIGS, Sam3dConfig
from samrt_export.families.sam3d.sparse_specs import make_sparse_modules, randomize_sparse
from samrt_export.families.sam3d.structure import StructureFlow
from samrt_export.randomize import randomize_live

RMS_GAIN = 1.6
"""Of random normalised queries and keys, that softmax picks instead of averaging."""


class FlowHolder(nn.Module):
    """A flow under the official name ``backbone``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


class Generator(FlowHolder):
    """A flow and the embedder of its condition: what one generator file holds."""

    def __init__(self, backbone: nn.Module, condition_embedder: TokenFuser) -> None:
        super().__init__(backbone)
        self.condition_embedder = condition_embedder


class VoxelModel(nn.Module):
    """What models of this kind share: two flows, and decoders from their latents to voxels, Gaussians and a mesh."""

    slat_decoder_gs_4: nn.Module

    def __init__(self, config: Sam3dConfig, structure: FlowHolder, latent: FlowHolder) -> None:
        super().__init__()
        self.config = config
        self.ss_generator = structure
        self.slat_generator = latent
        self.ss_decoder = build_dense_decoder(config)

    def take_decoders(self, sparse: Mapping[str, nn.Module]) -> None:
        """Take what `make_sparse_modules` made for the voxels' latent."""
        self.slat_decoder_gs = sparse["slat_decoder_gs"]
        if "slat_decoder_gs_4" in sparse:
            self.slat_decoder_gs_4 = sparse["slat_decoder_gs_4"]
        self.slat_decoder_mesh = sparse["slat_decoder_mesh"]


class Sam3d(VoxelModel):
    """The whole model.

    The four image encoders are one module under four names: the released files hold one and the same, frozen. `fit` makes
    them separate for a file in which they differ.
    """

    ss_generator: Generator
    slat_generator: Generator

    def __init__(self, config: Sam3dConfig) -> None:
        vit, sparse = build_vit(config.vit), make_sparse_modules(config)
        flow = StructureFlow(config.structure_flow, config.fuser.dim, config.latent_channels, config.latent_grid)
        super().__init__(
            config,
            Generator(flow, build_fuser(config, vit, config.points)),
            Generator(sparse["slat_flow"], build_fuser(config, vit, None)),
        )
        self.take_decoders(sparse)

    def encoders(self) -> dict[str, Encoder]:
        """Official name -> the holder of an image encoder: pictures and masks of stage 1, then of stage 2."""
        stages = {"ss_generator": self.ss_generator, "slat_generator": self.slat_generator}
        return {
            f"{stage}.condition_embedder.module_list.{kind}": encoder
            for stage, generator in stages.items()
            for kind, encoder in enumerate(generator.condition_embedder.module_list)
            if isinstance(encoder, Encoder)
        }


def build_dense_decoder(config: Sam3dConfig) -> DenseDecoder:
    """The decoder of the structure latent."""
    sizes = config.structure_decoder
    return DenseDecoder(config.latent_channels, sizes.channels, sizes.res_blocks, sizes.middle_blocks)


def build(model: str) -> Sam3d:
    """The module of a model name."""
    return Sam3d(CONFIGS[model])


def fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give image encoders that differ in a state modules of their own; equal ones stay one.

    The second Gaussian decoder, which some copies of the official folder lack, goes where the state has none of it.
    """
    assert isinstance(module, Sam3d)
    if hasattr(module, "slat_decoder_gs_4") and not any(name.startswith("slat_decoder_gs_4.") for name in state):
        del module.slat_decoder_gs_4
    kept: list[tuple[dict[str, Tensor], Dinov2]] = []
    for name, encoder in module.encoders().items():
        prefix = f"{name}.backbone."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        same = next((backbone for other, backbone in kept if _equal(weights, other)), None)
        if same is None:
            same = encoder.backbone if not kept else build_vit(module.config.vit).eval().requires_grad_(False)
            kept.append((weights, same))
        encoder.backbone = same


def _equal(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether two encoders are the same in every bit; a missing one is for the strict load to report."""
    if not weights or not others:
        return True
    return weights.keys() == others.keys() and all(
        value is others[key] or (value.dtype == others[key].dtype and torch.equal(value, others[key]))
        for key, value in weights.items()
    )


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place: `randomize_live`, and what it does not know of flows in 3D."""
    randomize_live(module, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, MultiHeadRmsNorm):
                part.gamma.normal_(RMS_GAIN, 0.1, generator=generator)
            elif isinstance(part, nn.Conv3d):
                part.weight.normal_(0, 1 / math.sqrt(part.weight[0].numel()), generator=generator)
    randomize_sparse(module, seed)
