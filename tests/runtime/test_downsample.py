"""``samrt downsample``: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from samrt.assets import (
    Gaussians,
    Mesh,
    downsample_random,
    downsample_uniform,
    downsample_voxel,
    read_glb,
    read_ply,
    write_glb,
    write_ply,
)
from samrt.commands import downsample
from samrt_engines.errors import InputError

RANDOM = np.random.default_rng(0)
POINTS = Mesh.points(RANDOM.uniform(-0.5, 0.5, (400, 3)), RANDOM.random((400, 3)))
GAUSSIANS = Gaussians(
    RANDOM.uniform(-0.5, 0.5, (400, 3)),
    RANDOM.normal(size=(400, 3)),
    RANDOM.uniform(0.1, 0.9, 400),
    RANDOM.uniform(0.01, 0.02, (400, 3)),
    RANDOM.normal(size=(400, 4)),
)


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)  # as in the whole program, the command has a name
    downsample.register(app)
    return CliRunner().invoke(app, ["downsample", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--voxel", 0.3], downsample_voxel(GAUSSIANS, 0.3)),
        (["--uniform", 2], downsample_uniform(GAUSSIANS, 2)),
        (["--random", 0.5], downsample_random(GAUSSIANS, 0.5)),
        (["--random", 0.5, "--seed", 4], downsample_random(GAUSSIANS, 0.5, seed=4)),
    ],
)
def test_gaussians(options: list[object], expected: Gaussians, tmp_path: Path) -> None:
    write_ply(tmp_path / "in.ply", GAUSSIANS)
    result = run(tmp_path / "in.ply", "-o", tmp_path / "out.ply", *options)
    assert result.exit_code == 0, result.output
    again = read_ply(tmp_path / "out.ply")
    assert isinstance(again, Gaussians)
    np.testing.assert_array_equal(again.positions, expected.positions)
    np.testing.assert_allclose(again.scales, expected.scales, rtol=1e-5)
    lines = result.stdout.splitlines()
    assert lines[-2:] == [f"gaussians: 400 to {len(expected)}", f"written: {tmp_path / 'out.ply'}"]


def test_a_glb_to_either_kind(tmp_path: Path) -> None:
    write_glb(tmp_path / "in.glb", POINTS)
    assert run(tmp_path / "in.glb", "-o", tmp_path / "out.ply", "--uniform", 4).exit_code == 0
    assert run(tmp_path / "in.glb", "-o", tmp_path / "out.GLB", "--uniform", 4).exit_code == 0
    for again in (read_ply(tmp_path / "out.ply"), read_glb(tmp_path / "out.GLB")):
        np.testing.assert_array_equal(again.vertices, POINTS.vertices[::4])
        np.testing.assert_allclose(again.colors, POINTS.colors[::4], atol=0.5 / 255 + 1e-6)


def test_json_and_what_is_left_out(tmp_path: Path) -> None:
    write_ply(tmp_path / "in.ply", GAUSSIANS)
    data = (tmp_path / "in.ply").read_bytes()
    (tmp_path / "in.ply").write_bytes(data.replace(b"float nx", b"float f_rest_0"))
    result = run(tmp_path / "in.ply", "-o", tmp_path / "out.ply", "--uniform", 2, "--json")
    out = str(tmp_path / "out.ply")
    assert json.loads(result.stdout) == {
        "out": out,
        "kind": "gaussians",
        "before": 400,
        "after": 200,
        "dropped": ["f_rest_0"],
    }
    result = run(tmp_path / "in.ply", "-o", tmp_path / "out.ply", "--uniform", 2)
    assert result.stdout.splitlines()[0] == "left out: f_rest_0"


@pytest.mark.parametrize(
    ("source", "out", "options", "message"),
    [
        (
            "in.ply",
            "out.ply",
            [],
            r"which points to keep is not clear \| got: none of them \| expected: one of --voxel",
        ),
        ("in.ply", "out.ply", ["--voxel", 1, "--random", 0.5], "got: --voxel and --random"),
        ("in.ply", "out.ply", ["--voxel", 0], r"the voxel size is out of range \| got: 0.0"),
        ("in.ply", "out.ply", ["--voxel", -1], "got: -1.0"),
        ("in.ply", "out.ply", ["--uniform", 0], "the step is out of range"),
        ("in.ply", "out.ply", ["--random", 0.0001], "no point would be left"),
        ("in.ply", "out.ply", ["--voxel", 1, "--seed", 3], r"--seed without --random \| got: --voxel"),
        ("in.ply", "out.glb", ["--voxel", 1], r"a GLB holds no Gaussians .* fix: -o OUT.ply"),
        ("in.ply", "out.obj", ["--voxel", 1], r"unknown kind of file \| got: 'out.obj' \| expected: a name ending in"),
        ("in.stl", "out.ply", ["--voxel", 1], "got: 'in.stl'"),
        ("absent.ply", "out.ply", ["--voxel", 1], r"cannot read .*absent.ply \| got: no such file"),
        ("in.ply", "absent/out.ply", ["--voxel", 1], "got: no folder"),
    ],
)
def test_refused(source: str, out: str, options: list[object], message: str, tmp_path: Path) -> None:
    write_ply(tmp_path / "in.ply", GAUSSIANS)
    result = run(tmp_path / source, "-o", tmp_path / out, *options)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert [path.name for path in tmp_path.iterdir()] == ["in.ply"]
