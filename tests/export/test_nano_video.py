"""Clips, the measures of tracking, the PyTorch loop, the training of memory; and how well the shipped model tracks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage

import samrt
from samrt_export.families.sam2 import FAMILY, NANO, Sam2
from samrt_export.families.sam2.modules import MemoryAttentionReference, MemoryEncoderGraph
from samrt_export.nano import train_video, windows
from samrt_export.nano.clips import HELD_OUT_CLIPS, LENGTH, TRAINING_SEED, Clip, Leaver, clip_from_seed, held_out_clips
from samrt_export.nano.davis import boundary, boundary_accuracy, dilate, region_similarity
from samrt_export.nano.evaluate_video import BundleTracker, Kind, TorchTracker, Track, evaluate_video, follow, summarize
from samrt_export.nano.scenes import HELD_OUT_SEED, MIN_AREA
from samrt_export.nano.tracking import FrameMaps, Remembered, condition, remember
from samrt_export.source import load_weights

IMAGE_WEIGHTS = "d144cd78c249e5292f0944c41695cb8eb4153f25acca23b2c9e8b024915f18be"
"""SHA-256 of the names and bytes of what the image path uses: the measured image figures are those of these weights."""


def nano() -> Sam2:
    module = load_weights(FAMILY, "nano").module
    assert isinstance(module, Sam2)
    return module


def leaving_clip() -> tuple[Clip, int]:
    """A held-out clip with an object that leaves, and its place among the objects."""
    for clip in held_out_clips(12):
        for place, label in enumerate(clip.objects):
            if isinstance(clip.scene.shapes[label - 1], Leaver):
                return clip, place
    raise AssertionError("no shape leaves")


def test_a_seed_is_a_clip() -> None:
    first, again, other = (clip_from_seed(seed) for seed in (TRAINING_SEED, TRAINING_SEED, TRAINING_SEED + 1))
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first.frame(7).image, again.frame(7).image)
    np.testing.assert_array_equal(first.frame(7).labels, again.frame(7).labels)
    assert first.objects == again.objects
    assert (first.frame(7).image != other.frame(7).image).mean() > 0.5


def test_held_out_clips_have_one_to_four_objects_which_are_visible_first() -> None:
    clips = list(held_out_clips(8))
    assert [len(clip.objects) for clip in clips] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert len({clip.seed for clip in clips}) == 8
    for clip in clips:
        frame = clip.frame(0)
        masks = clip.masks(frame)
        assert masks.shape == (len(clip.objects), 256, 256)
        assert masks.mean((1, 2)).min() >= MIN_AREA
        assert masks.sum(0).max() == 1  # in front of one another: only what is visible


def test_held_out_clips_are_not_trained_on() -> None:
    most = windows.FIRST_CLIPS + train_video.STEPS // windows.RENEWAL
    assert TRAINING_SEED + most < TRAINING_SEED + 10_000_000 < HELD_OUT_SEED < HELD_OUT_CLIPS


def test_shapes_leave_and_return() -> None:
    clip, place = leaving_clip()
    areas = np.array([clip.masks(clip.frame(index))[place].sum() for index in range(0, LENGTH, 2)])
    gone = np.flatnonzero(areas == 0)
    assert areas[0] > 0
    assert 2 <= len(gone) < len(areas) - 2
    assert areas[gone[-1] + 1 :].max(initial=0) > 0


def test_a_clip_needs_enough_visible_shapes() -> None:
    counts = {0 if clip is None else len(clip.objects) for clip in (clip_from_seed(seed, 4) for seed in range(30))}
    assert counts == {0, 4}


def square(top: int, left: int, side: int = 20, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_similarity_of_known_masks() -> None:
    nothing = np.zeros((100, 100), bool)
    predicted = np.stack([square(10, 10), square(10, 20), square(60, 60), nothing, nothing])
    target = np.stack([square(10, 10), square(10, 10), square(10, 10), square(10, 10), nothing])
    np.testing.assert_allclose(region_similarity(predicted, target), [1, 1 / 3, 0, 0, 1])


def test_boundary_accuracy_of_known_masks() -> None:
    nothing = np.zeros((100, 100), bool)  # tolerance: ceil(0.008 * 141.4) = 2 pixels
    predicted = np.stack(
        [square(10, 10), square(12, 10), square(10, 10, 40), square(60, 60), nothing, nothing, square(1, 1)]
    )
    target = np.stack(
        [square(10, 10), square(10, 10), square(10, 10), square(10, 10), square(10, 10), nothing, nothing]
    )
    values = boundary_accuracy(predicted, target)
    np.testing.assert_allclose(values[[0, 1, 3, 4, 5, 6]], [1, 1, 0, 0, 1, 0])
    assert 0.3 < values[2] < 0.7  # two of four sides agree, of a boundary twice as long


def test_boundary_accuracy_agrees_with_distances() -> None:
    """An independent computation: the share of boundary pixels whose distance to the other boundary is small enough."""
    rng = np.random.default_rng(0)
    fields = ndimage.gaussian_filter(rng.normal(size=(6, 120, 160)), (0, 6, 6))
    predicted, target = fields[:3] > 0, fields[:3] + 0.4 * fields[3:] > 0
    radius = np.ceil(0.008 * 200)
    expected = []
    for one, other in zip(boundary(predicted), boundary(target), strict=True):
        precision = (ndimage.distance_transform_edt(~other)[one] <= radius).mean()
        recall = (ndimage.distance_transform_edt(~one)[other] <= radius).mean()
        expected.append(2 * precision * recall / (precision + recall))
    np.testing.assert_allclose(boundary_accuracy(predicted, target), expected)
    assert 0.3 < min(expected) < max(expected) < 1


def test_dilation_is_by_a_disk() -> None:
    point = np.zeros((9, 9), bool)
    point[4, 4] = True
    y, x = np.mgrid[-4:5, -4:5]
    for radius in (1, 2, 3):
        np.testing.assert_array_equal(dilate(point, radius), x * x + y * y <= radius * radius)


def test_the_boundary_is_where_a_mask_ends() -> None:
    edge = boundary(square(10, 10))
    assert edge[9, 9:30].all()
    assert edge[29, 9:30].all()
    assert not edge[12:28, 12:28].any()
    assert not edge[:9].any()
    assert not boundary(np.ones((5, 5), bool)).any()


def test_tracks_are_averaged_by_object() -> None:
    def track(clip: int, objects: int, absences: bool, j: list[float], f: list[float]) -> Track:
        return Track(clip, objects, absences, np.array(j), np.array(f))

    scores = summarize(
        [
            track(1, 1, False, [1, 0.8], [0.6, 0.4]),
            track(2, 2, True, [0, 0], [0, 0.4]),
            track(2, 2, False, [1, 1], [1, 1]),
        ]
    )
    assert scores.clips == 2
    assert scores.tracks == 3
    assert scores.j == pytest.approx((0.9 + 0 + 1) / 3)
    assert scores.f == pytest.approx((0.5 + 0.2 + 1) / 3)
    assert scores.j_and_f == pytest.approx((0.7 + 0.1 + 1) / 3)
    assert scores.by_objects == pytest.approx({1: 0.7, 2: 0.55})
    assert scores.with_absences == pytest.approx(0.1)
    assert scores.without_absences == pytest.approx(0.85)


def test_a_tracker_that_knows_the_truth_scores_one() -> None:
    clip, place = leaving_clip()

    class Oracle:
        def start(self, image: np.ndarray, masks: np.ndarray, kind: Kind) -> None:
            self.index = 0

        def track(self, image: np.ndarray) -> np.ndarray:
            self.index += 1
            return clip.masks(clip.frame(self.index))

    tracks = follow(Oracle(), clip, "mask", length=40)
    assert [track.j_and_f for track in tracks] == [1] * len(clip.objects)
    assert len(tracks[place].j) == 39


def random_maps(rows: int, model: Sam2) -> FrameMaps:
    side, dim = model.config.embed_size, model.config.d_model
    shapes = (side**2, dim), (side**2, 16, dim // 8), (side**2, 4, dim // 4)
    return FrameMaps(*(torch.randn(rows, *shape) for shape in shapes))


def test_the_loop_remembers_and_conditions_as_the_graphs_references_do() -> None:
    torch.manual_seed(3)
    model, rows = nano(), 2
    maps = random_maps(1, model)
    repeated = FrameMaps(*(part.expand(rows, *part.shape[1:]) for part in maps))
    score = torch.tensor([[2.0], [-1.0]])
    logits, token = torch.randn(rows, 1, 64, 64) * 5, torch.randn(rows, 128)
    with torch.inference_mode():
        kept = [remember(model, repeated, frame, frame < 2, logits, score, token + frame) for frame in range(9)]
        flags = torch.tensor([1.0, 1.0])
        memory, pointer = MemoryEncoderGraph(model)(maps.embed, logits, flags, score, token)
        torch.testing.assert_close(kept[0].memory, memory)
        torch.testing.assert_close(kept[0].pointer, pointer)
        ours = condition(model, repeated.embed, kept, 9, gap=20)
        # conditioning frames 0 and 1, recent ones 3 to 8; pointers of all but none missing
        times = torch.tensor([6, 6, 5, 4, 3, 2, 1, 0]).repeat(rows, 1).int()
        slots = torch.stack([one.memory for one in [*kept[:2], *kept[3:]]], dim=1)
        pointers = torch.stack([one.pointer for one in kept], dim=1)
        distances = (torch.tensor([29.0, 28, 7, 6, 5, 4, 3, 2, 1]) / 15).repeat(rows, 1)
        there = torch.ones(rows, 8), torch.ones(rows, 9)
        reference = MemoryAttentionReference(model)
        theirs = reference(maps.embed, slots, times, there[0], pointers, distances, there[1])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_long_past_is_forgotten() -> None:
    torch.manual_seed(4)
    model = nano()
    maps = random_maps(1, model)
    kept = [Remembered(i, i == 0, torch.randn(1, 256, 64), torch.randn(1, 128)) for i in range(30)]
    with torch.inference_mode():
        all_of_it = condition(model, maps.embed, kept, 30)
        torch.testing.assert_close(condition(model, maps.embed, [kept[0], *kept[15:]], 30), all_of_it, rtol=0, atol=0)
        assert not torch.equal(condition(model, maps.embed, [kept[0], *kept[16:]], 30), all_of_it)


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same training with few clips and, from the second step on, longer windows; on one thread, as it is meant."""
    monkeypatch.setattr(windows, "FIRST_CLIPS", 2)
    monkeypatch.setattr(windows, "RENEWAL", 2)
    monkeypatch.setattr(windows, "CACHED", 4)
    monkeypatch.setattr(windows, "OBJECTS", 2)
    phases = (train_video.Phase(1, 3, 0, 0.0, 0.5, 1.0), train_video.Phase(9, 4, 1, 1.0, 0.0, 0.1))
    monkeypatch.setattr(train_video, "PHASES", phases)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("short_training")
