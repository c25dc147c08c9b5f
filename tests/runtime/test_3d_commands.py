"""`samrt info` and `samrt bench` on a bundle of a model that makes 3D."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import samrt
from samrt.cli import build_app
from samrt_engines.errors import InputError

from .reconstruct.doubles import write_bundle


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("commands") / "ball", without=("slat_gs", "slat_mesh_attr"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_info_tells_the_sizes_of_a_model_that_makes_3d(ball: Path) -> None:
    document = json.loads(run("info", ball, "--json").stdout)
    assert document["input_hw"] is None
    assert document["reconstruction"]["grid"] == 16
    assert "ball  views of 28 px, 16^3 voxels, mesh of 64^3, reconstruction" in run("info", ball).stdout


def test_bench_measures_the_stages(ball: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    result = run("bench", ball, "--voxels", 300, "--device", "cpu", "--threads", 1, "--runs", 5, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["voxels"] == 300
    names = ["dino", "ss_cond", "slat_cond", "ss_flow", "ss_decoder", "slat_flow", "slat_mesh_trunk", "slat_mesh_up"]
    assert [stage["name"] for stage in report["stages"]] == [*names, "index maps", "surface"]
    assert "| ss_flow | 11 | " in out.read_text()


def test_bench_refuses_a_report_it_does_not_make(ball: Path, tmp_path: Path) -> None:
    result = run("bench", ball, "-o", tmp_path / "report.html")
    assert isinstance(result.exception, InputError)
    assert "unknown kind of report for 3D | got: 'report.html' | expected: a name ending in .md or .json" in str(
        result.exception
    )


def test_reconstruct_is_a_command_and_its_classes_are_public() -> None:
    assert run("reconstruct", "--help").exit_code == 0
    assert {"Cancelled", "Reconstruction", "Reconstructor"} <= set(dir(samrt))
    assert samrt.Reconstructor.__module__ == "samrt.reconstruct.reconstructor"
    assert issubclass(samrt.Cancelled, samrt.SamrtError)
