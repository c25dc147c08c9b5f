"""nano 3D: that the truth it is taught is true, and that what it learned holds on objects that it never saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samrt.reconstruct import Reconstructor
from samrt.reconstruct.pose import decode_pose
from samrt.sparse import SparseMaps
from samrt.surface import CubeField
from samrt_export.blocks.sparse_conv import SparseConv3d
from samrt_export.export import export_model
from samrt_export.families.sam3d.condition import DinoGraph, LatentCondition, StructureCondition
from samrt_export.families.sam3d.model import Sam3d
from samrt_export.nano3d import CHECKPOINT
from samrt_export.nano3d.config import CONFIG
from samrt_export.nano3d.evaluate import DecoderScores, judge_decoders, judge_pipeline, load_nano, score_points
from samrt_export.nano3d.examples import POSE_CHANNELS, make_example, nano_numbers, photo_views, pose_tokens
from samrt_export.nano3d.flow_stage import Conditions, make_batch
from samrt_export.nano3d.gather_conv import gather_gradients
from samrt_export.nano3d.initial import initialise
from samrt_export.nano3d.rendering import FIELD_OF_VIEW, photograph
from samrt_export.nano3d.shapes import MAKERS, SPAN, Array, Part, Solid, solid_from_seed
from samrt_export.nano3d.targets import (
    REACH,
    REACH_MEAN,
    REACH_STD,
    SDF_BIAS,
    cube_targets,
    gaussian_targets,
    lattice,
    occupied,
    structure_latent,
    voxel_latent,
)
from samrt_export.nano3d.training import Stage, averaged_weights, run_stage

RED = ((1.0, 0.0, 0.0),) * 2
KINDS = range(len(MAKERS))


def some_points(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-0.45, 0.45, (count, 3)).astype(np.float32)


# --- solids


@pytest.mark.parametrize(
    ("part", "inside"),
    [
        (Part("ball", (0.1, 0, 0), (0.2, 0, 0), RED), lambda x, y, z: np.hypot(np.hypot(x - 0.1, y), z) < 0.2),
        (
            Part("box", (0, 0.1, 0), (0.1, 0.2, 0.3), RED),
            lambda x, y, z: (abs(x) < 0.1) & (abs(y - 0.1) < 0.2) & (abs(z) < 0.3),
        ),
        (Part("cylinder", (0, 0, 0), (0.2, 0.3, 0), RED), lambda x, y, z: (np.hypot(x, y) < 0.2) & (abs(z) < 0.3)),
        (
            Part("cylinder", (0, 0, 0), (0.2, 0.3, 0), RED, axis=0),
            lambda x, y, z: (np.hypot(y, z) < 0.2) & (abs(x) < 0.3),
        ),
        (
            Part("capsule", (0, 0, 0), (0.1, 0.2, 0), RED, axis=1),
            lambda x, y, z: np.hypot(np.hypot(x, y - y.clip(-0.2, 0.2)), z) < 0.1,
        ),
        (
            Part("cone", (0, 0, 0), (0.3, 0.1, 0.2), RED),
            lambda x, y, z: (np.hypot(x, y) < 0.2 - z / 2) & (abs(z) < 0.2),
        ),
        (Part("ring", (0, 0, 0), (0.25, 0.1, 0), RED), lambda x, y, z: np.hypot(np.hypot(x, y) - 0.25, z) < 0.1),
    ],
)
def test_distances_have_the_sign_of_the_primitive_and_its_nearest_point(part, inside) -> None:
    points = some_points(2000)
    distance = part.distance(points)
    np.testing.assert_array_equal(distance < 0, inside(*points.T))
    solid = Solid("one", (part,))
    surface = solid.surface(3000)
    nearest = np.array([np.linalg.norm(surface - point, axis=1).min() for point in points[:200]])
    off = nearest - np.abs(distance[:200])  # the samples are at most as near as the surface itself
    assert off.min() > -2e-3
    assert off.mean() < 0.01


def test_a_mug_is_hollow_and_parts_keep_their_colours() -> None:
    mug = next(solid for solid in map(solid_from_seed, KINDS) if solid.kind == "mug")
    body, handle = mug.parts
    middle = np.array([[body.centre[0], 0, 0.1], [handle.centre[0] + handle.size[0], 0, 0]], np.float32)
    assert mug.distance(middle)[0] > 0.05
    assert mug.distance(middle)[1] < -0.02
    np.testing.assert_allclose(mug.colour(middle[1:]), [handle.colours[0]], atol=1e-6)
    assert body.distance(middle)[0] < 0


@pytest.mark.parametrize("seed", KINDS)
def test_solids_fit_the_frame_and_their_normals_point_out(seed: int) -> None:
    solid = solid_from_seed(seed)
    surface = solid.surface(300)
    assert np.abs(surface).max() < SPAN
    assert np.abs(solid.distance(surface)).max() < 2e-3
    step = 4e-3 * solid.normal(surface)
    assert (solid.distance(surface + step) > 0).mean() > 0.99
    assert (solid.distance(surface - step) < 0).mean() > 0.98
    np.testing.assert_allclose(solid.scaled(0.5).distance(surface / 2), 0, atol=1e-3)


# --- photographs


@pytest.mark.parametrize("seed", KINDS)
def test_a_photograph_agrees_with_its_pose(seed: int) -> None:
    photo = photograph(seed)
    on_solid = (photo.pointmap[photo.mask] - photo.translation) @ photo.rotation / photo.scale
    assert np.abs(photo.solid.distance(on_solid.astype(np.float32))).max() < 4e-3
    assert np.linalg.det(photo.rotation) == pytest.approx(1, abs=1e-5)
    rows, columns = np.nonzero(photo.mask)
    left, up, forward = photo.pointmap[photo.mask].T  # x left, y up, z forward
    assert forward.min() > 0
    reach = np.tan(FIELD_OF_VIEW / 2)
    np.testing.assert_allclose(-left / forward / reach, (columns + 0.5) / len(photo.mask) * 2 - 1, atol=1e-4)
    np.testing.assert_allclose(-up / forward / reach, (rows + 0.5) / len(photo.mask) * 2 - 1, atol=1e-4)
    assert 0.02 < photo.mask.mean() < 0.5


def test_the_pose_that_a_model_learns_is_the_one_that_the_runtime_reads() -> None:
    photo, numbers = photograph(5), nano_numbers()
    views = photo_views(photo, numbers)[1]
    parts = np.split(pose_tokens(photo, views), np.cumsum(POSE_CHANNELS)[:-1])
    tokens = dict(zip(("rotation_6d", "translation", "scale", "translation_scale"), parts, strict=True))
    pose = decode_pose(tokens, numbers.pose, scene_scale=views.scale, scene_shift=views.shift, shrunk=1)
    surface = photo.solid.surface(50)
    wanted = photo.scale * surface @ photo.rotation.T + photo.translation
    np.testing.assert_allclose(surface @ pose.matrix_z_up[:3, :3].T + pose.matrix_z_up[:3, 3], wanted, atol=1e-4)


# --- targets


@pytest.mark.parametrize("seed", KINDS)
def test_every_voxel_of_the_surface_is_occupied_and_few_others(seed: int) -> None:
    solid = solid_from_seed(seed)
    coords = occupied(solid)
    np.testing.assert_array_equal(coords, np.unique(coords, axis=0))
    voxels = np.floor((solid.surface(2000) + 0.5) * CONFIG.grid).astype(np.int64)
    held = {tuple(row) for row in coords.tolist()}
    assert np.mean([tuple(row) in held for row in voxels.tolist()]) > 0.995
    centres = (coords + 0.5) / CONFIG.grid - 0.5
    assert np.abs(solid.distance(centres.astype(np.float32))).max() * CONFIG.grid < np.sqrt(3) / 2 + 0.11


@pytest.mark.parametrize("seed", [2, 5])
def test_a_mesh_of_the_true_field_is_the_solid(seed: int) -> None:
    """The rows and corners of the targets are those that mesh extraction reads."""
    solid = solid_from_seed(seed)
    coords = occupied(solid)
    truth = cube_targets(solid, coords)
    field = CubeField(coords, truth.sdf, resolution=CONFIG.resolution, sdf_bias=SDF_BIAS)
    rows = field.rows
    colours = np.clip(truth.colours[rows], 0.01, 0.99)
    mesh = field.extract(
        np.zeros((len(rows), 8, 3), np.float32),
        np.zeros((len(rows), 21), np.float32),
        np.log(colours / (1 - colours)).astype(np.float32),
    )
    score = score_points(solid, mesh.vertices, mesh.colors)
    assert score.to_surface < 0.1  # the inner wall of a flat face may lie that near
    assert score.from_surface < 0.15  # vertices are a quarter of a voxel apart
    assert score.colour < 0.05


def test_latents_hold_what_they_say() -> None:
    solid = solid_from_seed(7)
    coords = occupied(solid)
    centres = ((coords + 0.5) / CONFIG.grid - 0.5).astype(np.float32)
    latent = voxel_latent(solid, coords) * np.float32(CONFIG.latent_std) + np.float32(CONFIG.latent_mean)
    np.testing.assert_allclose(latent[:, 0], solid.distance(centres) * CONFIG.grid, atol=1e-5)
    np.testing.assert_allclose(latent[:, 1:4], solid.normal(centres), atol=1e-5)
    np.testing.assert_allclose(latent[:, 4:7], solid.colour(centres), atol=1e-5)
    tokens = structure_latent(solid)  # cell (1, 2, 3), octant (1, 0, 1) is point (3, 4, 7) of the finer lattice
    side = CONFIG.latent_grid
    point = lattice(2 * side)[(3 * 2 * side + 4) * 2 * side + 7]
    wanted = (np.tanh(solid.distance(point[None]) / REACH) - REACH_MEAN) / REACH_STD
    np.testing.assert_allclose(tokens[(1 * side + 2) * side + 3, 5], wanted[0], atol=1e-5)


def test_gaussians_are_asked_to_lie_flat_on_the_surface() -> None:
    solid = solid_from_seed(0)
    coords = occupied(solid)
    truth = gaussian_targets(solid, coords, np.zeros((2, 3), np.float32))
    centres = ((coords + 0.5) / CONFIG.grid - 0.5)[:, None]
    missed = np.abs(solid.distance((centres + truth.offsets).reshape(-1, 3).astype(np.float32))).reshape(len(coords), 2)
    assert missed[truth.opacities > 0.5].max() * CONFIG.grid < 0.15
    normal = solid.normal((centres + truth.offsets)[:, 0].astype(np.float32))
    upwards = np.abs(normal[:, 2]) > 0.99
    assert (truth.scales[upwards, 0, 2] < truth.scales[upwards, 0, 0] / 3).all()


# --- training


def test_a_convolution_that_gathers_its_gradients_has_the_same_ones() -> None:
    coords = occupied(solid_from_seed(2).scaled(0.4))
    neighbours = torch.tensor(SparseMaps.from_coords(coords, grid=CONFIG.grid).neighbours)
    torch.manual_seed(0)
    conv = SparseConv3d(8, 5)
    nn.init.normal_(conv.conv.weight)
    nn.init.normal_(conv.conv.bias)
    x, weight = torch.randn(len(coords), 8, requires_grad=True), torch.randn(len(coords), 5)
    results = []
    for _ in range(2):
        y = conv(x, neighbours)
        results.append((y.detach(), *torch.autograd.grad((y * weight).sum(), [x, conv.conv.weight, conv.conv.bias])))
        gather_gradients(conv)
    for usual, gathered in zip(*results, strict=True):
        torch.testing.assert_close(gathered, usual, rtol=1e-5, atol=1e-4)


def test_conditions_of_a_batch_are_those_of_the_graphs() -> None:
    model = Sam3d(CONFIG).eval()
    initialise(model)
    batch = make_batch([make_example(seed, nano_numbers()) for seed in (5, 6)])
    with torch.inference_mode():
        ss, slat = Conditions(model)(batch)
        embedders = model.ss_generator.condition_embedder, model.slat_generator.condition_embedder
        features, latent_features = DinoGraph(*embedders)(batch.pixels[1])
        (ss_alone,) = StructureCondition(embedders[0])(features, batch.points[1], batch.valid[1])
        (slat_alone,) = LatentCondition(embedders[1])(latent_features)
    torch.testing.assert_close(ss[1:], ss_alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slat[1:], slat_alone, rtol=1e-5, atol=1e-5)
    assert (ss[0] - ss[1]).abs().max() > 0.05


def test_a_run_that_was_cut_comes_to_the_same_place(tmp_path) -> None:
    def train(folder, *budgets: float) -> dict[str, torch.Tensor]:
        folder.mkdir()
        for budget in budgets:
            torch.manual_seed(0)
            layer = nn.Linear(3, 1)

            def losses(rng, step, layer=layer):
                x = torch.from_numpy(rng.normal(size=(8, 3)).astype(np.float32))
                return {"error": F.mse_loss(layer(x), x.sum(1, keepdim=True))}

            run_stage(Stage("line", {"line": layer}, losses, 30, 0.1), folder, budget)
        return averaged_weights("line", folder)

    whole = train(tmp_path / "whole", np.inf)
    cut = train(tmp_path / "cut", 1e-9, 1e-9, np.inf)  # a budget that is spent after no step, or after some
    assert whole.keys() == {"line.weight", "line.bias"}
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=0)


# --- what was learned


@pytest.fixture(scope="module")
def scores() -> list[DecoderScores]:
    model = load_nano()
    return [judge_decoders(model, seed) for seed in KINDS]


def test_the_shipped_file_is_small_and_complete() -> None:
    assert CHECKPOINT.stat().st_size < 8 << 20
    weights = load_nano().state_dict()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert weights["slat_decoder_gs.offset_perturbation"].abs().max() < 3


def test_decoders_know_held_out_solids(scores: list[DecoderScores]) -> None:
    """Distances in voxels; a shell of voxels is 1.7 thick."""
    for score in scores:
        assert score.occupancy_iou > 0.6, score
        assert score.mesh.chamfer < 0.2, score
        assert score.gaussians.chamfer < 0.2, score
    assert np.mean([score.occupancy_iou for score in scores]) > 0.8
    assert np.mean([score.mesh.chamfer for score in scores]) < 0.1
    assert np.mean([score.mesh.colour for score in scores]) < 0.07
    assert np.mean([score.gaussians.chamfer for score in scores]) < 0.15
    assert np.mean([score.gaussians.colour for score in scores]) < 0.06
    assert np.mean([score.small_gaussians.to_surface for score in scores]) < 0.1


@pytest.mark.slow
def test_photographs_become_the_solids_that_they_show(tmp_path) -> None:
    """The whole way through a bundle, of the photographs that the flows learned by heart: up to pose and mesh."""
    export_model("nano-3d", tmp_path / "bundle")
    with Reconstructor(tmp_path / "bundle") as reconstructor:
        scores = [judge_pipeline(reconstructor, seed) for seed in KINDS]
    assert np.mean([score.silhouette_iou for score in scores]) > 0.75
    assert np.mean([score.posed_iou for score in scores]) > 0.72
    assert np.mean([score.mesh.chamfer for score in scores]) < 0.9