def test_training_repeats_itself_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    whole, again = train_video.Trainer(), train_video.Trainer()
    figures = [whole.train_step() for _ in range(3)]
    assert again.train_step() == pytest.approx(figures[0], nan_ok=True)
    again.save(tmp_path / "run.pt")
    resumed = train_video.Trainer()
    resumed.resume(tmp_path / "run.pt")
    assert [resumed.train_step() for _ in range(2)] == [pytest.approx(one, nan_ok=True) for one in figures[1:]]
    assert (whole.step, again.step, resumed.step) == (3, 1, 3)
    first, last = again.checkpoint(), whole.checkpoint()
    for name, value in last.items():
        torch.testing.assert_close(resumed.checkpoint()[name], value, rtol=1e-6, atol=1e-7)
    changed = {name for name, value in last.items() if not torch.equal(value, first[name])}
    assert changed <= set(whole.trained)
    assert len(changed) > 0.9 * len(whole.trained)  # not all: no mask was a prompt in these few steps
    assert all(name.startswith(train_video.VIDEO_PARTS) for name in changed)


@pytest.mark.usefixtures("short_training")
def test_windows_hold_objects_that_are_visible_first() -> None:
    trainer = train_video.Trainer()
    pool = trainer.pool.at(0)
    for seed, phase in enumerate(train_video.PHASES):
        window = windows.sample_window(pool, phase.frames, phase.scattered, np.random.default_rng(seed))
        rows = windows.CLIPS * windows.OBJECTS
        assert window.masks.shape == (phase.frames, rows, 256, 256)
        assert len(window.maps) == phase.frames
        assert all(part.shape[0] == rows for maps in window.maps for part in maps)
        assert window.masks[0].mean((1, 2)).min() >= MIN_AREA
        # the features are those of the frame that the masks are of: the same object, another clip, another frame
        assert torch.equal(window.maps[0].embed[0], window.maps[0].embed[windows.OBJECTS - 1])
        assert not torch.equal(window.maps[0].embed[0], window.maps[1].embed[0])


