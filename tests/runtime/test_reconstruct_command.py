"""``samrt reconstruct``: what it writes, says and refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import typer
from typer.testing import CliRunner, Result

import samrt
from samrt.assets import Gaussians, Mesh, read_glb, read_ply
from samrt.commands import reconstruct as command
from samrt.reconstruct import Reconstruction, Reconstructor
from samrt_engines.errors import InputError

from .reconstruct.doubles import RADIUS, scene, write_bundle

PICTURE, MASK, POINTS = scene()


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("command") / "ball")


@pytest.fixture(scope="module")
def expected(ball: Path) -> Reconstruction:
    with Reconstructor(ball) as reconstructor:
        return reconstructor.reconstruct(PICTURE, MASK, pointmap=POINTS, seed=3)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A picture, a mask and a pointmap."""
    paths = tmp_path / "picture.png", tmp_path / "mask.png", tmp_path / "points.npy"
    PIL.Image.fromarray(PICTURE).save(paths[0])
    PIL.Image.fromarray(MASK.astype(np.uint8) * 255).save(paths[1])
    np.save(paths[2], POINTS)
    return paths


def run(*arguments: object) -> Result:
    app = typer.Typer()
    command.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def left(folder: Path, files: tuple[Path, ...]) -> set[str]:
    """Names of what lies in a folder beside the inputs."""
    return {path.name for path in folder.iterdir()} - {path.name for path in files}


