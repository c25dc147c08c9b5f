"""Automatic masks against the official generator: same masks, same numbers, same order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from automatic_oracle import Sam2Predictor, SamrtPredictor, official_records, upscale_official
from oracle import hf_image_model, preprocess

import samrt
from samrt.automatic import AutomaticMaskGenerator
from samrt.folder import segment_everything
from samrt.rle import decode_mask
from samrt_export.families.sam2 import FAMILY, Sam2
from samrt_export.nano.evaluate import iou
from samrt_export.nano.scenes import HELD_OUT_SEED, scene_from_seed
from samrt_export.source import load_weights

LOOSE = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"points_per_side": 6},
    "loose": {"points_per_side": 6, **LOOSE, "stability_score_offset": 2.0, "points_per_batch": 7},
    "all": {"points_per_side": 5, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.95},
    "one layer": {"points_per_side": 5, "crop_n_layers": 1, **LOOSE},
    "two layers": {
        "points_per_side": 6,
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "crop_overlap_ratio": 0.2,
        "crop_nms_thresh": 0.5,
        **LOOSE,
    },
    "clean": {"points_per_side": 6, "min_mask_region_area": 300, **LOOSE},
    "clean crops": {"points_per_side": 4, "min_mask_region_area": 2000, "crop_n_layers": 1, **LOOSE},
    "grids": {
        "points_per_side": None,
        "point_grids": [np.array([[0.5, 0.5], [0.2, 0.7], [0.0, 1.0]]), np.array([[0.4, 0.4]])],
        "crop_n_layers": 1,
        **LOOSE,
    },
}


def picture(seed: int, hw: tuple[int, int]) -> np.ndarray:
    """Part of a held-out scene."""
    image = scene_from_seed(HELD_OUT_SEED + seed).render(size=max(hw)).image
    return np.ascontiguousarray(image[: hw[0], : hw[1]])


PICTURE = picture(3, (211, 300))


@pytest.fixture(scope="module")
def stretched(nano_bundle: Path) -> Iterator[samrt.Model]:
    """nano: the picture fills the input."""
    with samrt.load(nano_bundle, backend="onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def padded(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[samrt.Model]:
    """nano, told to keep the aspect of pictures and to pad them, as SAM does: masks are resized twice."""
    path = tmp_path_factory.mktemp("padded") / "bundle"
    shutil.copytree(nano_bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["numbers"]["image"]["resize"] = "longest_side"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with samrt.load(path, backend="onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture(params=["stretched", "padded"])
def model(request: pytest.FixtureRequest) -> samrt.Model:
    loaded: samrt.Model = request.getfixturevalue(request.param)
    return loaded


def official(predictor: Any, image: np.ndarray, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """With nano's own thresholds, which its manifest holds, where none are given."""
    return official_records(predictor, image, **{"pred_iou_thresh": 0.7, "stability_score_thresh": 0.9, **parameters})


def assert_same(records: list[dict[str, Any]], expected: list[dict[str, Any]], least: int) -> None:
    """Record by record, bit by bit; points are float32 on our side."""
    assert len(records) == len(expected) >= least
    for ours, theirs in zip(records, expected, strict=True):
        assert list(ours) == list(theirs)
        np.testing.assert_array_equal(ours.pop("segmentation"), theirs.pop("segmentation"))
        np.testing.assert_allclose(ours.pop("point_coords"), theirs.pop("point_coords"), rtol=1e-6)
        assert ours == theirs


