"""The whole pipeline on graphs whose every number is known."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

import samrt
from samrt.reconstruct import Cancelled, Reconstruction, Reconstructor, stages
from samrt.reconstruct.gaussian_decoding import decode_gaussians
from samrt.reconstruct.pointmap import check_pointmap, make_point_views
from samrt.reconstruct.preprocess import crop_window, make_views, view_object
from samrt.sparse import SparseMaps
from samrt_engines.errors import (
    BackendError,
    BundleError,
    ImageError,
    InputError,
    ManifestError,
    PromptError,
    SamrtError,
)

from . import doubles
from .doubles import GRID, MEAN, NUMBERS, RADIUS, STD, scene, write_bundle

PICTURE, MASK, POINTS = scene()


def _reconstruct(bundle: Path, memory: str = "staged", **options) -> Reconstruction:
    with Reconstructor(bundle, memory=memory) as reconstructor:
        return reconstructor.reconstruct(PICTURE, MASK, **{"pointmap": POINTS, **options})


@pytest.fixture(scope="module")
def ball_result(ball: Path) -> Reconstruction:
    return _reconstruct(ball)


def _conditions() -> tuple[np.ndarray, np.ndarray]:
    """What the graphs make of the picture: (1, 6, 3), (1, 4, 3)."""
    views = make_views(PICTURE, MASK, NUMBERS)
    crop = crop_window(MASK, NUMBERS.crop_scale)
    points = make_point_views(check_pointmap(POINTS, MASK.shape), MASK, crop, NUMBERS.view_px, NUMBERS.point_px)
    middles = (points.points * points.valid[..., None]).mean(axis=(1, 2))
    return np.concatenate([views.mean(axis=(1, 2)), middles])[None], views.max(axis=(1, 2))[None]


def _expected_coords() -> np.ndarray:
    """Occupied voxels: the ball's target, moved by the condition, each octant two voxels wide."""
    field = doubles.shape_target() + doubles.SHAPE_GAIN * _conditions()[0].mean()
    eight = field.reshape(4, 4, 4, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape(8, 8, 8)
    return np.argwhere(eight.repeat(2, 0).repeat(2, 1).repeat(2, 2) > 0)


def _expected_latent(coords: np.ndarray) -> np.ndarray:
    maps = SparseMaps.from_coords(coords.astype(np.int32), grid=GRID)
    coarse = np.concatenate(
        [
            maps.coarse_coords,
            maps.children_inverse,
            (maps.children > 0).sum(axis=1, keepdims=True),
            (maps.coarse_neighbours > 0).sum(axis=1, keepdims=True),
        ],
        axis=1,
    )
    mean = np.full((len(coords), 1), _conditions()[1].mean())
    near = (maps.neighbours > 0).sum(axis=1, keepdims=True)
    return 0.01 * np.concatenate([coarse[maps.parents], near, mean], axis=1) * STD + MEAN


def test_voxels_latents_and_pose_are_the_graphs_answers(ball_result: Reconstruction) -> None:
    np.testing.assert_array_equal(ball_result.coords, _expected_coords())
    assert ball_result.coords.dtype == np.int32
    np.testing.assert_allclose(ball_result.latent, _expected_latent(ball_result.coords), rtol=1e-4, atol=1e-5)
    crop = crop_window(MASK, NUMBERS.crop_scale)
    seen = make_point_views(check_pointmap(POINTS, MASK.shape), MASK, crop, NUMBERS.view_px, NUMBERS.point_px)
    np.testing.assert_allclose(ball_result.pose.rotation, [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(ball_result.pose.scale, seen.scale, rtol=1e-5)
    np.testing.assert_allclose(
        ball_result.pose.translation, np.array([0.1, 0.2, 0.3]) * seen.scale + seen.shift, rtol=1e-5, atol=1e-6
    )
    assert (ball_result.shrunk, ball_result.seed) == (1, 0)


def test_the_mesh_is_the_decoders_ball_in_its_colours(ball_result: Reconstruction) -> None:
    mesh = ball_result.mesh
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), RADIUS, atol=5e-4)
    # closed, and turned outwards: its volume is the ball's
    edges = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    assert set(np.unique(edges, axis=0, return_counts=True)[1].tolist()) == {2}
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    volume = np.einsum("ni,ni->n", a, np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)
    # colour is sigmoid(4 * place) of cubes near by
    expected = 1 / (1 + np.exp(-4 * (mesh.vertices + 0.5)))
    np.testing.assert_allclose(mesh.colors, expected, atol=0.03)


def test_gaussians_are_the_decoders_channels_activated(ball: Path, ball_result: Reconstruction) -> None:
    constants = {
        one.name: numpy_helper.to_array(one) for one in doubles.model("gs", doubles._TEXTS["slat_gs"]).graph.initializer
    }
    channels = ball_result.latent @ constants["mix"]
    offsets, colors, scales, rotations, opacities = np.split(channels, np.cumsum([6, 6, 6, 8]), axis=1)
    count = len(channels)
    raw = {
        "offsets": (np.tanh(offsets) * 0.01).reshape(count, 2, 3),
        "colors": colors.reshape(count, 2, 3),
        "scales": scales.reshape(count, 2, 3),
        "rotations": rotations.reshape(count, 2, 4),
        "opacities": opacities.reshape(count, 2, 1),
    }
    expected = decode_gaussians(raw, ball_result.coords, GRID, NUMBERS.gaussians)
    assert len(ball_result.gaussians) == 2 * count
    for name in ("positions", "colors_dc", "scales", "rotations", "opacities"):
        np.testing.assert_allclose(
            getattr(ball_result.gaussians, name), getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_staged_and_resident_give_the_same_and_hold_one_graph_or_all(ball: Path, monkeypatch) -> None:
    open_now, most, opened = Counter(), Counter(), Counter()
    plain = stages.open_graph

    def counting(bundle, name, **options):
        graph = plain(bundle, name, **options)
        open_now["graphs"] += 1
        opened[name] += 1
        most["graphs"] = max(most["graphs"], open_now["graphs"])
        close = graph.executor.close

        def closing() -> None:
            open_now["graphs"] -= 1
            close()

        monkeypatch.setattr(graph.executor, "close", closing)
        return graph

    monkeypatch.setattr(stages, "open_graph", counting)
    staged = _reconstruct(ball)
    assert (most["graphs"], open_now["graphs"]) == (1, 0)
    opened.clear()
    with Reconstructor(ball, memory="resident") as reconstructor:
        resident = reconstructor.reconstruct(PICTURE, MASK, pointmap=POINTS)
        reconstructor.reconstruct(PICTURE, MASK, pointmap=POINTS, mesh=False)
        assert open_now["graphs"] == 10
        assert set(opened.values()) == {1}
    assert open_now["graphs"] == 0
    np.testing.assert_array_equal(staged.latent, resident.latent)
    np.testing.assert_array_equal(staged.mesh.vertices, resident.mesh.vertices)
    np.testing.assert_array_equal(staged.gaussians.positions, resident.gaussians.positions)


def test_stages_are_told_step_by_step_and_recorded(ball: Path) -> None:
    told = []
    result = _reconstruct(ball, progress=lambda *step: told.append(step), gaussians=False)
    times = [i / 6 / (3 - 2 * i / 6) for i in range(6)]
    assert 6 + sum(t <= 0.5 for t in times) == 11
    assert ("latent", 7, 7) in told
    assert [step for step in told if step[0] == "structure"] == [("structure", done, 11) for done in range(12)]
    records = {one.name: one for one in result.stages}
    assert list(records) == [
        "views", "image features", "structure condition", "latent condition", "structure", "occupancy", "latent",
        "mesh features", "mesh cubes", "surface", "mesh attributes", "mesh",
    ]  # fmt: skip
    assert records["structure"].runs == 11
    assert records["latent"].graph == "slat_flow"
    assert records["latent"].provider == "CPUExecutionProvider"
    maps = SparseMaps.from_coords(result.coords, grid=GRID)
    wanted = ("neighbours", "coarse_neighbours", "children", "children_inverse", "parents", "coarse_coords")
    assert records["latent"].index_map_bytes == sum(getattr(maps, name).nbytes for name in wanted)
    size = (ball / "slat_flow.onnx").stat().st_size
    assert records["latent"].weights_bytes == size
    assert all(one.seconds > 0 for one in result.stages)
    assert result.providers["ss_flow"] == "CPUExecutionProvider"
    assert result.gaussians is None


ALONE = """
import json, sys
import numpy as np
import samrt
bundle, arrays = sys.argv[1], np.load(sys.argv[2])
with samrt.Reconstructor(bundle) as reconstructor:
    made = reconstructor.reconstruct(arrays["picture"], arrays["mask"], pointmap=arrays["points"], exact_memory=True)
print(json.dumps([len(made.coords), {one.name: one.peak_bytes for one in made.stages}]))
"""


def test_memory_of_a_stage_is_measured_exactly_when_asked(ball: Path, tmp_path: Path) -> None:
    """In a process of its own: one that has freed a lot before need not grow."""
    np.savez(tmp_path / "arrays.npz", picture=PICTURE, mask=MASK, points=POINTS)
    command = [sys.executable, "-c", ALONE, str(ball), str(tmp_path / "arrays.npz")]
    voxels, peaks = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    if peaks["mesh cubes"] is None:
        pytest.skip("this system does not tell resident memory")
    floats = voxels * 64 * 12 * 4  # what the mesh decoder returns
    assert floats < peaks["mesh cubes"] < 200 * floats


def test_work_stops_at_the_step_where_it_is_cancelled(ball: Path) -> None:
    told = []

    def cancelled() -> bool:
        return told[-1] == ("structure", 3, 11)

    with Reconstructor(ball) as reconstructor:
        with pytest.raises(Cancelled, match=r"was cancelled.*got: structure, 3 of 11 steps done") as stopped:
            reconstructor.reconstruct(
                PICTURE, MASK, pointmap=POINTS, progress=lambda *step: told.append(step), cancelled=cancelled
            )
        assert isinstance(stopped.value, SamrtError)
        assert stopped.value.code == "cancelled"
        assert told[-1] == ("structure", 3, 11)
        told.append(("again", 0, 0))
        assert reconstructor.reconstruct(PICTURE, MASK, pointmap=POINTS, mesh=False).mesh is None


def test_seeds_repeat_and_noise_may_be_the_callers(tmp_path: Path) -> None:
    # Told half the time that has passed, the flow stops short of its target by a sixth of the way:
    # half is left after the first step, and of that a third, as 1 - 0.5 / (1 - 0.25).
    latent = {**doubles.RECONSTRUCTION["latent"], "steps": 2, "guidance": 0.0, "time_scale": 500.0}
    folder = write_bundle(tmp_path / "short", latent=latent)
    first, again, other = (_reconstruct(folder, seed=seed, mesh=False, gaussians=False) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.latent, again.latent)
    assert not np.allclose(first.latent, other.latent, atol=0.1)
    assert first.seed == 3
    noise = np.random.default_rng(9).normal(size=first.latent.shape).astype(np.float32)
    mine = _reconstruct(folder, noise={"slat": noise}, mesh=False, gaussians=False)
    aim = (_expected_latent(first.coords) - MEAN) / STD
    np.testing.assert_allclose((mine.latent - MEAN) / STD, aim + (noise - aim) / 6, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"noise of 'slat' does not fit.*expected: finite float32 \(2432, 8\)"):
        _reconstruct(folder, noise={"slat": noise[1:]})
    with pytest.raises(
        InputError, match=r"noise of unknown modalities.*got: slatt.*expected: rotation_6d, scale, shape, slat"
    ):
        _reconstruct(folder, noise={"slatt": noise})


def test_the_unconditioned_pass_is_fed_two_tokens_of_zeros(ball: Path, monkeypatch) -> None:
    fed = []
    run = stages.Stage.run

    def watching(stage, feeds, outputs=None):
        fed.append(
            (stage.name, {name: feeds[name] for name in feeds if name.endswith(("_condition", "_time", "_step"))})
        )
        return run(stage, feeds, outputs)

    monkeypatch.setattr(stages.Stage, "run", watching)
    _reconstruct(ball, mesh=False, gaussians=False)
    structure = [feeds for name, feeds in fed if name == "structure"]
    shapes = [feeds["ss_condition"].shape for feeds in structure]
    assert shapes == [(1, 6, 3), (1, 2, 3)] * 5 + [(1, 6, 3)]
    assert not any(feeds["ss_condition"].any() for feeds in structure[1::2])
    times = [i / 6 / (3 - 2 * i / 6) * 1000 for i in range(6)]
    np.testing.assert_allclose([feeds["ss_time"][0] for feeds in structure[::2]], times, rtol=1e-6)
    assert all(feeds["ss_step"] == 0 for feeds in structure)
    fed.clear()
    _reconstruct(ball, mesh=False, gaussians=False, few_steps=True)
    structure = [feeds for name, feeds in fed if name == "structure"]
    assert [feeds["ss_step"][0] for feeds in structure] == [250] * 4
    assert [name for name, _ in fed].count("latent") == 4


def test_steps_are_for_both_flows_or_each(ball: Path) -> None:
    for steps, runs in ((3, (6, 5)), ((2, 5), (4, 8))):
        records = {one.name: one.runs for one in _reconstruct(ball, steps=steps, mesh=False, gaussians=False).stages}
        assert (records["structure"], records["latent"]) == runs


def test_interior_voxels_are_pruned_where_the_model_says_so(tmp_path: Path, ball_result: Reconstruction) -> None:
    pruned = _reconstruct(write_bundle(tmp_path / "shell", prune_interior=True), mesh=False, gaussians=False)
    occupied = np.zeros((GRID + 2,) * 3, bool)
    occupied[tuple(ball_result.coords.T + 1)] = True
    steps = np.indices((3, 3, 3)).reshape(3, 27).T
    inside = np.all([occupied[tuple((ball_result.coords + step).T)] for step in steps], axis=0)
    np.testing.assert_array_equal(pruned.coords, ball_result.coords[~inside])


def test_too_many_voxels_are_halved_and_the_pose_makes_up_for_it(tmp_path: Path, ball_result: Reconstruction) -> None:
    halved = _reconstruct(write_bundle(tmp_path / "few", max_voxels=1000), mesh=False, gaussians=False)
    middle = (ball_result.coords.min(axis=0) + ball_result.coords.max(axis=0)) / 2
    expected = np.unique(np.rint((ball_result.coords - middle) / 2 + middle), axis=0)
    np.testing.assert_array_equal(halved.coords, expected)
    assert halved.shrunk == 2
    np.testing.assert_allclose(halved.pose.scale, 2 * ball_result.pose.scale, rtol=1e-6)
    np.testing.assert_array_equal(halved.pose.translation, ball_result.pose.translation)


def test_an_object_of_too_few_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"too small for slat_flow.*got: 5 voxels.*expected: 8 to 2500"):
        _reconstruct(write_bundle(tmp_path / "five", max_voxels=5))


def test_a_pointmap_may_have_holes_and_may_not_be_missing(ball: Path) -> None:
    holes = POINTS.copy()
    holes[:10], holes[50:, :, 1] = np.inf, np.nan
    assert np.isfinite(_reconstruct(ball, pointmap=holes, mesh=False).pose.translation).all()
    needs = r"ball needs to know how far.*one of three: pointmap=.*x left, y up.*depth=a MoGe bundle; depth=a MoGe-2 ONNX file"
    with pytest.raises(InputError, match=needs):
        _reconstruct(ball, pointmap=None)


def test_requests_that_the_model_cannot_answer_are_refused_before_any_graph_runs(ball: Path, tmp_path: Path) -> None:
    told = []
    short = {**doubles.RECONSTRUCTION["structure"], "shortcut": False}
    plain = write_bundle(tmp_path / "plain", without=("slat_mesh_up",), structure=short)
    for bundle, options, message in (
        (ball, {"gaussians": 4}, r"ball has no slat_gs_4.*expected: graph slat_gs"),
        (ball, {"gaussians": 16}, r"unknown number of Gaussians.*expected: True, 4 or False"),
        (ball, {"steps": 0}, r"number of steps is out of range"),
        (plain, {"few_steps": True}, r"ball was not trained for few steps.*fix: steps=10"),
        (plain, {}, r"ball makes no mesh.*got: no slat_mesh_up.*expected: mesh=False"),
    ):
        with pytest.raises(InputError, match=message):
            _reconstruct(bundle, progress=lambda *step: told.append(step), **options)
    assert told == []


def test_a_model_may_see_one_view_and_no_depth(tmp_path: Path) -> None:
    """As TRELLIS: conditions come straight from the image features, there is no pose, the flow moves a shape alone."""
    dino = """(float[1,28,28,3] pixels) => (float[1,1,3] ss_condition, float[1,1,3] slat_condition) {
        mean = ReduceMean <keepdims=0> (pixels, hw)
        most = ReduceMax <keepdims=0> (pixels, hw)
        ss_condition = Reshape (mean, one)
        slat_condition = Reshape (most, one)
    }"""
    flow = """(float[1,64,8] shape, float[1] ss_time, float[1,ss_tokens,3] ss_condition) => (float[1,64,8] shape_velocity) {
        left = Sub (thousand, ss_time)
        speed = Div (thousand, left)
        mean = ReduceMean <keepdims=0> (ss_condition)
        shift = Mul (mean, shape_gain)
        aim = Add (shape_target, shift)
        way = Sub (aim, shape)
        shape_velocity = Mul (way, speed)
    }"""
    folder = write_bundle(
        tmp_path / "plain",
        without=("ss_cond", "slat_cond"),
        texts={"dino": dino, "ss_flow": flow},
        views=["object"],
        point_px=None,
        pose=None,
    )
    result = _reconstruct(folder, pointmap=None, mesh=False)
    assert result.pose is None
    view = view_object(PICTURE, MASK, NUMBERS.crop_scale, NUMBERS.view_px)
    field = doubles.shape_target() + doubles.SHAPE_GAIN * view.mean()
    assert len(result.coords) == 8 * (field > 0).sum()
    mean = (result.latent[:, 7] - MEAN[7]) / STD[7] * 100
    np.testing.assert_allclose(mean, view.max(axis=(0, 1)).mean(), atol=1e-3)
    names = ["views", "image features", "structure", "occupancy", "latent", "gaussians"]
    assert [one.name for one in result.stages] == names


def test_pictures_and_masks_that_do_not_fit_are_refused(ball: Path) -> None:
    with Reconstructor(ball) as reconstructor:
        for picture, mask, kind, message in (
            (PICTURE, np.zeros_like(MASK), PromptError, "the mask is empty"),
            (PICTURE, MASK[1:], PromptError, "the mask is of another size"),
            (PICTURE.astype(int), MASK, ImageError, "of this type is not understood"),
            (np.zeros((0, 4, 3), np.uint8), MASK, ImageError, "empty"),
        ):
            with pytest.raises(kind, match=message):
                reconstructor.reconstruct(picture, mask, pointmap=POINTS)


def test_a_field_without_a_surface_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "solid", mesh={"resolution": 64, "sdf_bias": 1.0})
    with pytest.raises(InputError, match=r"has no surface.*expected: a field that changes its sign.*mesh=False"):
        _reconstruct(folder)


