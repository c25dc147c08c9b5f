"""The generator on a model whose every number can be predicted (tests/runtime/conftest.py): results, and bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samrt
from samrt.automatic import AutomaticMaskGenerator
from samrt_engines.errors import ImageError, InputError, PromptError

OPEN = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}

Everything = dict[str, Any]


def test_the_red_square(model: samrt.Model, picture: np.ndarray) -> None:
    """The same square from every point, at three thresholds of redness: one stays, the one with the highest score."""
    (record,) = AutomaticMaskGenerator(model, points_per_side=3, stability_score_thresh=0.5).generate(picture)
    assert record["predicted_iou"] == pytest.approx(0.9 + 1e-4 * 32 * 5 / 6)  # candidate 2, right column of points
    assert record["point_coords"] == [[pytest.approx(64 * 5 / 6), pytest.approx(8)]]
    assert record["bbox"] == [16, 12, 31, 23]
    assert record["area"] == record["segmentation"].sum() == 32 * 24 - 4  # a pixel less at each corner: bilinear
    assert record["crop_box"] == [0, 0, 64, 48]
    assert record["segmentation"].shape == (48, 64)


def test_what_is_no_prompted_model() -> None:
    class Proposer:
        def propose(self) -> None: ...

    for make in (AutomaticMaskGenerator, samrt.ImagePredictor):
        with pytest.raises(
            InputError, match=r"needs a model that is prompted \| got: str \| .* fix: samrt.load\(path\)"
        ):
            make("bundles/tiny")  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match=r"got: Proposer \| .* fix: model.propose\(image\) finds all masks by itself"
        ):
            make(Proposer())  # type: ignore[arg-type]


def test_the_models_own_thresholds(
    tmp_path: Path, manifest: Everything, write_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    manifest["numbers"]["automatic"] = {
        "pred_iou_thresh": 0.95,
        "stability_score_thresh": 0.5,
        "candidates": "all",
    }
    with samrt.load(write_bundle(tmp_path / "strict", manifest), threads=1) as strict:
        assert AutomaticMaskGenerator(strict, points_per_side=3).generate(picture) == []
        assert len(AutomaticMaskGenerator(strict, points_per_side=3, pred_iou_thresh=0.9).generate(picture)) == 1


def test_best_candidates(
    tmp_path: Path, manifest: Everything, write_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    """SAM-HQ answers a point with its best mask: no other one is looked at."""
    best = copy.deepcopy(manifest)
    best["numbers"]["automatic"] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "candidates": "best"}
    options = {**OPEN, "points_per_side": 2, "box_nms_thresh": 1.0}
    with samrt.load(write_bundle(tmp_path / "best", best), threads=1) as model:
        scores = AutomaticMaskGenerator(model, **options).segments(picture).scores
    np.testing.assert_allclose(scores, np.float32(0.9) + np.float32(1e-4) * np.array([24, 24, 8, 8]), atol=1e-6)
    manifest["numbers"]["automatic"] = {**best["numbers"]["automatic"], "candidates": "all"}
    with samrt.load(write_bundle(tmp_path / "all", manifest), threads=1) as model:
        assert len(AutomaticMaskGenerator(model, **options).segments(picture)) == 12
        one_each = AutomaticMaskGenerator(model, **options, multimask_output=False).segments(picture)
    assert len(one_each) == 4


def test_a_picture_with_nothing_in_it(model: samrt.Model) -> None:
    black = np.zeros((48, 64, 3), np.uint8)
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        generator = AutomaticMaskGenerator(model, 4, crop_n_layers=1, min_mask_region_area=9, output_mode=mode)
        assert generator.generate(black) == []


@pytest.mark.parametrize("hw", [(1, 1), (5, 300), (300, 5), (1, 2)])
def test_tiny_pictures_with_crops(model: samrt.Model, hw: tuple[int, int]) -> None:
    red = np.full((*hw, 3), (255, 0, 0), np.uint8)
    segments = AutomaticMaskGenerator(model, 2, crop_n_layers=2, stability_score_thresh=0.0).segments(red)
    assert len(segments) >= 1
    assert (segments.areas == hw[0] * hw[1]).any()


def test_small_regions_are_cleaned(model: samrt.Model) -> None:
    """A square with a hole and, far away, a speck: with a region area both go, and the box shrinks."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[24:72, 32:96, 0] = 255
    image[40:52, 56:68, 0] = 0
    image[0:6, 120:128, 0] = 255
    options = {"points_per_side": 2, "stability_score_thresh": 0.3}
    (plain,) = AutomaticMaskGenerator(model, **options).generate(image)
    (clean,) = AutomaticMaskGenerator(model, **options, min_mask_region_area=400).generate(image)
    assert plain["bbox"][:2] == [32, 0]
    assert not plain["segmentation"][46, 62]
    assert clean["bbox"] == [32, 24, 63, 47]
    assert clean["area"] == clean["segmentation"].sum() == 64 * 48 - 24  # six less at each corner: bilinear