def assert_alike(records: list[dict[str, Any]], expected: list[dict[str, Any]], least: int) -> None:
    """The same masks in the same order, but for rounding."""
    assert len(records) == len(expected) >= least
    for ours, theirs in zip(records, expected, strict=True):
        assert iou(ours["segmentation"], theirs["segmentation"]) >= 0.99
        assert ours["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-4)
        assert ours["stability_score"] == pytest.approx(theirs["stability_score"], abs=5e-3)
        assert ours["crop_box"] == theirs["crop_box"]
        np.testing.assert_allclose(ours["point_coords"], theirs["point_coords"], rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_records_equal_the_official_ones(model: samrt.Model, name: str) -> None:
    """Of the same full-size logits."""
    expected = official(SamrtPredictor(model, samrt.Result.upscaled_logits), PICTURE, CASES[name])
    assert_same(AutomaticMaskGenerator(model, **CASES[name]).generate(PICTURE), expected, 3)


@pytest.mark.parametrize("hw", [(64, 300), (150, 40), (31, 17), (256, 256)])
def test_odd_sizes(model: samrt.Model, hw: tuple[int, int]) -> None:
    """Of the same low-res logits, resized by torch as the official code does."""
    image, parameters = picture(5, hw), {"points_per_side": 5, "crop_n_layers": 1, **LOOSE}
    expected = official(SamrtPredictor(model, upscale_official), image, parameters)
    assert_alike(AutomaticMaskGenerator(model, **parameters).generate(image), expected, 2)


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_run_lengths(stretched: samrt.Model, mode: Any) -> None:
    expected = official(
        SamrtPredictor(stretched, samrt.Result.upscaled_logits),
        PICTURE,
        {**CASES["one layer"], "output_mode": "uncompressed_rle"},
    )
    records = AutomaticMaskGenerator(stretched, **CASES["one layer"], output_mode=mode).generate(PICTURE)
    for ours, theirs in zip(records, expected, strict=True):
        if mode == "uncompressed_rle":
            assert ours["segmentation"] == theirs["segmentation"]
        else:
            assert isinstance(ours["segmentation"]["counts"], str)
            np.testing.assert_array_equal(decode_mask(ours["segmentation"]), decode_mask(theirs["segmentation"]))


@pytest.mark.parametrize("name", ["plain", "one layer", "clean"])
def test_the_whole_of_sam2(stretched: samrt.Model, name: str) -> None:
    """Ours from the picture to the records, against transformers' SAM 2 under the official generator."""
    module = load_weights(FAMILY, "nano").module
    assert isinstance(module, Sam2)
    expected = official(Sam2Predictor(hf_image_model(module, "nano"), preprocess), PICTURE, CASES[name])
    assert_alike(AutomaticMaskGenerator(stretched, **CASES[name]).generate(PICTURE), expected, 3)


def test_refinement_answers_each_mask_with_itself(stretched: samrt.Model) -> None:
    """use_m2m, against the two decodes written out."""
    grid = np.array([[0.5, 0.5], [0.2, 0.7]])
    keep_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    segments = AutomaticMaskGenerator(
        stretched, points_per_side=None, point_grids=[grid], **keep_all, use_m2m=True
    ).segments(PICTURE)
    features, points = stretched.encode(PICTURE), grid * [300, 211]
    first = stretched.decode(features, samrt.Prompts(points=points[:, None], labels=np.ones((2, 1))))
    expected = []
    for index in range(2):
        for logits in first.logits[index]:
            prompt = samrt.Prompts(points=points[index : index + 1], labels=[1], masks=logits)
            expected.append(stretched.decode(features, prompt, multimask=False))
    order = np.argsort([-one.scores[0, 0] for one in expected], kind="stable")
    assert len(segments) == 6
    np.testing.assert_allclose(segments.scores, [expected[index].scores[0, 0] for index in order], atol=1e-5)
    for mask, index in zip(segments.masks(), order, strict=True):
        assert iou(mask, expected[index].masks[0, 0]) >= 0.99
    assert not np.allclose(np.sort(first.scores.ravel()), np.sort(segments.scores), atol=1e-3)


def test_pictures_encoded_together(stretched: samrt.Model, tmp_path: Path) -> None:
    """Three sizes in one run of the image encoder: every file of the job as one by one, byte for byte."""
    (tmp_path / "pictures").mkdir()
    for seed, hw in enumerate([(48, 64), (180, 120), (90, 90)]):
        PIL.Image.fromarray(picture(seed, hw)).save(tmp_path / "pictures" / f"{seed}.png")
    written = []
    for batch in (1, 3):
        out = tmp_path / f"batch {batch}"
        report = segment_everything(stretched, tmp_path / "pictures", out, batch=batch, points_per_side=4, **LOOSE)
        assert (report.done, report.empty, report.hint) == (3, {}, "")
        written.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    assert len(json.loads(written[0]["annotations.json"])["annotations"]) >= 6
    assert written[0] == written[1]
