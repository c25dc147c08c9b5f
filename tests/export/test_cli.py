"""The exporter's commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from samrt import BundleError, CheckpointError, ExportError
from samrt.cli import build_app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_models_lists_all_nine() -> None:
    rows = json.loads(run("models", "--json").stdout)
    assert [row["model"] for row in rows] == [
        *(
            f"{version}-hiera-{size}"
            for version in ("sam2.1", "sam2")
            for size in ("tiny", "small", "base-plus", "large")
        ),
        "nano",
    ]
    assert "facebook/sam2.1-hiera-large" in run("models").stdout


def test_verify_passes_on_a_sound_bundle_and_reports(nano_bundle: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    result = run("verify", nano_bundle, "--json", "--junit", junit)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"]
    assert {row["form"] for row in report["rows"]} == {"fp32", "fp32 for onnxruntime-cpu"}
    suite = ElementTree.parse(junit).getroot()
    assert suite.attrib["tests"] == str(len(report["rows"]))
    assert suite.attrib["failures"] == "0"


def test_verify_refuses_a_changed_file(nano_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(nano_bundle, copy)
    content = bytearray((copy / "prompt_encoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "prompt_encoder.onnx").write_bytes(content)
    result = run("verify", copy)
    assert isinstance(result.exception, BundleError)
    assert "differs from the manifest" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["sam2.1-tiny"], ExportError, "sam2.1-hiera-tiny"),
        (["sam2.1-hiera-tiny"], CheckpointError, "--hub facebook/sam2.1-hiera-tiny"),
        (["nano", "--random-weights", "0", "--hub", "x/y"], CheckpointError, "several sources"),
        (["nano", "--precision", "fp4"], ExportError, "fp32"),
        (["nano", "--checkpoint", "no-such.pt"], CheckpointError, "no checkpoint at no-such.pt"),
    ],
)
def test_export_refuses_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    result = run("export", *arguments, "-o", tmp_path / "bundle")
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept(nano_bundle: Path) -> None:
    before = (nano_bundle / "manifest.json").read_bytes()
    result = run("export", "nano", "-o", nano_bundle)
    assert isinstance(result.exception, BundleError)
    assert "--overwrite" in str(result.exception)
    assert (nano_bundle / "manifest.json").read_bytes() == before


def test_bench_against_pytorch(nano_bundle: Path) -> None:
    result = run("bench", nano_bundle, "--against", "pytorch", "--runs", "5", "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    rows = [row for row in json.loads(result.stdout)["rows"] if row["contender"] == "pytorch"]
    assert [row["task"] for row in rows] == ["image_encoder", "prompt_encoder", "mask_decoder"]
    assert all(row["relative_l2"] <= 1e-5 for row in rows)
