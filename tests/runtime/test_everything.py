"""``samrt everything``, and ``samrt segment --boxes``: what they write, print, refuse."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import typer.main
from typer.testing import CliRunner, Result

import samrt
from samrt import PromptError
from samrt.automatic import AutomaticMaskGenerator
from samrt.cli import build_app
from samrt.commands import everything as everything_command
from samrt.commands import segment as segment_command
from samrt.folder import segment_boxes, segment_everything
from samrt.segments import Segments

OPTIONS = ["--points-per-side", "4", "--pred-iou-thresh", "0.5", "--backend", "onnxruntime"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures and a text."""
    root = tmp_path / "pictures"
    root.mkdir()
    for seed, name in enumerate(["a.png", "b.png"]):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        PIL.Image.fromarray(coarse).resize((64, 48), PIL.Image.Resampling.BICUBIC).save(root / name)
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("everything", folder, "-b", bundle_path, "-o", out, *OPTIONS)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("not a picture: notes.txt\n2 pictures: 2 done, ")
    assert "1 other files left out; " in result.stdout
    assert result.stdout.endswith(f"written: {out}\n")
    merged = json.loads((out / "annotations.json").read_text())
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        generator = AutomaticMaskGenerator(model, points_per_side=4, pred_iou_thresh=0.5)
        expected = [generator.segments(samrt.read_image(folder / name)) for name in ("a.png", "b.png")]
    assert all(len(segments) for segments in expected)
    wanted = [row for number, segments in enumerate(expected, 1) for row in segments.to_coco(number)]
    assert [row | {"id": 0} for row in merged["annotations"]] == [row | {"id": 0} for row in wanted]
    assert {"predicted_iou", "stability_score", "point_coords", "crop_box"} <= merged["annotations"][0].keys()
    assert sorted(path.name for path in out.iterdir()) == [
        "a.json",
        "a.png",
        "annotations.json",
        "b.json",
        "b.png",
        "job.json",
    ]


