"""The runtime's commands: what they print, write, refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner, Result

import samrt
from samrt.cli import build_app


@pytest.fixture
def picture_path(tmp_path: Path, picture: np.ndarray) -> Path:
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(picture).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_segment_writes_the_models_mask(bundle_path: Path, picture_path: Path, picture: np.ndarray) -> None:
    out = picture_path.with_name("mask.npy")
    result = run("segment", picture_path, "-b", bundle_path, "--point", "32,24", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    with samrt.load(bundle_path) as model:
        expected = model.decode(model.encode(picture), samrt.Prompts(points=[[32, 24]], labels=[1])).best()
    np.testing.assert_array_equal(np.load(out), expected.masks[:, 0])
    report = json.loads(result.stdout)
    assert report["provider"] == "CPUExecutionProvider"
    assert report["prompts"][0]["score"] == pytest.approx(float(expected.scores[0, 0]))


@pytest.mark.parametrize(("kind", "channels"), [("overlay", 3), ("mask", 1), ("cutout", 4)])
def test_segment_formats(bundle_path: Path, picture_path: Path, kind: str, channels: int) -> None:
    out = picture_path.with_name("out.png")
    result = run("segment", picture_path, "-b", bundle_path, "--box", "16,12,47,35", "--format", kind, "-o", out)
    assert result.exit_code == 0, result.output
    with PIL.Image.open(out) as written:
        assert written.size == (64, 48)
        assert len(written.getbands()) == channels
    assert [path.name for path in out.parent.glob(".*")] == []


def test_a_mask_picture_is_a_prompt(bundle_path: Path, picture_path: Path) -> None:
    out = picture_path.with_name("out.png")
    assert run("segment", picture_path, "-b", bundle_path, "--mask", picture_path, "-o", out).exit_code == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "1"], "cannot read --point"),
        (["--point", "nan,1"], "finite"),
        (["--point", "500,1"], "outside the picture"),
        (["--box", "30,20,10,5"], "box"),
        (["--point", "1,1", "--box", "1,1,2,2", "--box", "3,3,4,4"], "several boxes"),
        ([], "prompt"),
        (["--point", "1,1", "--format", "gif"], "unknown --format"),
    ],
)
def test_segment_refuses(bundle_path: Path, picture_path: Path, arguments: list[str], message: str) -> None:
    out = picture_path.with_name("out.png")
    result = run("segment", picture_path, "-b", bundle_path, *arguments, "-o", out)
    assert isinstance(result.exception, samrt.SamrtError)
    assert message in str(result.exception)
    assert not out.exists()


def test_info_tells_what_the_bundle_holds(bundle_path: Path) -> None:
    document = json.loads(run("info", bundle_path, "--json").stdout)
    assert set(document["graphs"]) == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert (
        document["graphs"]["image_encoder"]["forms"][0]["bytes"] == (bundle_path / "image_encoder.onnx").stat().st_size
    )
    text = run("info", bundle_path).stdout
    assert document["model"] in text
    assert "image_encoder.onnx" in text


def test_doctor_names_what_really_is_there() -> None:
    document = json.loads(run("doctor", "--json").stdout)
    onnxruntime = next(backend for backend in document["backends"] if backend["name"] == "onnxruntime")
    assert "CPUExecutionProvider" in onnxruntime["providers"]
    assert document["samrt"] == samrt.__version__
    assert "onnxruntime" in run("doctor").stdout


def test_errors_are_one_message_and_exit_code_2(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "samrt", "info", str(tmp_path / "nothing")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot open the bundle")
    assert "fix: samrt export MODEL" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    for command in ("export", "verify", "models", "demo", "info", "doctor", "segment", "bench"):
        assert command in text
