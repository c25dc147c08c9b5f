"""The generator, the clicks, and the shipped model's accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import samrt
from samrt_export.families.sam2 import FAMILY, NANO, Sam2
from samrt_export.nano.clicks import box_around, corrective_click, depth, innermost_point
from samrt_export.nano.evaluate import BundleSegmenter, Scores, TorchSegmenter, evaluate, held_out, iou
from samrt_export.nano.scenes import HELD_OUT_SEED, scene_from_seed
from samrt_export.source import load_weights


def test_a_seed_is_a_picture() -> None:
    first, again, other = (scene_from_seed(seed).render(1.5) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.image != other.image).mean() > 0.5


def test_shapes_move_and_overlap() -> None:
    moved, covered = 0, 0
    for seed in range(12):
        scene = scene_from_seed(seed)
        now, later = scene.render(0.0), scene.render(1.0)
        moved += (now.labels != later.labels).mean() > 0.02
        covered += len(np.unique(now.labels)) - 1 > 2
        assert now.image.shape == (256, 256, 3)
    assert moved >= 10
    assert covered >= 10


def test_held_out_pictures_are_not_trained_on() -> None:
    from samrt_export.nano.train import POOL

    assert POOL < HELD_OUT_SEED
    frames = list(held_out(5))
    assert all(frame.visible for frame in frames)


def test_clicks_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        region = ndimage.gaussian_filter(rng.normal(size=(40, 50)), 4) > 0.05
        if not region.any():
            continue
        distance = ndimage.distance_transform_cdt(np.pad(region, 1), "chessboard")[1:-1, 1:-1]
        x, y = innermost_point(region)
        assert distance[y, x] == distance.max() == depth(region)
        rows, cols = np.nonzero(region)
        assert box_around(region) == (cols.min(), rows.min(), cols.max(), rows.max())


def test_the_corrective_click_goes_to_the_deeper_error() -> None:
    target = np.zeros((40, 40), bool)
    target[5:30, 5:30] = True
    predicted = target.copy()
    predicted[5:10, 5:10] = False
    predicted[32:40, 32:40] = True
    assert corrective_click(target, target) is None
    click = corrective_click(predicted, target)
    assert click is not None
    (x, y), label = click
    assert label == 0
    assert predicted[y, x]
    assert not target[y, x]


def both(bundle: Path, count: int) -> tuple[Scores, Scores]:
    """Through the bundle, and in PyTorch."""
    module = load_weights(FAMILY, "nano").module
    assert isinstance(module, Sam2)
    with samrt.load(bundle) as model:
        return evaluate(BundleSegmenter(model), count), evaluate(TorchSegmenter(module), count)


def test_the_shipped_model_is_accurate(nano_bundle: Path) -> None:
    ours, torch_scores = both(nano_bundle, 25)
    assert ours.prompts > 75
    assert ours.one_click >= 0.85
    assert ours.box >= 0.90
    assert ours.five_clicks >= 0.90
    assert ours.iou_mae <= 0.1
    for name in ("one_click", "box", "five_clicks"):
        assert abs(getattr(ours, name) - getattr(torch_scores, name)) <= 0.002, name


@pytest.mark.slow
def test_the_shipped_model_on_500_pictures(nano_bundle: Path) -> None:
    ours, torch_scores = both(nano_bundle, 500)
    print(ours, torch_scores)
    assert ours.one_click >= 0.85
    assert ours.box >= 0.93
    assert ours.five_clicks >= 0.93
    assert ours.iou_mae <= 0.1
    for name in ("one_click", "box", "five_clicks"):
        assert abs(getattr(ours, name) - getattr(torch_scores, name)) <= 0.002, name


def test_the_checkpoint_is_small() -> None:
    assert NANO.checkpoint is not None
    assert NANO.checkpoint.stat().st_size <= 8 * 2**20


def test_training_repeats_itself_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """The script reproduces the checkpoint: its first steps, twice, give the same weights; so does a run that was cut."""
    import torch.distributed as dist

    from samrt_export.nano.train import Trainer, draw

    pool = [draw(index) for index in range(6)]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        whole, again = Trainer(pool, 0), Trainer(pool, 0)
        first = {name: value.clone() for name, value in whole.average.items()}
        figures = [whole.train_step(), whole.train_step()]
        assert again.train_step() == figures[0]
        again.save(tmp_path / "run.pt")
        resumed = Trainer(pool, 0)
        resumed.resume(tmp_path / "run.pt")
        assert resumed.train_step() == figures[1]
    finally:
        dist.destroy_process_group()
    assert (whole.step, resumed.step) == (2, 2)
    for name, value in whole.average.items():
        torch.testing.assert_close(resumed.average[name], value, rtol=1e-6, atol=1e-7)
    changed = sum(not torch.equal(first[name], value) for name, value in whole.average.items())
    assert changed > 0.5 * len(first)


def test_iou_of_nothing_is_one() -> None:
    nothing = np.zeros((3, 3), bool)
    assert iou(nothing, nothing) == 1
    assert iou(nothing, ~nothing) == 0
