"""From a picture to masks, against the same written out in loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import samrt
from samrt.cli import build_app
from samrt.proposals import ProposalModel
from samrt.proposals.letterbox import Letterbox
from samrt_engines.errors import BackendError, BundleError, ImageError, InputError, ManifestError

SIDE, MAP = 32, 8
EDGE_PX, FRAME_IOU = 2, 0.9

Picture = np.ndarray


def a_picture(height: int, width: int, seed: int = 0) -> Picture:
    """Blocks of colours, uint8 (height, width, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 6 // width
    return blocks[rows[:, None], columns]


def slow_bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """A plane's value at a place given in samples, whose centres are at whole numbers; edges repeated."""
    y, x = min(max(y, 0), plane.shape[0] - 1), min(max(x, 0), plane.shape[1] - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, plane.shape[0] - 1), min(left + 1, plane.shape[1] - 1)
    upper = plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)
    lower = plane[bottom, left] * (1 - (x - left)) + plane[bottom, right] * (x - left)
    return float(upper * (1 - (y - top)) + lower * (y - top))


def slow_placement(height: int, width: int) -> tuple[int, int, int, int]:
    """top, left, height and width of the picture in the input."""
    gain = min(SIDE / height, SIDE / width)
    rows, columns = max(1, round(height * gain)), max(1, round(width * gain))
    return int((SIDE - rows) / 2), int((SIDE - columns) / 2), rows, columns


def slow_input(picture: Picture) -> np.ndarray:
    """The letterboxed picture, its levels not rounded."""
    height, width = picture.shape[:2]
    top, left, rows, columns = slow_placement(height, width)
    target = np.full((SIDE, SIDE, 3), 114.0)
    for y in range(rows):
        for x in range(columns):
            for channel in range(3):
                place = ((y + 0.5) * height / rows - 0.5, (x + 0.5) * width / columns - 0.5)
                target[top + y, left + x, channel] = slow_bilinear(picture[..., channel].astype(float), *place)
    return target


def slow_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_detections(said: dict[str, np.ndarray], picture: Picture, confidence: float, iou: float) -> list[Any]:
    """(score, box in input pixels, coefficients), best first, after suppression and the rule for whole pictures."""
    found = []
    for anchor in range(said["boxes"].shape[2]):
        x, y, width, height = (float(value) for value in said["boxes"][0, :, anchor])
        score = float(said["scores"][0, 0, anchor])
        if score > confidence:
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            found.append((score, box, said["coefficients"][0, :, anchor].astype(float)))
    found.sort(key=lambda one: -one[0])
    kept: list[Any] = []
    for one in found:
        if all(slow_iou(one[1], other[1]) <= iou for other in kept):
            kept.append(one)
    top, left, rows, columns = slow_placement(*picture.shape[:2])
    frame = [float(left), float(top), float(left + columns), float(top + rows)]
    for index, (score, box, coefficients) in enumerate(kept):
        snapped = [edge if abs(edge - side) > EDGE_PX else side for edge, side in zip(box, frame, strict=True)]
        if slow_iou(snapped, frame) > FRAME_IOU:
            kept[index] = (score, frame, coefficients)
    return kept