def test_training_starts_from_an_attention_that_changes_little() -> None:
    model = train_video.start_model()
    clip = windows.cache_clip(model, 5)
    train_video.fit_output_norm(model, [clip])
    embed = clip.maps.embed[:2].float()
    with torch.inference_mode():
        unchanged = model.memory_attention.norm(embed - model.no_mem_embed + model.image_position())
    rest = (unchanged - embed).square().mean() / (embed - embed.mean((0, 1))).square().mean()
    assert rest < 0.15


def test_the_image_path_is_untouched_by_the_training_of_memory() -> None:
    assert NANO.checkpoint is not None
    weights = load_file(NANO.checkpoint)
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.startswith(train_video.VIDEO_PARTS):
            digest.update(name.encode())
            digest.update(weights[name].numpy().tobytes())
    assert digest.hexdigest() == IMAGE_WEIGHTS


def test_the_shipped_model_tracks(nano_bundle: Path) -> None:
    with samrt.load(nano_bundle) as model:
        scores = evaluate_video(BundleTracker(model), "mask", 2, length=25)
    assert scores.j_and_f >= 0.85


def test_the_runtime_tracks_as_the_loop_does(nano_bundle: Path) -> None:
    clip = list(held_out_clips(2))[1]
    with samrt.load(nano_bundle) as model:
        kinds: tuple[Kind, ...] = ("click", "box", "mask")
        for kind in kinds:
            ours, loop = (
                follow(tracker, clip, kind, length=6) for tracker in (BundleTracker(model), TorchTracker(nano()))
            )
            for one, other in zip(ours, loop, strict=True):
                assert one.j_and_f == pytest.approx(other.j_and_f, abs=0.01)  # the loop fills no holes


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bar"), [("click", 0.80), ("mask", 0.85)])
def test_the_shipped_model_on_50_clips(nano_bundle: Path, kind: Kind, bar: float) -> None:
    with samrt.load(nano_bundle) as model:
        scores = evaluate_video(BundleTracker(model), kind, 50)
    print(scores)
    assert scores.clips == 50
    assert scores.j_and_f >= bar