def test_bundles_of_other_kinds_are_refused(tmp_path: Path, bundle_path: Path) -> None:
    with pytest.raises(BundleError, match=r"makes no 3D.*expected: a bundle with the ability reconstruction"):
        Reconstructor(bundle_path)
    with pytest.raises(ManifestError, match=r"got: no slat_flow"):
        Reconstructor(write_bundle(tmp_path / "half", without=("slat_flow",)))
    with pytest.raises(ManifestError, match=r"got: no ss_condition"):
        Reconstructor(write_bundle(tmp_path / "without condition", without=("ss_cond",)))


def test_arguments_of_the_constructor_are_checked(ball: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown memory.*got: 'swapped'.*expected: staged or resident"):
        Reconstructor(ball, memory="swapped")
    with pytest.raises(InputError, match="no such source of depth"):
        Reconstructor(ball, depth=tmp_path / "nothing")
    with pytest.raises(BundleError, match="sees no depth"):
        Reconstructor(ball, depth=ball)
    reconstructor = Reconstructor(ball)
    reconstructor.close()
    reconstructor.close()
    with pytest.raises(BackendError, match="the reconstructor is closed"):
        reconstructor.reconstruct(PICTURE, MASK, pointmap=POINTS)


def test_a_bundle_that_makes_3d_takes_no_prompts(ball: Path) -> None:
    with pytest.raises(BundleError, match=r"takes no prompts on pictures.*samrt reconstruct"):
        samrt.load(ball)