def slow_masks(picture: Picture, made: np.ndarray, detections: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(M, H, W) bool, and the values behind them. made: the input for the picture"""
    height, width = picture.shape[:2]
    top, left, rows, columns = slow_placement(height, width)
    means = made.astype(float).reshape(MAP, 4, MAP, 4, 3).mean(axis=(1, 3)) - 128
    first_row, first_column = math.ceil(top / 4 - 0.5), math.ceil(left / 4 - 0.5)
    last_row, last_column = math.floor((top + rows) / 4 + 0.5), math.floor((left + columns) / 4 + 0.5)
    if last_row <= first_row:
        first_row, last_row = top // 4, top // 4 + 1
    if last_column <= first_column:
        first_column, last_column = left // 4, left // 4 + 1
    masks, values = np.zeros((2, len(detections), height, width))
    for index, (_, box, coefficients) in enumerate(detections):
        plane = (means @ coefficients)[first_row:last_row, first_column:last_column]
        x0, x1 = ((edge - left) * width / columns for edge in box[0::2])
        y0, y1 = ((edge - top) * height / rows for edge in box[1::2])
        for y in range(height):
            for x in range(width):
                place = (y + 0.5) * plane.shape[0] / height - 0.5, (x + 0.5) * plane.shape[1] / width - 0.5
                values[index, y, x] = slow_bilinear(plane, *place)
                masks[index, y, x] = values[index, y, x] > 0 and x0 <= x < x1 and y0 <= y < y1
    return masks.astype(bool), values


def input_of(proposer: ProposalModel, picture: Picture) -> np.ndarray:
    """What the detector is given for a picture."""
    numbers = proposer.manifest.proposals
    assert numbers is not None
    return Letterbox((picture.shape[0], picture.shape[1]), numbers).image_to_input(picture)


@pytest.mark.parametrize("height_width", [(24, 24), (13, 40), (45, 31), (1, 50), (50, 1), (3, 3)])
def test_masks_are_those_of_the_loops(
    proposer: ProposalModel, detector_constants: dict[str, np.ndarray], height_width: tuple[int, int]
) -> None:
    picture = a_picture(*height_width)
    made, exact = input_of(proposer, picture), slow_input(picture)
    assert np.abs(made - exact).max() < 0.5 + 1e-4
    assert (made == np.rint(made)).all()
    detections = slow_detections(detector_constants, picture, 0.4, 0.9)
    masks, values = slow_masks(picture, made, detections)
    found = masks.any(axis=(1, 2))
    segments = proposer.propose(picture)
    assert segments.image_hw == height_width
    np.testing.assert_allclose(segments.scores, [one[0] for one, any_ in zip(detections, found, strict=True) if any_])
    different = segments.masks() != masks[found]
    assert np.abs(values[found][different]).max(initial=0) < 1e-3  # only where rounding decides
    assert different.mean() < 1e-3
    assert len(segments) >= 2
    np.testing.assert_array_equal(segments.areas, segments.masks().sum(axis=(1, 2)))


def test_thresholds_are_the_callers(proposer: ProposalModel, detector_constants: dict[str, np.ndarray]) -> None:
    picture = a_picture(24, 24)
    for confidence, iou in ((0.4, 0.2), (0.0, 0.9), (0.75, 0.9)):
        expected = slow_detections(detector_constants, picture, confidence, iou)
        masks, _ = slow_masks(picture, input_of(proposer, picture), expected)
        segments = proposer.propose(picture, confidence, iou)
        np.testing.assert_allclose(
            segments.scores, [one[0] for one, mask in zip(expected, masks, strict=True) if mask.any()]
        )
    assert len(proposer.propose(picture, 0.0)) > len(proposer.propose(picture)) > len(proposer.propose(picture, 0.75))
    best = proposer.propose(picture, max_detections=2)
    np.testing.assert_array_equal(best.scores, proposer.propose(picture).scores[: len(best)])


def test_nothing_is_found_where_nothing_is_sure(proposer: ProposalModel) -> None:
    segments = proposer.propose(a_picture(24, 24), confidence=0.99)
    assert len(segments) == 0
    assert segments.masks().shape == (0, 24, 24)
    assert segments.records() == []


def test_the_whole_picture_is_one_box(proposer: ProposalModel) -> None:
    # Anchor 2 leaves 0 to 2 pixels of the input at its edges: white answers it everywhere or nowhere.
    full = np.full((24, 24, 3), 255, np.uint8), np.zeros((24, 24, 3), np.uint8)
    areas = [proposer.propose(picture, 0.69, 1.0).areas.tolist() for picture in full]
    assert sorted(area for one in areas for area in one)[-1] == 24 * 24


@pytest.mark.parametrize(
    ("name", "value"), [("confidence", 1.5), ("confidence", float("nan")), ("iou", -0.1), ("max_detections", 0)]
)
def test_thresholds_out_of_range(proposer: ProposalModel, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} is out of range .*got: {value}"):
        proposer.propose(a_picture(8, 8), **{name: value})


def test_what_is_no_picture(proposer: ProposalModel) -> None:
    with pytest.raises(ImageError, match="not a picture"):
        proposer.propose(np.zeros((8, 8, 7), np.uint8))
    with pytest.raises(ImageError, match="the picture is empty"):
        proposer.propose(np.zeros((0, 8, 3), np.uint8))


def test_a_closed_model(proposal_bundle: Path) -> None:
    model = ProposalModel(proposal_bundle, backend="onnxruntime", device="cpu")
    assert model.providers == {"detector": "CPUExecutionProvider"}
    assert model.precisions == {"detector": "fp32"}
    assert (model.device, model.decisions, list(model.executors)) == ("cpu", {}, ["detector"])
    model.close()
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.propose(a_picture(8, 8))


def test_hq_token_only_is_not_for_proposals(proposal_bundle: Path, tmp_path: Path) -> None:
    PIL.Image.fromarray(a_picture(24, 24)).save(tmp_path / "picture.png")
    arguments = [tmp_path / "picture.png", "-b", proposal_bundle, "--point", "5,5", "--hq-token-only"]
    result = CliRunner().invoke(build_app(), ["segment", *map(str, arguments), "-o", str(tmp_path / "out.png")])
    assert isinstance(result.exception, InputError)
    assert "this model proposes masks | got: --hq-token-only | expected: a model of SAM-HQ" in str(result.exception)


def test_bundles_of_other_kinds_say_what_they_are_for(proposal_bundle: Path, bundle_path: Path) -> None:
    with pytest.raises(BundleError, match=r"colours takes no prompts.*fix: samrt.ProposalModel\(bundle\)"):
        samrt.load(proposal_bundle)
    with pytest.raises(BundleError, match=r"redness does not propose masks.*fix: samrt.load\(bundle\)"):
        ProposalModel(bundle_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda graph: graph["inputs"][0].update(shape=[1, 3, 32, 32]),
            r"detector.inputs .*expected: 'image': float32",
        ),
        (lambda graph: graph["outputs"][2].update(shape=[1, 3, 20]), r"detector.outputs .*boxes \(1, 4, A\)"),
        (lambda graph: graph["outputs"][3].update(shape=[1, 4, 8, 8]), r"detector.outputs .*prototypes \(1, C, h, w\)"),
        (lambda graph: graph["outputs"][1].update(name="logits"), r"detector.outputs .*expected: float32 scores"),
    ],
)
def test_a_graph_that_is_no_such_detector(
    tmp_path: Path,
    proposal_manifest: dict[str, Any],
    write_proposal_bundle: Callable[..., Path],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    change(proposal_manifest["graphs"]["detector"])
    with pytest.raises(ManifestError, match=message):
        ProposalModel(write_proposal_bundle(tmp_path / "bundle", proposal_manifest))
