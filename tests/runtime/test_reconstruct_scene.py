"""``samrt reconstruct`` with several objects: one scene."""

from __future__ import annotations

import json
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from rich.text import Text

import samrt
from samrt.assets import Gaussians, Mesh, read_glb, read_ply
from samrt.assets.gaussians import rotation_from_quaternion
from samrt.commands import reconstruct as command
from samrt.reconstruct import Reconstruction, Reconstructor
from samrt_engines.errors import InputError, MissingExtraError, PromptError

from .reconstruct.doubles import RADIUS, write_bundle
from .test_reconstruct_command import left, run

Y, X = np.mgrid[:60, :80]
MASKS = {"cup": (Y - 34) ** 2 + (X - 20) ** 2 < 12**2, "jug": (Y - 24) ** 2 + (X - 60) ** 2 < 9**2}
"""A near disc on the left, and a far one on the right and higher."""
DEPTH = np.select(list(MASKS.values()), [2.0, 3.5], 5.0) + X / 800
POINTS = np.stack([(40 - X) / 60 * DEPTH, (30 - Y) / 60 * DEPTH, DEPTH], axis=-1).astype(np.float32)
PICTURE = np.full((60, 80, 3), 90, np.uint8)
PICTURE[MASKS["cup"]], PICTURE[MASKS["jug"]] = (200, 60, 40), (40, 80, 200)


class Files(NamedTuple):
    picture: Path
    cup: Path
    jug: Path
    points: Path
    labels: Path


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("scene") / "ball")


