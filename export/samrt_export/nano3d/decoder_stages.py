"""The decoders' lessons: from the latents of a solid back to its voxels, its surface and its Gaussians.

Latents are learned with some noise on them, since those that a flow samples are not exact either.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samrt.reconstruct.gaussian_decoding import inverse_softplus
from samrt.sparse import SparseMaps
from samrt_export.blocks.dense3d import DenseDecoder, grid_from_tokens
from samrt_export.families.sam3d.decoders import (
    CUBE_COLORS,
    CUBE_DEFORM,
    CUBE_SDF,
    CUBE_WEIGHTS,
    OFFSET_VOXELS,
    GaussiansGraph,
    MeshUpReference,
    SlatDecoderGs,
    SlatDecoderMesh,
    TrunkGraph,
)
from samrt_export.nano3d.config import CONFIG
from samrt_export.nano3d.examples import nano_numbers
from samrt_export.nano3d.shapes import HELD_OUT_SEED, Solid, solid_from_seed
from samrt_export.nano3d.targets import (
    Integers,
    cube_targets,
    gaussian_targets,
    occupancy,
    occupied,
    structure_latent,
    voxel_latent,
)
from samrt_export.nano3d.training import Losses, Stage

LATENT_NOISE = 0.2


def draw_solid(rng: np.random.Generator, least_scale: float = 1.0) -> Solid:
    """A solid to train on, sometimes smaller than it would be."""
    solid = solid_from_seed(int(rng.integers(HELD_OUT_SEED)))
    return solid.scaled(float(rng.uniform(least_scale, 1.0))) if least_scale < 1 else solid


def noisy(latent: Tensor, rng: np.random.Generator, most: float = LATENT_NOISE) -> Tensor:
    """The latent with normal noise of a strength drawn for it."""
    strength = rng.uniform(0, most) * (rng.uniform() < 0.8)
    return latent + torch.from_numpy(rng.normal(0, 1, latent.shape).astype(np.float32)) * strength


def structure_decoder_stage(decoder: DenseDecoder, steps: int = 900, batch: int = 2) -> Stage:
    """Occupancy from the structure latent; occupied voxels are one in twenty and weigh twice as much."""

    def losses(rng: np.random.Generator, step: int) -> Losses:
        solids = [draw_solid(rng, 0.7) for _ in range(batch)]
        latents = torch.cat([noisy(torch.from_numpy(structure_latent(solid))[None], rng) for solid in solids])
        truth = torch.from_numpy(np.stack([occupancy(occupied(solid)) for solid in solids]))
        logits = decoder(grid_from_tokens(latents, CONFIG.latent_grid))
        weight = 1 + truth
        loss = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).mean()
        with torch.no_grad():
            both, either = ((logits > 0) & (truth > 0)).sum(), ((logits > 0) | (truth > 0)).sum()
        return {"occupancy": 10 * loss, "one_less_iou": (1 - both / either).detach()}

    return Stage("structure_decoder", {"ss_decoder": decoder}, losses, steps, 3e-3)


WINDOW_MAPS = ("windows", "window_slots", "shifted_windows", "shifted_window_slots")


def raw_latent(solid: Solid, coords: Integers, rng: np.random.Generator) -> Tensor:
    """(N, 8) as decoders take it, the normalisation undone; somewhat noisy."""
    latent = noisy(torch.from_numpy(voxel_latent(solid, coords)), rng)
    return latent * torch.tensor(CONFIG.latent_std) + torch.tensor(CONFIG.latent_mean)


def trunk_inputs(coords: Integers) -> tuple[SparseMaps, list[Tensor]]:
    """All maps of some voxels; and those of a trunk, coordinates first."""
    maps = SparseMaps.from_coords(coords, grid=CONFIG.grid, window=CONFIG.decoder.window)
    return maps, [torch.tensor(maps.coords), *map(torch.tensor, maps.feeds(WINDOW_MAPS).values())]


def small_solid(rng: np.random.Generator, step: int, steps: int) -> Solid:
    """Small solids first, which are quick to learn from, at last some of full size."""
    late = step > 0.7 * steps
    return (
        draw_solid(rng, 0.5) if late and rng.uniform() < 0.5 else draw_solid(rng).scaled(float(rng.uniform(0.38, 0.55)))
    )


def mesh_decoder_stage(decoder: SlatDecoderMesh, steps: int = 600) -> Stage:
    """The field at the cubes' corners. Displacements and weights are asked to be small: linear crossings do."""
    trunk, up = TrunkGraph(decoder), MeshUpReference(decoder)

    def losses(rng: np.random.Generator, step: int) -> Losses:
        solid = small_solid(rng, step, steps)
        coords = occupied(solid)
        maps, inputs = trunk_inputs(coords)
        truth = cube_targets(solid, coords)
        (features,) = trunk(raw_latent(solid, coords, rng), *inputs)
        rows, sdf = up(features, torch.tensor(maps.neighbours))
        wanted = torch.from_numpy(truth.sdf)
        weight = 1 + 4 * (wanted.abs() < 0.3)
        crossed = torch.from_numpy(np.flatnonzero(truth.crossed))
        attributes = decoder.out_layer(rows[crossed])[:, CUBE_SDF:]
        still, colours = attributes.split((CUBE_DEFORM + CUBE_WEIGHTS, CUBE_COLORS), dim=1)
        off = colours.sigmoid() - torch.from_numpy(truth.colours)[crossed].flatten(1)
        return {
            "sdf": ((sdf - wanted).abs() * weight).mean() * 4,
            "colours": off.abs().mean() * 2,
            "still": 0.05 * (still**2).mean(),
        }

    return Stage("mesh_decoder", {"slat_decoder_mesh": decoder}, losses, steps, 4e-3)


def gaussian_decoder_stage(name: str, decoder: SlatDecoderGs, steps: int = 1000) -> Stage:
    """Gaussians laid flat on the surface. name: of the decoder in the checkpoint."""
    graph, numbers = GaussiansGraph(decoder), nano_numbers().gaussians
    pattern = decoder.offset_perturbation.tanh().numpy() * (OFFSET_VOXELS / CONFIG.grid)
    scale_bias, opacity_bias = inverse_softplus(numbers.scale_bias), float(np.log(1 / numbers.opacity_bias - 1))

    def losses(rng: np.random.Generator, step: int) -> Losses:
        solid = draw_solid(rng, 0.5)
        coords = occupied(solid)
        truth = gaussian_targets(solid, coords, pattern)
        offsets, colours, scales, rotations, opacities = graph(raw_latent(solid, coords, rng), *trunk_inputs(coords)[1])
        wanted = torch.from_numpy(truth.opacities)
        spread = F.softplus(scales + scale_bias).log() - torch.from_numpy(truth.scales).log()
        return {
            "offsets": ((offsets - torch.from_numpy(truth.offsets)) * CONFIG.grid).abs().mean() * 4,
            "colours": (colours - torch.from_numpy(truth.colours)).abs().mean(),
            "scales": spread.abs().mean(),
            "rotations": 0.01 * (rotations**2).mean(),
            "opacities": F.binary_cross_entropy_with_logits(opacities.squeeze(-1) - opacity_bias, wanted),
        }

    return Stage(name, {name: decoder}, losses, steps, 4e-3)
