"""The exporter's commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from samrt import BackendError, BundleError, CheckpointError, ExportError
from samrt.cli import build_app
from samrt.masks import upscale_logits
from samrt.numbers import ImageNumbers
from samrt.transforms import Frame, image_to_input
from samrt_export import reference


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_models_lists_all_of_them() -> None:
    listed = [row["model"] for row in json.loads(run("models", "--json").stdout)]
    assert listed == [
        *(f"sam-vit-{size}" for size in "blh"),
        *(f"sam-hq-vit-{size}" for size in ("b", "l", "h", "tiny")),
        "mobile-sam",
        "efficient-sam-ti",
        "efficient-sam-s",
        "fast-sam-s",
        "fast-sam-x",
        *(
            f"{version}-hiera-{size}"
            for version in ("sam2.1", "sam2")
            for size in ("tiny", "small", "base-plus", "large")
        ),
        "nano",
        "edgetam",
        "sam3d-objects",
        "nano-3d",
        "trellis-image-large",
        "moge-vitl",
    ]
    with_toys = [row["model"] for row in json.loads(run("models", "--toys", "--json").stdout)]
    assert [model for model in with_toys if not model.endswith("-toy")] == listed
    assert {"sam-vit-b-toy", "mobile-sam-toy", "sam3d-objects-toy"} < set(with_toys)
    assert "facebook/sam2.1-hiera-large" in run("models").stdout


def test_verify_passes_on_a_sound_bundle_and_reports(nano_bundle: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    result = run("verify", nano_bundle, "--json", "--junit", junit)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"]
    targeted = {"fp32 for onnxruntime-cpu", "fp32 for openvino", "fp32 for onnxruntime-cpu, openvino"}
    assert {row["form"] for row in report["rows"]} == {"fp32", *targeted}
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
    """Every graph and batch, and every whole task, has a row of both."""
    arguments = ("--runs", "5", "--seconds", "1", "--threads", "1", "--json")
    result = run("bench", nano_bundle, "--against", "pytorch", *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows = [row for row in report["rows"] if row["contender"] == "pytorch"]
    ours = [row for row in report["rows"] if row["contender"] == "samrt"]
    assert [(row["task"], row["batch"]) for row in rows] == [(row["task"], row["batch"]) for row in ours]
    assert {(row["task"], row["batch"]) for row in rows if row["kind"] == "graph"} == {
        *(("image_encoder", batch) for batch in (1, 2, 4)),
        *((graph, batch) for graph in ("prompt_encoder", "mask_decoder") for batch in (1, 4, 16)),
    }
    compared = [row for row in rows if row["kind"] == "graph" or row["task"] == "encode"]
    assert all(0 < row["relative_l2"] <= 1e-5 for row in compared)
    masks = [row["mask_iou"] for row in rows if row not in compared]
    assert len(masks) == 4
    assert all(iou >= 0.999 for iou in masks)
    assert report["processes"]["pytorch"]["rss_peak_mib"] > report["processes"]["samrt"]["rss_peak_mib"]
    assert report["skipped"] == []


@pytest.mark.parametrize("hw", [(48, 64), (300, 200), (256, 256)])
def test_pytorch_reads_pictures_as_samrt_does(hw: tuple[int, int]) -> None:
    """Resized and padded by torch or by samrt: the same input, for both rules."""
    picture = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    for resize in ("stretch", "longest_side"):
        numbers = ImageNumbers((256, 256), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), resize, antialias=True)  # type: ignore[arg-type]
        ours = image_to_input(picture, numbers)
        theirs = reference.input_from_picture(torch.from_numpy(picture), numbers)[0].numpy()
        np.testing.assert_allclose(theirs, ours, atol=0.01)  # of 255
        logits = np.random.default_rng(1).normal(size=(1, 2, 64, 64)).astype(np.float32)
        frame = Frame(hw, numbers)
        resized = reference.picture_logits(torch.from_numpy(logits), frame).numpy()
        np.testing.assert_allclose(resized, upscale_logits(logits, hw, frame), atol=1e-4)


def test_a_compiler_that_fails_is_a_reason(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(module: object) -> Callable[..., NoReturn]:
        def fail(*arguments: object) -> NoReturn:
            raise RuntimeError("\nNo working C++ compiler found\nset TORCHDYNAMO_VERBOSE=1")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    opened = reference.open_reference(nano_bundle, mode="compile")
    image = np.zeros((1, 256, 256, 3), np.float32)
    message = r"torch.compile cannot compile or run image_encoder \| got: No working C\+\+ compiler found$"
    with pytest.raises(BackendError, match=message):
        opened.run_graph("image_encoder", {"image": image})


@pytest.mark.slow
def test_a_compiled_reference_agrees(nano_bundle: Path) -> None:
    """Minutes on few cores: the compiler builds every graph."""
    arguments = ("--runs", "5", "--seconds", "1", "--against", "pytorch-compile", "--json")
    report = json.loads(run("bench", nano_bundle, *arguments).stdout)
    rows = [row for row in report["rows"] if row["contender"] == "pytorch-compile"]
    assert rows or report["skipped"]
    assert all(row["relative_l2"] <= 1e-5 for row in rows if row["relative_l2"] is not None)


def test_an_unknown_mode_is_refused(nano_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"got: 'pytorch-magic' \| expected: pytorch, pytorch-compile"):
        reference.open_reference(nano_bundle, mode="magic")