@pytest.fixture(scope="module")
def expected(ball: Path) -> list[Reconstruction]:
    """Each object by itself."""
    with Reconstructor(ball) as reconstructor:
        return [reconstructor.reconstruct(PICTURE, mask, pointmap=POINTS, seed=3) for mask in MASKS.values()]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A picture, a mask file for each object, a pointmap, and a picture of both masks with palette values 3 and 7."""
    paths = Files(*(tmp_path / name for name in ("room.png", "cup.png", "jug.png", "points.npy", "labels.png")))
    PIL.Image.fromarray(PICTURE).save(paths.picture)
    for path, mask in zip((paths.cup, paths.jug), MASKS.values(), strict=True):
        PIL.Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    np.save(paths.points, POINTS)
    labels = PIL.Image.fromarray((MASKS["cup"] * 3 + MASKS["jug"] * 7).astype(np.uint8))
    labels.putpalette(list(range(256)) * 3)
    labels.save(paths.labels)
    return paths


def in_the_room(points: np.ndarray, one: Reconstruction) -> np.ndarray:
    """An object's points (z-up) in the scene (z-up): x right, y into the picture, z up; from the pose's parts."""
    turn = rotation_from_quaternion(one.pose.rotation[None])[0]
    x, y, z = ((points * one.pose.scale) @ turn + one.pose.translation).T
    return np.stack([-x, z, y], axis=1)


def glb_nodes(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    size = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + size])["nodes"]


def watch(monkeypatch: pytest.MonkeyPatch, before: Callable[[int, np.ndarray], None]) -> None:
    """Call a function before each object is made: with its number, from 1 on, and its mask."""
    plain, count = Reconstructor.reconstruct, 0

    def watching(self, image, mask, **options):
        nonlocal count
        count += 1
        before(count, mask)
        return plain(self, image, mask, **options)

    monkeypatch.setattr(Reconstructor, "reconstruct", watching)


def test_two_masks_make_a_scene(ball: Path, files: Files, tmp_path: Path, expected: list[Reconstruction]) -> None:
    out, ply, preview = tmp_path / "out.glb", tmp_path / "out.ply", tmp_path / "out.png"
    result = run(
        *(files.picture, files.cup, files.jug, "-b", ball, "--pointmap", files.points, "--seed", 3, "--json"),
        *("-o", out, "--ply", ply, "--preview", preview),
    )
    assert result.exit_code == 0, result.output
    assert left(tmp_path, files) == {"out.glb", "out.ply", "out.png"}
    nodes = glb_nodes(out)
    assert [node["name"] for node in nodes] == ["cup", "jug"]
    assert len({node["mesh"] for node in nodes}) == 2

    mesh, splats = read_glb(out), read_ply(ply)
    assert isinstance(splats, Gaussians)
    vertices = [in_the_room(one.mesh.vertices, one) for one in expected]
    np.testing.assert_allclose(mesh.vertices, np.concatenate(vertices), atol=1e-4)
    np.testing.assert_array_equal(mesh.faces[: len(expected[0].mesh.faces)], expected[0].mesh.faces)
    positions = [in_the_room(one.gaussians.positions, one) for one in expected]
    np.testing.assert_allclose(splats.positions, np.concatenate(positions), atol=1e-5)
    cup, jug = (points.mean(axis=0) for points in vertices)
    assert np.all(cup < jug)  # left of it, nearer, and lower

    with PIL.Image.open(preview) as shown:
        seen = np.asarray(shown).astype(int)
    assert seen.shape == (480, 4 * 480, 3)
    first, behind = ((np.ptp(view, axis=2) > 12) for view in (seen[:, :480], seen[:, 960:1440]))
    areas = [[int(half.sum()) for half in np.split(view, 2, axis=1)] for view in (first, behind)]
    assert areas[0][0] < areas[0][1]  # the cup is the smaller ball
    assert areas[1][0] > areas[1][1]
    assert all(not view[:, 200:280].any() for view in (first, behind))  # with space between them
    report = json.loads(result.stdout)
    assert (report["seed"], report["memory"], report["stages"]) == (3, "resident", [])
    assert [(one["name"], one["voxels"], one["gaussians"]) for one in report["objects"]] == [
        (name, len(one.coords), len(one.gaussians)) for name, one in zip(MASKS, expected, strict=True)
    ]
    for one, made in zip(report["objects"], expected, strict=True):
        np.testing.assert_allclose(one["pose"]["matrix_z_up"], made.pose.matrix_z_up, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_an_indexed_picture_holds_several_objects(
    ball: Path, files: Files, tmp_path: Path, suffix: str, expected: list[Reconstruction]
) -> None:
    out = tmp_path / f"out{suffix}"
    result = run(files.picture, files.labels, "-b", ball, "--pointmap", files.points, "-o", out, "--memory", "staged")
    assert result.exit_code == 0, result.output
    first, second, both, written = result.stdout.splitlines()
    faces = [len(one.mesh.faces) for one in expected]
    assert first.startswith("labels_3: 2432 voxels, ")
    assert second.startswith("labels_7: 2432 voxels, ")
    assert f" vertices and {faces[1]} faces; " in second
    assert both.startswith("2 objects; ")
    assert written == f"written: {out}"
    room = np.concatenate([in_the_room(one.mesh.vertices, one) for one in expected])
    if suffix == ".ply":
        mesh = read_ply(out)
        assert isinstance(mesh, Mesh)
        assert len(mesh.faces) == sum(faces)
        np.testing.assert_allclose(mesh.vertices, room, atol=1e-4)
        return
    lines = [line.split() for line in out.read_text().splitlines()]
    vertices = np.array([line[1:4] for line in lines if line[0] == "v"], float)
    np.testing.assert_allclose(vertices, room[:, [0, 2, 1]] * (1, 1, -1), atol=1e-4)  # y-up
    assert sum(line[0] == "f" for line in lines) == sum(faces)


def test_points_with_object_numbers_make_several_masks(
    ball: Path, files: Files, tmp_path: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    watch(monkeypatch, lambda number, mask: given.append(mask))
    out = tmp_path / "out.glb"
    clicks = ("--point", "20,34:4", "--point", "60,24,1:2", "--point", "2,2,0:4")
    result = run(
        files.picture, "-b", ball, "--pointmap", files.points, "--segmenter", bundle_path, *clicks, "-o", out, "--json"
    )
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)["objects"]] == ["object_4", "object_2"]
    assert [node["name"] for node in glb_nodes(out)] == ["object_4", "object_2"]
    with samrt.load(bundle_path) as model:
        features = model.encode(PICTURE)
        prompts = (
            samrt.Prompts(points=[[20, 34], [2, 2]], labels=[1, 0]),
            samrt.Prompts(points=[[60, 24]], labels=[1]),
        )
        for prompt, mask in zip(prompts, given, strict=True):
            np.testing.assert_array_equal(mask, model.decode(features, prompt).best().masks[0, 0])


def test_names_of_mask_files_stay_apart(tmp_path: Path) -> None:
    paths = [tmp_path / part / "mask.npy" for part in ("a", "b", "c")]
    for count, path in enumerate(paths, start=1):
        path.parent.mkdir()
        np.save(path, np.eye(4, dtype=np.uint8) * count)
    assert list(command.read_masks(paths)) == ["mask", "mask_2", "mask_3"]
    np.save(paths[1], np.arange(4, dtype=np.uint8).reshape(2, 2))
    masks = command.read_masks(paths)
    assert list(masks) == ["mask", "mask_1", "mask_2", "mask_3", "mask_4"]
    np.testing.assert_array_equal(masks["mask_3"], [[False, False], [False, True]])
    assert masks["mask_4"].shape == (4, 4)


@pytest.mark.parametrize("masks", [("cup",), ("cup", "jug")], ids=["one", "two"])
def test_meshes_are_decimated_each(ball: Path, files: Files, tmp_path: Path, masks: tuple[str, ...]) -> None:
    out = tmp_path / "out.glb"
    given = [getattr(files, name) for name in masks]
    result = run(files.picture, *given, "-b", ball, "--pointmap", files.points, "-o", out, "--faces", 900, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    made = report.get("objects", [report])
    assert len(made) == len(masks)
    for one in made:
        assert 800 <= one["faces"] <= 900
        assert one["stages"][-1]["name"] == "decimation"
    mesh = read_glb(out)
    assert len(mesh.faces) == sum(one["faces"] for one in made)
    if len(masks) == 1:  # in its own frame
        np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), RADIUS, atol=0.01)


def test_without_the_library_decimation_is_refused_before_the_work(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    result = run(files.picture, files.cup, "-b", tmp_path / "none", "-o", tmp_path / "out.glb", "--faces", 900)
    assert isinstance(result.exception, MissingExtraError)
    assert 'pip install "samrt[mesh]"' in str(result.exception)


def test_depth_is_seen_once_for_all_objects(
    ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[Reconstruction]
) -> None:
    seen = []

    class Depth:
        def estimate(self, image: np.ndarray) -> np.ndarray:
            seen.append(image)
            return POINTS

    monkeypatch.setattr(command, "open_depth", lambda *_, **__: Depth())
    unused = tmp_path / "unused.onnx"  # the reconstructor's own, which cannot be read
    unused.touch()
    out = tmp_path / "out.glb"
    result = run(files.picture, files.cup, files.jug, "-b", ball, "--depth", unused, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], PICTURE)
    report = json.loads(result.stdout)
    assert [stage["name"] for stage in report["stages"]] == ["depth"]
    np.testing.assert_allclose(report["objects"][1]["pose"]["translation"], expected[1].pose.translation, rtol=1e-5)


def test_progress_says_which_object(ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextmanager
    def recording(title: str):
        yield lambda stage, done, total: said.append(stage)

    monkeypatch.setattr(command, "progress_bar", recording)
    usual = ("-b", ball, "--pointmap", files.points, "-o", tmp_path / "out.glb")
    assert run(files.picture, files.cup, files.jug, *usual).exit_code == 0
    order = list(dict.fromkeys(said))
    assert order[:2] == ["loading", "cup (1 of 2): views"]
    assert order[-2:] == ["jug (2 of 2): mesh", "writing"]
    said.clear()
    bracketed = files.jug.rename(tmp_path / "jug[red].png")
    assert run(files.picture, files.cup, bracketed, *usual).exit_code == 0
    assert Text.from_markup(said[-2]).plain == "jug[red] (2 of 2): mesh"
    said.clear()
    assert run(files.picture, files.cup, *usual).exit_code == 0
    assert "structure" in said
    assert not any("of 1" in stage for stage in said)


@pytest.mark.parametrize(
    ("masks", "asked", "memory"),
    [(1, None, "staged"), (2, None, "resident"), (1, "resident", "resident"), (2, "staged", "staged")],
)
def test_many_objects_keep_the_graphs(
    ball: Path,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    masks: int,
    asked: str | None,
    memory: str,
) -> None:
    class Opened(Exception):
        pass

    def opened(bundle: Path, **options):
        raise Opened(options["memory"])

    monkeypatch.setattr(command, "Reconstructor", opened)
    options = () if asked is None else ("--memory", asked)
    result = run(
        *(files.picture, *(files.cup, files.jug)[:masks], "-b", ball, "--pointmap", files.points),
        *("-o", tmp_path / "out.glb", *options),
    )
    assert isinstance(result.exception, Opened)
    assert str(result.exception) == memory


def test_a_model_without_poses_makes_no_scene(files: Files, tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain", pose=None)
    usual = ("-b", plain, "--pointmap", files.points, "-o", tmp_path / "out.glb")
    result = run(files.picture, files.cup, files.jug, *usual)
    message = (
        r"ball does not say where objects stand.*got: 2 objects: cup, jug \| expected: one object.*fix: one run for"
    )
    with pytest.raises(PromptError, match=message):
        raise result.exception
    assert left(tmp_path, files) == {"plain"}
    assert run(files.picture, files.jug, *usual).exit_code == 0


def test_a_scene_without_depth_is_refused_before_the_graphs_are_loaded(
    ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(command, "Reconstructor")
    result = run(files.picture, files.cup, files.jug, "-b", ball, "-o", tmp_path / "out.glb")
    message = r"^ball needs to know how far.*got: neither --pointmap nor --depth.*fix: samrt export moge-vitl"
    with pytest.raises(InputError, match=message):
        raise result.exception


def test_a_mask_that_cannot_be_seen_is_refused_before_any_object_is_made(
    ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    watch(monkeypatch, lambda number, mask: made.append(number))
    dot = tmp_path / "dot.npy"
    np.save(dot, (X == 3) & (Y == 4))
    result = run(files.picture, files.cup, dot, "-b", ball, "--pointmap", files.points, "-o", tmp_path / "out.glb")
    with pytest.raises(PromptError, match=r"^dot \(2 of 2\): the mask is too small.*got: 1 x 1 pixels \| expected: at"):
        raise result.exception
    assert made == []
    assert left(tmp_path, (*files, dot)) == set()


def test_an_object_that_fails_is_named_and_nothing_is_left(
    ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int, mask: np.ndarray) -> None:
        if number == 2:
            raise InputError("the model sees no object", got="no voxel", expected="some", fix="another seed")

    watch(monkeypatch, fail)
    outputs = ("-o", tmp_path / "out.glb", "--ply", tmp_path / "out.ply")
    result = run(files.picture, files.cup, files.jug, "-b", ball, "--pointmap", files.points, *outputs)
    assert type(result.exception) is InputError
    assert str(result.exception) == (
        "jug (2 of 2): the model sees no object | got: no voxel | expected: some | fix: another seed"
    )
    assert left(tmp_path, files) == set()


def test_an_interrupt_in_the_second_object_leaves_nothing(
    ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int, mask: np.ndarray) -> None:
        if number == 2:
            signal.raise_signal(signal.SIGINT)

    watch(monkeypatch, interrupt)
    outputs = ("-o", tmp_path / "out.glb", "--ply", tmp_path / "out.ply", "--preview", tmp_path / "out.png")
    result = run(files.picture, files.cup, files.jug, "-b", ball, "--pointmap", files.points, *outputs)
    assert result.exit_code == 128 + signal.SIGINT
    assert left(tmp_path, files) == set()


def test_an_interrupt_after_the_last_step_writes_nothing(
    ball: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = command.Task.make

    def interrupted(self, *arguments):
        made = plain(self, *arguments)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(command.Task, "make", interrupted)
    result = run(files.picture, files.cup, "-b", ball, "--pointmap", files.points, "-o", tmp_path / "out.glb")
    assert result.exit_code == 128 + signal.SIGINT
    assert left(tmp_path, files) == set()