def test_a_mesh_gaussians_and_a_preview_are_written(
    ball: Path, files: tuple[Path, Path, Path], tmp_path: Path, expected: Reconstruction
) -> None:
    picture, mask, points = files
    out, ply, preview = tmp_path / "out.glb", tmp_path / "out.ply", tmp_path / "out.png"
    result = run(
        picture,
        mask,
        "-b",
        ball,
        "--pointmap",
        points,
        "-o",
        out,
        "--ply",
        ply,
        "--preview",
        preview,
        "--seed",
        3,
        "--json",
    )
    assert result.exit_code == 0, result.output
    assert left(tmp_path, files) == {"out.glb", "out.ply", "out.png"}
    mesh = read_glb(out)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), RADIUS, atol=5e-4)
    np.testing.assert_array_equal(mesh.faces, expected.mesh.faces)
    np.testing.assert_allclose(mesh.colors, expected.mesh.colors, atol=1 / 255)
    splats = read_ply(ply)
    assert isinstance(splats, Gaussians)
    np.testing.assert_allclose(splats.positions, expected.gaussians.positions, atol=1e-6)
    with PIL.Image.open(preview) as shown:
        seen = np.asarray(shown)
    assert seen.std() > 5
    report = json.loads(result.stdout)
    assert report["voxels"] == len(expected.coords)
    assert report["gaussians"] == len(expected.gaussians)
    assert report["seed"] == 3
    np.testing.assert_allclose(report["pose"]["matrix_y_up"], expected.pose.matrix_y_up, rtol=1e-6)
    assert [stage["name"] for stage in report["stages"]] == [stage.name for stage in expected.stages]
    counts = {"voxels", "shrunk", "vertices", "faces", "gaussians"}
    assert set(report) == {"files", "seed", *counts, "pose", "stages"}


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_a_mesh_alone_makes_no_gaussians(
    ball: Path, files: tuple[Path, Path, Path], tmp_path: Path, suffix: str, expected: Reconstruction
) -> None:
    picture, mask, points = files
    out = tmp_path / f"out{suffix}"
    result = run(picture, mask, "-b", ball, "--pointmap", points, "-o", out, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert f"2432 voxels, {len(expected.mesh)} vertices and {len(expected.mesh.faces)} faces; " in result.stdout
    assert "Gaussians" not in result.stdout
    assert f"written: {out}" in result.stdout
    if suffix == ".ply":
        written = read_ply(out)
        assert isinstance(written, Mesh)
        np.testing.assert_allclose(written.vertices, expected.mesh.vertices, atol=1e-6)
    else:
        assert sum(line.startswith("f ") for line in out.read_text().splitlines()) == len(expected.mesh.faces)


def test_gaussians_alone_make_no_mesh(ball: Path, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    picture, mask, points = files
    ply, preview = tmp_path / "out.ply", tmp_path / "out.png"
    options = ("--pointmap", points, "--ply", ply, "--no-mesh", "--preview", preview, "--json", "--memory", "resident")
    result = run(picture, mask, "-b", ball, *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["vertices"], report["gaussians"]) == (None, 4864)
    assert "mesh features" not in [stage["name"] for stage in report["stages"]]
    assert ply.exists()
    assert preview.exists()


def test_points_and_a_segmenter_make_the_mask(
    ball: Path, files: tuple[Path, Path, Path], tmp_path: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}
    plain = Reconstructor.reconstruct

    def watching(self, image, mask, **options):
        given["mask"] = mask
        return plain(self, image, mask, **options)

    monkeypatch.setattr(Reconstructor, "reconstruct", watching)
    picture, _, points = files
    out = tmp_path / "out.glb"
    result = run(
        picture,
        "-b",
        ball,
        "--pointmap",
        points,
        "--segmenter",
        bundle_path,
        "--point",
        "35,30",
        "--point",
        "2,2,0",
        "-o",
        out,
    )
    assert result.exit_code == 0, result.output
    with samrt.load(bundle_path) as model:
        prompts = samrt.Prompts(points=[[35, 30], [2, 2]], labels=[1, 0])
        expected = model.decode(model.encode(PICTURE), prompts).best().masks[0, 0]
    np.testing.assert_array_equal(given["mask"], expected)
    assert 0 < expected.mean() < 1


def test_what_cannot_be_read_or_written_is_refused_and_nothing_is_left(
    ball: Path, files: tuple[Path, Path, Path], tmp_path: Path, bundle_path: Path
) -> None:
    picture, mask, points = files
    empty, other, text, archive = (tmp_path / name for name in ("empty.png", "other.npy", "text.npy", "archive.npz"))
    PIL.Image.fromarray(np.zeros_like(PICTURE)).save(empty)
    np.save(other, MASK[:, :50])
    text.write_text("no array")
    np.savez(archive, POINTS)
    inputs = (*files, empty, other, text, archive)
    out = tmp_path / "out.glb"
    usual = ("-b", ball, "--pointmap", points)
    cases = (
        ((picture, mask, *usual), r"nothing to write"),
        (
            (picture, mask, *usual, "-o", tmp_path / "out.stl"),
            r"unknown kind of file for -o.*expected: .glb, .obj, .ply",
        ),
        ((picture, mask, *usual, "--ply", tmp_path / "out.glb"), r"unknown kind of file for --ply"),
        ((picture, mask, *usual, "-o", tmp_path / "no" / "out.glb"), r"got: no folder"),
        ((picture, mask, *usual, "-o", out, "--no-mesh"), r"-o is for the mesh"),
        ((picture, mask, *usual, "-o", tmp_path / "a.ply", "--ply", tmp_path / "a.ply"), r"one name for two outputs"),
        ((picture, mask, *usual, "-o", out, "--gaussians", 8), r"unknown --gaussians.*expected: 32 or 4"),
        ((picture, mask, *usual, "-o", out, "--ply", tmp_path / "o.ply", "--gaussians", 4), r"ball has no slat_gs_4"),
        ((picture, *usual, "-o", out), r"not clear where the object is.*got: neither a mask nor --segmenter"),
        ((picture, mask, *usual, "-o", out, "--segmenter", bundle_path), r"got: a mask and --segmenter"),
        ((picture, mask, *usual, "-o", out, "--point", "3,4"), r"--point without --segmenter"),
        ((picture, *usual, "-o", out, "--segmenter", bundle_path), r"--segmenter without --point"),
        (
            (picture, "-b", ball, "-o", out, "--segmenter", bundle_path, "--point", "3,4@2"),
            r"a picture has no frames.*got: 3,4@2.*expected: --point X,Y\[,LABEL\]\[:OBJECT\]",
        ),
        ((picture, mask, *usual, "--ply", tmp_path / "o.ply", "--faces", 900), r"--faces is for the mesh.*without -o"),
        ((picture, empty, *usual, "-o", out), r"there is no mask in .*only background"),
        ((picture, other, *usual, "-o", out), r"the mask is of another size.*got: mask of shape \(60, 50\)"),
        ((picture, mask, "-b", ball, "-o", out), r"needs to know how far away things are"),
        ((picture, mask, "-b", ball, "-o", out, "--pointmap", text), r"cannot read the pointmap"),
        ((picture, mask, "-b", ball, "-o", out, "--pointmap", archive), r"cannot read the pointmap.*got: an archive"),
        ((picture, mask, "-b", ball, "-o", out, "--pointmap", tmp_path / "no.npy"), r"got: No such file"),
        (
            (picture, mask, "-b", ball, "-o", out, "--pointmap", other),
            r"the pointmap does not fit.*got: bool \(60, 50\)",
        ),
        ((picture, mask, "-b", bundle_path, "-o", out), r"makes no 3D"),
        ((tmp_path / "no.png", mask, *usual, "-o", out), r"cannot read .*no.png"),
        ((picture, mask, *usual, "-o", out, "--memory", "swapped"), r"unknown memory.*auto, staged, resident"),
        ((picture, mask, *usual, "-o", out, "--depth", tmp_path / "none"), r"no such source of depth"),
    )
    for arguments, message in cases:
        result = run(*arguments)
        assert isinstance(result.exception, samrt.SamrtError), (arguments, result.output)
        with pytest.raises(samrt.SamrtError, match=message):
            raise result.exception
    assert left(tmp_path, inputs) == {bundle_path.name}


def test_an_interrupt_stops_at_the_next_step_and_leaves_nothing(
    ball: Path, files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Reconstructor.reconstruct

    def interrupted(self, image, mask, *, progress, **options):
        def interrupt(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("structure", 2):
                signal.raise_signal(signal.SIGINT)
            assert stage != "occupancy"
            progress(stage, done, total)

        return plain(self, image, mask, progress=interrupt, **options)

    monkeypatch.setattr(Reconstructor, "reconstruct", interrupted)
    picture, mask, points = files
    out, ply = tmp_path / "out.glb", tmp_path / "out.ply"
    result = run(picture, mask, "-b", ball, "--pointmap", points, "-o", out, "--ply", ply)
    assert result.exit_code == 128 + signal.SIGINT
    assert left(tmp_path, files) == set()


def test_a_full_disk_leaves_no_half_file(
    ball: Path, files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source, target) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    picture, mask, points = files
    result = run(picture, mask, "-b", ball, "--pointmap", points, "-o", tmp_path / "out.glb")
    assert isinstance(result.exception, InputError)
    assert "No space left on device" in str(result.exception)
    assert left(tmp_path, files) == set()