def test_progress_counts_points(model: samrt.Model, picture: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []
    AutomaticMaskGenerator(
        model, 4, 6, crop_n_layers=1, crop_n_points_downscale_factor=2, progress=lambda *at: seen.append(at)
    ).segments(picture)
    assert seen == [(done, 32) for done in (6, 12, 16, 20, 24, 28, 32)]


def test_points_per_batch_does_not_matter(model: samrt.Model, picture: np.ndarray) -> None:
    one, all_at_once = (
        AutomaticMaskGenerator(model, 3, batch, **OPEN, box_nms_thresh=0.99).segments(picture) for batch in (1, 1000)
    )
    assert len(one) == len(all_at_once) > 1
    np.testing.assert_array_equal(one.masks(), all_at_once.masks())
    np.testing.assert_array_equal(one.scores, all_at_once.scores)


def test_features_instead_of_a_picture(model: samrt.Model, picture: np.ndarray) -> None:
    """Pictures of several sizes, encoded in one run."""
    pictures = [picture, np.roll(picture, 9, axis=0)[:, :40], picture[:30]]
    generator = AutomaticMaskGenerator(model, 3, **OPEN, box_nms_thresh=0.99)
    together = [generator.segments(features) for features in model.encode(pictures)]
    alone = [generator.segments(one) for one in pictures]
    for one, other in zip(alone, together, strict=True):
        assert len(one) > 1
        assert one.image_hw == other.image_hw
        np.testing.assert_array_equal(one.masks(), other.masks())
        np.testing.assert_array_equal(one.scores, other.scores)
    records = generator.generate(model.encode(pictures)[1])
    assert [record["area"] for record in records] == alone[1].areas.tolist() != alone[0].areas.tolist()


def test_features_that_cannot_be_searched(model: samrt.Model, picture: np.ndarray) -> None:
    with pytest.raises(
        ImageError, match=r"got: features of 2 pictures \| expected: of one \| fix: \[generator.segments"
    ):
        AutomaticMaskGenerator(model, 2).segments(model.encode([picture, picture]))
    with pytest.raises(InputError, match=r"got: features, and crop_n_layers 1 .* fix: .*, or crop_n_layers=0"):
        AutomaticMaskGenerator(model, 2, crop_n_layers=1).segments(model.encode(picture))


@pytest.mark.parametrize(
    ("options", "counts"),
    [  # nine points, three candidates each; those of the second one have scores 0.9 to 0.903
        ({**OPEN, "box_nms_thresh": 1.0}, (27, 0, 0, 0, 0)),
        ({**OPEN, "pred_iou_thresh": 0.75}, (27, 18, 0, 0, 8)),
        ({**OPEN, "pred_iou_thresh": 0.95}, (27, 27, 0, 0, 0)),
        ({"pred_iou_thresh": 0.75, "stability_score_thresh": 0.5, "stability_score_offset": 130}, (27, 18, 9, 0, 0)),
    ],
)
def test_what_became_of_the_candidates(
    model: samrt.Model, picture: np.ndarray, options: dict[str, float], counts: tuple[int, ...]
) -> None:
    segments, dropped = AutomaticMaskGenerator(model, 3, **options).search(picture)
    assert (
        dropped.candidates,
        dropped.below_pred_iou_thresh,
        dropped.below_stability_score_thresh,
        dropped.cut_off,
        dropped.duplicates,
    ) == counts
    assert len(segments) == counts[0] - sum(counts[1:])


def test_candidates_cut_off_by_crops(model: samrt.Model) -> None:
    """Red everywhere: each of the four crops cuts its masks off, all of the whole picture's are one thing."""
    red = np.full((96, 128, 3), (255, 0, 0), np.uint8)
    segments, dropped = AutomaticMaskGenerator(model, 2, crop_n_layers=1, **OPEN).search(red)
    assert len(segments) == 1
    assert (dropped.candidates, dropped.cut_off, dropped.duplicates) == (5 * 12, 4 * 12, 11)


def test_many_threads_one_generator(model: samrt.Model, picture: np.ndarray) -> None:
    generator = AutomaticMaskGenerator(model, 3, **OPEN)
    pictures = [np.roll(picture, 3 * shift, axis=1) for shift in range(6)]
    alone = [generator.segments(one) for one in pictures]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(generator.segments, pictures))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.masks(), other.masks())
    assert not np.array_equal(alone[0].masks(), alone[1].masks())


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"points_per_side": 0},
        InputError,
        "points_per_side cannot be used | got: 0 | expected: a whole number, 1 to 4096",
    ),
    ({"points_per_side": 2.5}, InputError, "points_per_side cannot be used | got: 2.5"),
    ({"points_per_side": True}, InputError, "points_per_side cannot be used | got: True"),
    (
        {"points_per_batch": 0},
        InputError,
        "points_per_batch cannot be used | got: 0 | expected: a whole number, 1 or more",
    ),
    ({"box_nms_thresh": 2}, InputError, "box_nms_thresh cannot be used | got: 2 | expected: a number, 0 to 1"),
    ({"crop_nms_thresh": float("nan")}, InputError, "crop_nms_thresh cannot be used | got: nan"),
    ({"pred_iou_thresh": -0.1}, InputError, "pred_iou_thresh cannot be used | got: -0.1"),
    ({"stability_score_thresh": "high"}, InputError, "stability_score_thresh cannot be used | got: 'high'"),
    ({"stability_score_offset": float("inf")}, InputError, "stability_score_offset cannot be used | got: inf"),
    ({"crop_n_layers": -1}, InputError, "crop_n_layers cannot be used | got: -1 | expected: a whole number, 0 to 8"),
    ({"crop_overlap_ratio": 1.5}, InputError, "crop_overlap_ratio cannot be used | got: 1.5"),
    ({"crop_n_points_downscale_factor": 0}, InputError, "crop_n_points_downscale_factor cannot be used | got: 0"),
    (
        {"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
        InputError,
        "the last layer of crops has no points left | got: points_per_side 3, divided 2 times by 2",
    ),
    ({"min_mask_region_area": -5}, InputError, "min_mask_region_area cannot be used | got: -5"),
    (
        {"output_mode": "png"},
        InputError,
        "unknown output_mode | got: 'png' | expected: binary_mask, uncompressed_rle, coco",
    ),
    ({"points_per_side": None}, InputError, "say the same thing | got: neither | expected: exactly one of them"),
    ({"point_grids": [np.zeros((1, 2))]}, InputError, "say the same thing | got: both"),
    (
        {"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1},
        InputError,
        "a grid is missing | got: 1 point_grids | expected: 2, one for each layer",
    ),
    (
        {"points_per_side": None, "point_grids": [np.zeros((2, 3))]},
        PromptError,
        "not a point grid | got: an array of shape",
    ),
    ({"points_per_side": None, "point_grids": [["a"]]}, PromptError, "not a point grid | got: ['a']"),
    (
        {"points_per_side": None, "point_grids": [[[0.5, 1.5]]]},
        PromptError,
        "a point grid leaves the picture | got: 1.5",
    ),
    (
        {"points_per_side": None, "point_grids": [[[0.5, np.nan]]]},
        PromptError,
        "a point grid leaves the picture | got: nan",
    ),
]


@pytest.mark.parametrize(("parameters", "kind", "text"), BAD, ids=[next(iter(case[0])) for case in BAD])
def test_bad_parameters(model: samrt.Model, parameters: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        AutomaticMaskGenerator(model, **parameters)
    assert text in str(caught.value)


def test_not_a_picture(model: samrt.Model) -> None:
    with pytest.raises(ImageError, match="picture"):
        AutomaticMaskGenerator(model, 2).generate(np.zeros((4, 4, 7), np.uint8))