def test_it_goes_on_and_prints_json(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["everything", folder, "-b", bundle_path, "-o", out, *OPTIONS, "--json"]
    first = json.loads(run(*command).stdout)
    (folder / "c.png").write_bytes(b"no picture")
    second = run(*command)
    assert second.exit_code == 1
    report = json.loads(second.stdout)
    assert (first["done"], first["kept"], report["done"], report["kept"]) == (2, 0, 0, 2)
    assert list(report["failures"]) == ["c.png"]
    assert report["ignored"] == ["notes.txt"]
    assert report["out"] == str(out)
    assert "failed: c.png: cannot read" in run(*command[:-1]).stdout


def test_names_that_are_hard_to_print(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    """Bytes that are no characters, and what the progress bar would take for markup."""
    (folder / "[").mkdir()
    (folder / "a.png").rename(folder / "[" / "bold].png")
    (folder / "b.png").rename(folder / os.fsdecode(b"\xff.png"))
    (folder / "notes.txt").rename(folder / os.fsdecode(b"\xfe.txt"))
    (folder / os.fsdecode(b"\xfd.png")).write_bytes(b"broken")
    result = run("everything", folder, "-b", bundle_path, "-o", tmp_path / "out", *OPTIONS)
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("not a picture: \\udcfe.txt\nfailed: \\udcfd.png: cannot read ")
    assert "3 pictures: 2 done" in result.stdout
    assert (tmp_path / "out" / "[" / "bold].json").is_file()


def test_every_official_parameter_is_an_option(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    command: Any = typer.main.get_command(build_app())
    known = {parameter.name for parameter in command.commands["everything"].params}
    parameters = set(inspect.signature(AutomaticMaskGenerator).parameters)
    assert parameters - known == {"model", "output_mode", "point_grids", "multimask_output", "progress"}
    values = {
        "points_per_side": 4,
        "points_per_batch": 3,
        "pred_iou_thresh": 0.25,
        "stability_score_thresh": 0.5,
        "stability_score_offset": 2.0,
        "box_nms_thresh": 0.5,
        "crop_n_layers": 1,
        "crop_nms_thresh": 0.25,
        "crop_overlap_ratio": 0.25,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 5,
    }
    assert values.keys() <= parameters
    options = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    out = tmp_path / "out"
    flags = ["--single", "--use-m2m", "--backend", "onnxruntime", "--format", "coco"]
    assert run("everything", folder / "a.png", "-b", bundle_path, "-o", out, *options, *flags).exit_code == 0
    settings = json.loads((out / "job.json").read_text())["settings"]
    del values["points_per_batch"]
    written = {name: settings[name] for name in values}
    assert written == values
    assert (settings["multimask_output"], settings["use_m2m"], settings["point_grids"]) == (False, True, None)
    assert settings["bundle"] == samrt.load(bundle_path, backend="onnxruntime").digest
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "job.json"]


def test_masks_and_overwrite(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["everything", folder / "a.png", "-b", bundle_path, "-o", out, *OPTIONS]
    assert run(*command, "--format", "masks").exit_code == 0
    count = len(json.loads((out / "a.json").read_text())["annotations"])
    assert sorted(path.name for path in (out / "a").iterdir()) == [f"{index:04d}.png" for index in range(count)]
    again = run(*command, "--points-per-batch", "7", "--format", "masks")
    assert "1 done before" in again.stdout  # changes speed, not results
    refused = run(*command, "--box-nms-thresh", "0.5")
    assert isinstance(refused.exception, samrt.InputError)
    assert "box_nms_thresh 0.5 | expected: box_nms_thresh 0.7 | fix: --overwrite" in str(refused.exception)
    assert run(*command, "--box-nms-thresh", "0.5", "--overwrite", "--format", "coco").exit_code == 0
    assert not (out / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--confidence", "0.5"],
            "this model does not take that option | got: --confidence | expected: the options of",
        ),
        (["--format", "gif"], "unknown format | got: 'gif'"),
        (["--points-per-side", "0"], "points_per_side cannot be used | got: 0"),
        (
            ["--batch", "2", "--crop-n-layers", "1"],
            "pictures cannot be encoded together | got: a batch of 2 and 1 layers of crops | expected: one of them | "
            "fix: leave out batch (--batch), or crop_n_layers (--crop-n-layers)",
        ),
    ],
)
def test_refused(folder: Path, bundle_path: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = run("everything", folder, "-b", bundle_path, "-o", tmp_path / "out", *options)
    assert isinstance(result.exception, samrt.InputError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_batches(folder: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures in one run of the encoder, the third, which is left over, alone."""
    PIL.Image.open(folder / "a.png").crop((0, 0, 40, 30)).save(folder / "c.png")
    encoded: list[int] = []
    encode = samrt.Model.encode

    def spy(model: samrt.Model, images: Any) -> samrt.Features:
        features = encode(model, images)
        encoded.append(len(features))
        return features

    monkeypatch.setattr(samrt.Model, "encode", spy)
    seen: list[str] = []
    options: dict[str, Any] = {"points_per_side": 4, "points_per_batch": 8, "batch": 2}
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        report = segment_everything(
            model, folder, tmp_path / "out", progress=lambda stage, *_: seen.append(stage), **options
        )
    assert (report.done, encoded) == (3, [2, 1])
    assert [stage.rpartition(" · ")[2] for stage in seen if stage.endswith("points")] == [
        *(f"{done} of 32 points" for done in (8, 16, 24, 32)),
        *(f"{done} of 16 points" for done in (8, 16)),
    ]


def test_why_there_are_no_masks(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    """Nothing red in one picture, in both no mask that is trusted so much: told which filter it was, for all together."""
    PIL.Image.new("RGB", (64, 48)).save(folder / "b.png")
    command = ["everything", folder, "-b", bundle_path, "--backend", "onnxruntime", "--points-per-side", "4", "-o"]
    one = run(*command, tmp_path / "one", "--pred-iou-thresh", "0.75", "--stability-score-thresh", "0.25")
    assert "2 pictures: 2 done, " in one.stdout
    assert " masks, 1 without masks, 1 other files left out" in one.stdout
    hint = (
        "no mask in b.png: of 48 candidates 32 not above pred_iou_thresh 0.75, 16 below stability_score_thresh 0.25; "
    )
    assert f"{hint}lower --pred-iou-thresh or --stability-score-thresh\nwritten: " in one.stdout
    both = json.loads(run(*command, tmp_path / "both", "--pred-iou-thresh", "1", "--json").stdout)
    assert (
        both["hint"]
        == "no mask in 2 pictures: of 96 candidates 96 not above pred_iou_thresh 1; lower --pred-iou-thresh"
    )
    counts = {"below_pred_iou_thresh": 48, "below_stability_score_thresh": 0, "cut_off": 0, "duplicates": 0}
    assert both["empty"] == {name: {"candidates": 48, **counts} for name in ("a.png", "b.png")}
    open_wide = ["--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--json"]
    some = json.loads(run(*command, tmp_path / "some", *open_wide).stdout)
    assert (some["masks"] > 0, some["empty"], some["hint"]) == (True, {}, "")


def test_ctrl_c(folder: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(everything_command, "segment_everything", interrupted)
    result = run("everything", folder, "-b", bundle_path, "-o", tmp_path / "out", "--backend", "onnxruntime")
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.stderr


def test_progress_counts_points_and_pictures(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        segment_everything(
            model,
            folder,
            tmp_path / "out",
            points_per_side=4,
            points_per_batch=8,
            progress=lambda *state: seen.append(state),
        )
    assert seen[:3] == [("a.png", 0, 2), ("a.png · 8 of 16 points", 0, 2), ("a.png · 16 of 16 points", 0, 2)]
    assert seen[-1][1:] == (2, 2)


class Proposer:
    """Stands for a model that proposes masks: the left half and the right half, a tenth less likely."""

    digest = "d" * 64
    manifest = SimpleNamespace(source=SimpleNamespace(model="halves"))
    providers: dict[str, str] = {"detector": "CPUExecutionProvider"}  # noqa: RUF012
    precisions: dict[str, str] = {"detector": "fp32"}  # noqa: RUF012

    def propose(self, image: np.ndarray, confidence: float | None = None, iou: float | None = None) -> Segments:
        masks = np.zeros((2, *image.shape[:2]), np.bool_)
        masks[0, :, : image.shape[1] // 2] = True
        masks[1, :, image.shape[1] // 2 :] = True
        found = Segments.from_masks(masks, [0.9, 0.8])
        return found[found.scores > (confidence or 0)]

    def __enter__(self) -> Proposer:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_model_that_proposes_masks(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model: Any = Proposer()
    assert segment_everything(model, folder, out, confidence=0.85).masks == 2
    settings = json.loads((out / "job.json").read_text())["settings"]
    assert settings == {
        "kind": "everything",
        "model": "halves",
        "bundle": "d" * 64,
        "confidence": 0.85,
        "iou": None,
    }
    none = segment_everything(model, folder, tmp_path / "none", confidence=0.95)
    assert (none.masks, none.empty) == (0, {"a.png": {}, "b.png": {}})
    assert none.hint == "no mask in 2 pictures: none above confidence 0.95; lower --confidence"
    with pytest.raises(
        samrt.InputError,
        match=r"got: halves, which proposes masks for one picture at a time .* fix: leave out batch \(",
    ):
        segment_everything(model, folder, tmp_path / "batch", batch=2)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps({"a.png": [{"box": [40, 0, 64, 48], "label": "dog"}, {"box": [0, 0, 30, 40], "label": "cat"}]})
    )
    segment_boxes(model, folder, boxes, tmp_path / "boxed")
    rows = json.loads((tmp_path / "boxed" / "annotations.json").read_text())["annotations"]
    assert [(row["bbox"], row["category_id"], row["score"]) for row in rows] == [
        ([32, 0, 32, 48], 2, 0.8),
        ([0, 0, 32, 48], 1, 0.9),
    ]
    few = segment_boxes(model, folder, boxes, tmp_path / "boxed")
    assert (few.done, few.kept) == (0, 2)


def test_segment_with_a_model_that_proposes_masks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_command, "load_any", lambda *_, **__: Proposer())
    out = tmp_path / "mask.npy"
    command = ["segment", folder / "a.png", "-b", "halves", "-o", out]
    points = run(*command, "--point", "40,20")
    assert points.stdout == f"prompt 0: 1536 pixels\nwritten: {out}\n"
    assert np.load(out)[0].any(axis=0).tolist() == [False] * 32 + [True] * 32
    boxes = run(*command, "--box", "40,0,64,48", "--box", "0,0,30,40", "--json")
    assert [row["score"] for row in json.loads(boxes.stdout)["prompts"]] == pytest.approx([0.8, 0.9])
    assert np.load(out).shape == (2, 48, 64)
    both = run(*command, "--box", "40,0,64,48", "--point", "40,20")
    assert isinstance(both.exception, PromptError)
    assert "this model proposes masks | got: points and a box" in str(both.exception)
    masks = run(*command, "--mask", folder / "a.png")
    assert "this model takes no masks" in str(masks.exception)


def test_segment_with_boxes(folder: Path, bundle_path: Path, tmp_path: Path) -> None:
    boxes, out = tmp_path / "boxes.json", tmp_path / "out"
    boxes.write_text(json.dumps({"a.png": [{"box": [2, 2, 60, 40], "label": "dog", "score": 0.5}]}))
    command = ["segment", folder, "-b", bundle_path, "-o", out, "--boxes", boxes, "--backend", "onnxruntime"]
    result = run(*command, "--format", "masks", "--format", "png", "--batch", "2")
    assert result.exit_code == 0, result.output
    merged = json.loads((out / "annotations.json").read_text())
    assert [(image["file_name"], image["id"]) for image in merged["images"]] == [("a.png", 1), ("b.png", 2)]
    assert [(row["image_id"], row["category_id"], row["score"]) for row in merged["annotations"]] == [(1, 1, 0.5)]
    assert merged["categories"] == [{"id": 1, "name": "dog"}]
    assert (out / "a" / "0000.png").is_file()
    assert (out / "b.png").is_file()
    assert "2 done before" in run(*command).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--boxes", "boxes.json", "--point", "1,1"], "--boxes with other prompts"),
        (["--boxes", "boxes.json", "--box", "1,1,2,2"], "--boxes with other prompts"),
        (["--boxes", "boxes.json"], "cannot read boxes.json | got: no such file"),
        (["--point", "1,1"], "a folder needs boxes"),
        (
            ["--point", "1,1", "--format", "overlay", "--format", "mask"],
            "one picture's result has one format | got: 'overlay', 'mask'",
        ),
    ],
)
def test_segment_refuses(folder: Path, bundle_path: Path, arguments: list[str], message: str) -> None:
    result = run("segment", folder, "-b", bundle_path, "-o", folder.parent / "out.png", *arguments)
    assert isinstance(result.exception, samrt.InputError)
    assert message in str(result.exception)
    assert not (folder.parent / "out.png").exists()
