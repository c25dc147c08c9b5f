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
from samrt.commands import doctor
from samrt.commands.output import print_json
from samrt.commands.segment import read_prompts
from samrt_engines.backends import BackendInfo


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


@pytest.mark.parametrize("options", [[], ["--single"]])
def test_segment_writes_the_hq_mask_alone(
    hq_bundle_path: Path, picture_path: Path, picture: np.ndarray, options: list[str]
) -> None:
    out = picture_path.with_name("mask.npy")
    arguments = ("--point", "32,24", "--hq-token-only", *options, "-o", out, "--json")
    result = run("segment", picture_path, "-b", hq_bundle_path, *arguments)
    assert result.exit_code == 0, result.output
    with samrt.load(hq_bundle_path) as model:
        prompts = samrt.Prompts(points=[[32, 24]], labels=[1])
        expected = model.decode(model.encode(picture), prompts, not options, hq_token_only=True)
    np.testing.assert_array_equal(np.load(out), expected.masks[:, 0])
    assert json.loads(result.stdout)["prompts"][0]["score"] == pytest.approx(float(expected.scores[0, 0]))


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
        (
            ["--point", "10,10,0.5"],
            "label of --point is not a whole number | got: '10,10,0.5' | expected: 0 (not on it) or 1 (on it)",
        ),
        (["--point", "10,10,1e0"], "not a whole number"),
        (["--point", "10,10,nan"], "not a whole number"),
        (["--point", "10,10,7"], "unknown label of --point | got: 7 | expected: 0 (not on it) or 1 (on it)"),
        (["--box", "30,20,10,5"], "box"),
        (["--point", "1,1", "--box", "1,1,2,2", "--box", "3,3,4,4"], "several boxes"),
        ([], "prompt"),
        (["--point", "1,1", "--format", "gif"], "unknown --format"),
        (["--point", "1,1", "--hq-token-only"], "cannot give the HQ mask alone"),
        (["--boxes", "boxes.json", "--hq-token-only"], "--boxes with --hq-token-only"),
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


def test_labels_are_read_as_they_stand(bundle_path: Path) -> None:
    with samrt.load(bundle_path, threads=1) as model:
        prompts = read_prompts(["10,20.5", "1,2,0", "3,4, 1"], [], None, model)
    np.testing.assert_array_equal(prompts.points, [[[10, 20.5], [1, 2], [3, 4]]])
    np.testing.assert_array_equal(prompts.labels, [[1, 0, 1]])


@pytest.mark.parametrize("gpus", [0, 1])
def test_doctor_recommends_what_would_help_here(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """TensorRT helps where a GPU is, and is no problem where none is."""
    missing = BackendInfo("tensorrt", None, problem="not installed", fix='pip install "samrt[tensorrt]"')
    monkeypatch.setattr(doctor, "cuda_device_count", lambda: gpus)
    monkeypatch.setattr(doctor, "available_backends", lambda: (missing,))
    (backend,) = json.loads(run("doctor", "--json").stdout)["backends"]
    assert backend["fix"] == (missing.fix if gpus else None)
    assert ("samrt[tensorrt]" in run("doctor").stdout) == bool(gpus)


def test_json_is_json_whatever_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"inf": float("inf"), "rows": [float("nan"), (np.float64("-inf"), 1.5)], "text": "NaN"})
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document == {"inf": None, "rows": [None, [None, 1.5]], "text": "NaN"}


HIDING = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))
from samrt.cli import main
sys.argv = ["samrt", *{arguments!r}]
main()
"""
EXTRA = ("torch", "onnx", "onnxscript", "safetensors")


def run_without(hidden: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in a process where some packages cannot be imported."""
    program = HIDING.format(hidden=hidden, arguments=[str(argument) for argument in arguments])
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("hidden", "arguments"),
    [
        (EXTRA, ["export", "nano", "-o", "OUT"]),
        (EXTRA, ["verify", "OUT"]),
        (EXTRA, ["models"]),
        (EXTRA, ["demo", "-o", "OUT"]),
        (("onnx",), ["export", "nano", "-o", "OUT"]),
        (("onnxscript",), ["demo", "-o", "OUT"]),
        (("safetensors",), ["verify", "OUT"]),
    ],
)
def test_without_the_export_extra_its_commands_say_so(
    tmp_path: Path, hidden: tuple[str, ...], arguments: list[str]
) -> None:
    out = tmp_path / "out"
    done = run_without(hidden, *(out if argument == "OUT" else argument for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: the package {hidden[0]} is needed for samrt {arguments[0]}")
    assert 'fix: pip install "samrt[export]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_without_the_export_extra_the_rest_works(bundle_path: Path, picture_path: Path) -> None:
    out = picture_path.with_name("mask.npy")
    done = run_without(EXTRA, "segment", picture_path, "-b", bundle_path, "--point", "32,24", "-o", out)
    assert done.returncode == 0, done.stderr
    assert np.load(out).shape == (1, 48, 64)
    for arguments in (["info", bundle_path], ["doctor"], ["--help"], ["export", "--help"]):
        done = run_without(EXTRA, *arguments)
        assert done.returncode == 0, done.stderr
    done = run_without(EXTRA, "bench", bundle_path, "--against", "pytorch")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: the package torch is needed to measure against pytorch")
    assert 'fix: pip install "samrt[export]"' in done.stderr


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
    for command in ("export", "verify", "models", "demo", "info", "doctor", "segment", "track", "bench"):
        assert command in text
