"""Measures nano 3D on held-out solids, against the formulas that they are.

Distances are in voxels of the grid (1/32 of the frame). A shell of voxels has an inside that no voxel covers, so a mesh has an
inner wall behind its surface, as those of the released model do. Vertices deeper than INNER_VOXELS are that wall and are
left out of distances; their share is reported.

``python -m samrt_export.nano3d.evaluate`` prints the decoders' figures, with ``--bundle DIR`` those of the whole way from
photographs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from samrt.assets import Gaussians, Mesh
from samrt.reconstruct import Reconstructor
from samrt.reconstruct.gaussian_decoding import decode_gaussians
from samrt.surface import CubeField
from samrt_export.blocks.dense3d import grid_from_tokens
from samrt_export.families.sam3d.decoders import (
    GaussiansGraph,
    MeshAttributesGraph,
    MeshUpGraph,
    SlatDecoderGs,
    SlatDecoderMesh,
    TrunkGraph,
)
from samrt_export.families.sam3d.folder import read_state
from samrt_export.families.sam3d.model import Sam3d
from samrt_export.nano3d import CHECKPOINT
from samrt_export.nano3d.config import CONFIG, LATENT_MEAN, LATENT_STD
from samrt_export.nano3d.decoder_stages import trunk_inputs
from samrt_export.nano3d.examples import nano_numbers
from samrt_export.nano3d.rendering import FIELD_OF_VIEW, Photo, photograph
from samrt_export.nano3d.shapes import HELD_OUT_SEED, Array, Solid, solid_from_seed
from samrt_export.nano3d.targets import SH_DC, Integers, occupied, structure_latent, voxel_latent
from samrt_export.nano3d.training import part_of

INNER_VOXELS = 0.5
SAMPLES = 600
GAUSSIAN_NAMES = ("offsets", "colors", "scales", "rotations", "opacities")


@dataclass(frozen=True)
class Score:
    """How near something comes to a solid. Distances in voxels.

    to_surface: mean distance of its points from the surface. from_surface: mean distance from points of the surface to its
    nearest point. colour: mean absolute error, 0..1. inner: share of points that were left out, see the module's docstring.
    """

    to_surface: float
    from_surface: float
    colour: float
    inner: float

    @property
    def chamfer(self) -> float:
        """The mean of both directions."""
        return (self.to_surface + self.from_surface) / 2


def load_nano(path: Path = CHECKPOINT) -> Sam3d:
    """The model with its weights."""
    model = Sam3d(CONFIG)
    model.load_state_dict({name: value.float() for name, value in read_state(path).items()})
    return model.eval().requires_grad_(False)


def voxel_iou(first: Integers, second: Integers) -> float:
    """Intersection over union of two sets of voxels (N, 3)."""
    sets = [{tuple(row) for row in coords.tolist()} for coords in (first, second)]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def score_points(solid: Solid, points: Array, colours: Array) -> Score:
    """points: (V, 3), colours: (V, 3) 0..1."""
    distance = solid.distance(points) * CONFIG.grid
    outer = distance > -INNER_VOXELS
    points, colours = points[outer], colours[outer]
    if not len(points):
        return Score(np.inf, np.inf, 1.0, 1.0)
    nearest = [np.linalg.norm(points - sample, axis=1).min() for sample in solid.surface(SAMPLES)]
    error = np.abs(colours - solid.colour(points)).mean()
    to_surface, from_surface = np.abs(distance[outer]).mean(), np.mean(nearest) * CONFIG.grid
    return Score(float(to_surface), float(from_surface), float(error), float((~outer).mean()))


def score_mesh(solid: Solid, mesh: Mesh) -> Score:
    """Of its vertices, which are a quarter of a voxel apart."""
    assert mesh.colors is not None
    return score_points(solid, mesh.vertices, mesh.colors)


def score_gaussians(solid: Solid, gaussians: Gaussians) -> Score:
    """Of the centres of those that are more than half opaque."""
    seen = gaussians.opacities > 0.5
    return score_points(solid, gaussians.positions[seen], np.clip(0.5 + SH_DC * gaussians.colors_dc[seen], 0, 1))


@torch.inference_mode()
def decode_structure(model: Sam3d, latent: Array) -> Integers:
    """latent: (latent_grid^3, 8) -> occupied voxels (N, 3)."""
    logits = model.ss_decoder(grid_from_tokens(torch.from_numpy(latent)[None], CONFIG.latent_grid))
    return np.argwhere(logits[0, 0].numpy() > 0).astype(np.int32)


@torch.inference_mode()
def decode_mesh(model: Sam3d, coords: Integers, latent: Array) -> Mesh:
    """latent: (N, 8), de-normalised."""
    decoder = part_of(model.slat_decoder_mesh, SlatDecoderMesh)
    maps, inputs = trunk_inputs(coords)
    (features,) = TrunkGraph(decoder)(torch.from_numpy(latent), *inputs)
    rows, sdf = MeshUpGraph(decoder)(features, torch.tensor(maps.neighbours))
    field = CubeField(coords, sdf.numpy(), resolution=CONFIG.resolution, sdf_bias=-1 / CONFIG.resolution)
    deform, weights, colours = MeshAttributesGraph(decoder)(rows[torch.tensor(field.rows)])
    return field.extract(deform.numpy(), weights.numpy(), colours.numpy())


@torch.inference_mode()
def decode_splats(decoder: SlatDecoderGs, coords: Integers, latent: Array) -> Gaussians:
    """latent: (N, 8), de-normalised."""
    made = GaussiansGraph(decoder)(torch.from_numpy(latent), *trunk_inputs(coords)[1])
    outputs = {name: tensor.numpy() for name, tensor in zip(GAUSSIAN_NAMES, made, strict=True)}
    return decode_gaussians(outputs, coords, CONFIG.grid, nano_numbers().gaussians)


def true_latent(solid: Solid, coords: Integers) -> Array:
    """(N, 8) de-normalised, as decoders take it."""
    return np.asarray(voxel_latent(solid, coords) * LATENT_STD + LATENT_MEAN)


def silhouette_iou(photo: Photo, points: Array) -> float:
    """IoU of the photograph's mask with the pixels that points (V, 3) of the solid's frame, put where it stands, fall into.

    The mesh's vertices lie closer than pixels at this size, holes of a pixel are filled.
    """
    side = len(photo.mask)
    camera = photo.scale * points @ photo.rotation.T + photo.translation
    pixels = (1 - camera[:, :2] / camera[:, 2:] / np.tan(FIELD_OF_VIEW / 2)) * side / 2
    columns, rows = np.clip(pixels.astype(int), 0, side - 1).T
    drawn = np.zeros((side + 2, side + 2), np.bool_)
    drawn[rows + 1, columns + 1] = True
    middle = drawn[1:-1, 1:-1]
    filled = middle | (drawn[:-2, 1:-1] & drawn[2:, 1:-1]) | (drawn[1:-1, :-2] & drawn[1:-1, 2:])
    return float((filled & photo.mask).sum() / (filled | photo.mask).sum())


@dataclass(frozen=True)
class DecoderScores:
    """Of one solid: decoders on the very latents that it has."""

    kind: str
    occupancy_iou: float
    mesh: Score
    gaussians: Score
    small_gaussians: Score


def judge_decoders(model: Sam3d, seed: int) -> DecoderScores:
    """Held-out solid number ``seed``."""
    solid = solid_from_seed(HELD_OUT_SEED + seed)
    coords = occupied(solid)
    latent = true_latent(solid, coords)
    decoders = (part_of(module, SlatDecoderGs) for module in (model.slat_decoder_gs, model.slat_decoder_gs_4))
    splats = (decode_splats(decoder, coords, latent) for decoder in decoders)
    return DecoderScores(
        solid.kind,
        voxel_iou(decode_structure(model, structure_latent(solid)), coords),
        score_mesh(solid, decode_mesh(model, coords, latent)),
        *(score_gaussians(solid, each) for each in splats),
    )


@dataclass(frozen=True)
class PipelineScores:
    """Of one photograph. silhouette_iou: of the mesh under the true pose; posed_iou: under the pose that the model found.

    rotation_degrees: the angle between both; nothing for a solid of revolution, whose turn nobody can see.
    """

    kind: str
    voxels: int
    occupancy_iou: float
    mesh: Score
    gaussians: Score
    silhouette_iou: float
    posed_iou: float


def judge_pipeline(model: Reconstructor, seed: int) -> PipelineScores:
    """Photograph number ``seed``, reconstructed from noise of seed 0: held out from HELD_OUT_SEED on."""
    photo = photograph(seed)
    made = model.reconstruct(photo.image, photo.mask, pointmap=photo.pointmap)
    assert made.mesh is not None
    assert made.gaussians is not None
    assert made.pose is not None
    vertices = made.mesh.vertices
    matrix = made.pose.matrix_z_up
    in_camera = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    posed = ((in_camera - photo.translation) @ photo.rotation / photo.scale).astype(np.float32)
    return PipelineScores(
        photo.solid.kind,
        len(made.coords),
        voxel_iou(made.coords, occupied(photo.solid)),
        score_mesh(photo.solid, made.mesh),
        score_gaussians(photo.solid, made.gaussians),
        silhouette_iou(photo, vertices),
        silhouette_iou(photo, posed),
    )


def _shown(row: DecoderScores | PipelineScores) -> str:
    cells = []
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Score):
            value = f"chamfer {value.chamfer:.3f} ({value.to_surface:.3f} {value.from_surface:.3f}) colour {value.colour:.3f}"
        cells.append(f"{field.name} {value:.3f}" if isinstance(value, float) else f"{field.name} {value}")
    return "  ".join(cells)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=CHECKPOINT)
    parser.add_argument("--bundle", type=Path, help="judge the whole way with this exported bundle")
    parser.add_argument("--first", type=int, default=HELD_OUT_SEED, help="photograph; 0 begins those learned by heart")
    parser.add_argument("--count", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.bundle is None:
        model = load_nano(arguments.weights)
        for seed in range(arguments.count):
            print(_shown(judge_decoders(model, seed)), flush=True)
        return
    with Reconstructor(arguments.bundle) as reconstructor:
        for seed in range(arguments.count):
            print(_shown(judge_pipeline(reconstructor, arguments.first + seed)), flush=True)


if __name__ == "__main__":
    main()
