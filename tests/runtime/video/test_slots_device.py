"""Memory that stays on the GPU: the same masks as on the host, no copy to it, no growth. The GPU is simulated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samrt import VideoPredictor, VideoTracker
from samrt.video.bank import MemoryBank
from samrt_engines.device_block import DeviceBlock
from samrt_engines.errors import DeviceError, InputError

from .doubles import DIM, HW, MASK, SIZE, VIDEO, WIDTH, Model, clip
from .gpu_doubles import Machine

RED, BLUE = [10.0, 12.0], [32.0, 30.0]
MAP_BYTES, POINTER_BYTES = 4 * HW * WIDTH, 4 * DIM  # of one object on one frame


@pytest.fixture(params=["tensorrt", "onnxruntime"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(monkeypatch, request.param)
    with ExitStack() as stack:
        stack.callback(machine.scratch.close)
        yield machine


def played(tracker: VideoTracker, frames: list[np.ndarray], path: Path | None = None) -> list[np.ndarray]:
    """A session with everything in it: prompts before and after frames, masks, objects that come and go. Its logits."""
    shown = []
    for number, frame in enumerate(frames):
        if number == 0:
            tracker.add_points(1, [RED], [1])
            tracker.add_points(2, [BLUE], [1])
        elif number == 4:
            tracker.add_box(5, [20, 18, 30, 30])
        elif number == 6:
            tracker.add_mask(7, frame[..., 0] > 200)
            tracker.add_points(5, [[5, 25]], [0])
        elif number == 12:
            tracker.remove_object(2)
        elif number == 14:
            tracker.add_points(9, [BLUE], [1])
            tracker.add_points(1, [RED], [1])
        elif number == 21:
            tracker.remove_object(9)
        if number == 17 and path is not None:
            tracker.save(path)
            tracker = VideoTracker.restore(tracker.model, path)
        shown.append(tracker.step(frame).logits)
        if number in (9, 10, 16):
            corrected = tracker.add_points(1, [[5, 25]], [0], frame="last")
            assert corrected is not None
            shown.append(corrected.logits)
    return shown


@pytest.mark.parametrize("most_objects", [64, 2])
def test_the_same_masks_as_on_the_host(machine: Machine, tmp_path: Path, most_objects: int) -> None:
    """Bit for bit, saved and restored in the middle on either side; in one batch, and in parts of two objects."""
    frames = clip(26)
    expected = played(VideoTracker(Model(most_objects=most_objects)), frames)
    for path in (None, tmp_path / "tracker.npz"):
        tracker = VideoTracker(machine.model(most_objects=most_objects))
        for one, other in zip(played(tracker, frames, path), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(np.unique(expected[-1])) > 50


def test_a_state_goes_from_the_gpu_to_the_host_and_back(machine: Machine, tmp_path: Path) -> None:
    frames = clip(16)
    models: list[Any] = [machine.model(), Model(), machine.model()]
    steady = VideoTracker(Model())
    tracker = VideoTracker(models[0])
    for each in (steady, tracker):
        each.add_points(1, [RED], [1])
        each.add_points(2, [BLUE], [1])
    for number, frame in enumerate(frames):
        if number in (5, 10):
            tracker.save(tmp_path / "tracker.npz")
            tracker = VideoTracker.restore(models[number // 5], tmp_path / "tracker.npz")
        np.testing.assert_array_equal(tracker.step(frame).logits, steady.step(frame).logits)
        assert tracker.nbytes == steady.nbytes
    with np.load(tmp_path / "tracker.npz") as file:
        assert file["bank_memory"].shape == (2, 7, HW, WIDTH)
        assert file["bank_memory"].any(axis=(2, 3)).all()
    assert [len(machine.driver.live()) > 0, isinstance(block_of(tracker), DeviceBlock)] == [True, True]


def block_of(tracker: VideoTracker) -> Any:
    return tracker._state.bank._maps.block  # type: ignore[attr-defined]


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    tracker = VideoTracker(Model())  # type: ignore[arg-type]
    tracker.save(tmp_path / "tracker.npz")
    with np.load(tmp_path / "tracker.npz") as file:
        arrays = dict(file)
    arrays["state"] = np.array(str(arrays["state"]).replace('"version": 2', '"version": 1'))
    np.savez(tmp_path / "tracker.npz", **arrays)
    with pytest.raises(
        InputError, match=r"cannot restore .* got: samrt-tracker, version 1 \| expected: a file that Video"
    ):
        VideoTracker.restore(Model(), tmp_path / "tracker.npz")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 3])
def test_memory_never_comes_to_the_host(machine: Machine, count: int) -> None:
    """In steady state: one picture and the masks' way to the memory encoder go up, what makes masks comes down."""
    tracker = VideoTracker(machine.model())
    for obj_id in range(count):
        tracker.add_points(obj_id, [[4.0 + 8 * obj_id, 10]], [1])
    frames = clip(30)
    for frame in frames[:20]:
        tracker.step(frame)
    for frame in frames[20:]:
        machine.forget()
        tracker.step(frame)
        masks, scores, object_scores, tokens = 4 * 4 * MASK * MASK, 4 * 4, 4, 4 * 4 * DIM
        assert sorted(machine.copies("gpu", "host")) == sorted(
            count * size for size in (masks, scores, object_scores, tokens)
        )
        assert machine.driver.sizes == {"cuMemcpyDtoDAsync_v2": [MAP_BYTES, POINTER_BYTES] * count}
        assert machine.driver.calls["cuMemAlloc_v2"] == 0
        if machine.backend == "tensorrt":
            encoder = 4 * (MASK * MASK + 1 + 1 + DIM)  # logits, whether prompted, object score, token
            attention = 4 * (7 + 7 + 16 + 16)  # times, distances and what is valid of maps and pointers
            up = machine.copies("host", "gpu")
            assert sum(up) == 4 * SIZE * SIZE * 3 + count * (encoder + attention)


@pytest.mark.parametrize("most_objects", [64, 2])
def test_memory_is_attended_to_once_when_prompts_meet_tracked_objects(machine: Machine, most_objects: int) -> None:
    """Two of three objects are corrected on the frame that comes: what the frame looks like to them is known already."""
    outs = []
    models: list[Any] = [Model(most_objects=most_objects), machine.model(most_objects=most_objects)]
    for model in models:
        tracker = VideoTracker(model)
        for obj_id, point in enumerate((RED, [5, 25], BLUE)):
            tracker.add_points(obj_id, [point], [1])
        frames = clip(8)
        for frame in frames[:6]:
            tracker.step(frame)
        before = model.calls["memory_attention"], model.calls["mask_decoder"]
        for obj_id in (0, 2):
            tracker.add_points(obj_id, [[20, 20]], [0])
        machine.forget()
        outs.append(tracker.step(frames[6]).logits)
        batches = -(-3 // most_objects)
        assert model.calls["memory_attention"] - before[0] == batches
        assert model.calls["mask_decoder"] - before[1] == batches + 1
        if model is models[1]:
            # Only what the decoder says comes down: masks, scores, object scores and tokens of three objects, then of two.
            assert sum(machine.copies("gpu", "host")) == (3 + 2) * 4 * (4 * MASK * MASK + 4 + 1 + 4 * DIM)
        outs.append(tracker.add_points(1, [RED], [0], frame="last").logits)  # type: ignore[union-attr]
        assert model.calls["memory_attention"] - before[0] == batches + 1
    for one, other in zip(outs[:2], outs[2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_grows_over_300_frames(machine: Machine) -> None:
    """With prompts, and objects that come and go: as many bytes and blocks on the GPU at the end as early on."""
    tracker = VideoTracker(machine.model())
    tracker.add_points(0, [RED], [1])
    frames = clip(60)
    sizes, counts = [], []
    for number in range(300):
        if number % 50 == 10:
            tracker.add_points(1, [BLUE], [1])
        if number % 50 == 20:
            tracker.add_points(0, [RED], [1], frame="last")
        if number % 50 == 40:
            tracker.remove_object(1)
        tracker.step(frames[number % 60])
        machine.driver.forget()
        if number % 50 == 49:
            gc.collect()
            live = machine.driver.live()
            sizes.append((sum(block.size for block in live), machine.gpu.live_bytes()))
            counts.append(len(live))
            assert sum(block.size for block in live) == tracker.nbytes
    assert counts == [2] * 6  # maps and pointers
    assert len(set(sizes[3:])) == 1
    most = (4 + VIDEO.recent_frames) * MAP_BYTES + (4 + VIDEO.max_object_pointers - 1) * POINTER_BYTES
    assert sizes[-1][0] <= most
    del tracker
    gc.collect()
    assert machine.driver.live() == []


def test_places_that_nothing_was_put_into_are_finite(machine: Machine) -> None:
    """A young object beside an old one: fresh memory on the GPU is full of whatever was there, here of 0xCD."""
    seen = []
    model = machine.model()
    tracker = VideoTracker(model)
    real = model.executors["memory_attention"].run_device

    def look(feeds: Any, *rest: Any) -> Any:
        seen.append({name: one if isinstance(one, np.ndarray) else one.numpy() for name, one in feeds.items()})
        return real(feeds, *rest)

    model.executors["memory_attention"].run_device = look
    tracker.add_points(1, [RED], [1])
    for number, frame in enumerate(clip(9)):
        if number == 6:
            tracker.add_points(2, [BLUE], [1])
        tracker.step(frame)
    feeds = seen[-1]
    assert feeds["memory_valid"].sum(axis=1).tolist() == [7, 2]
    assert not feeds["memory"][1, 2:].any()
    assert not feeds["object_pointers"][1, 2:].any()
    assert feeds["memory"][0].any(axis=(1, 2)).all()


@pytest.mark.parametrize("offload", [False, True])
def test_the_predictor_keeps_memory_where_it_is_told_to(machine: Machine, offload: bool) -> None:
    """On the GPU, or on the host: all of it, forwards and backwards from a prompt in the middle, with a correction."""
    outs = []
    for model in (Model(), machine.model()):
        predictor = VideoPredictor(model)  # type: ignore[arg-type]
        state = predictor.init_state(clip(14), offload_state_to_cpu=offload)
        predictor.add_new_points_or_box(state, 6, 1, [RED], [1])
        predictor.add_new_mask(state, 6, 2, clip(1)[0][..., 2] > 200)
        shown = [masks for _, _, masks in predictor.propagate_in_video(state)]
        machine.forget()
        shown += [masks for _, _, masks in predictor.propagate_in_video(state, reverse=True)]
        if len(outs):
            down = {MAP_BYTES, 2 * MAP_BYTES} & {*machine.copies("gpu", "host")}
            assert bool(down) == offload
            assert bool(machine.driver.live()) != offload
        predictor.add_new_points_or_box(state, 9, 1, [[5, 25]], [0])
        shown += [masks for _, _, masks in predictor.propagate_in_video(state, 8, 4)]
        outs.append(shown)
    for one, other in zip(*outs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_bank_that_keeps_everything_can_keep_it_on_the_host(machine: Machine, on_host: bool) -> None:
    bank, plain = (MemoryBank(VIDEO, keep_everything=True, on_host=on_host) for _ in range(2))
    rng = np.random.default_rng(0)
    for each in (bank, plain):
        each.add_object()
        each.add_object()
    for frame in range(9):
        maps, pointers = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.normal(size=(2, 4)).astype(np.float32)
        on_gpu = []
        for values in (maps, pointers):
            block = DeviceBlock(values.shape, values.dtype, 0)
            block.write(values)
            on_gpu.append(block)
        prompted = [frame % 4 == 0, frame == 0]
        bank.write(frame, [0, 1], *on_gpu, prompted)
        plain.write(frame, [0, 1], maps, pointers, prompted)
    del block, on_gpu
    for rows in ([0, 1], [1], [0]):
        feeds, expected = bank.feeds(rows, 9), plain.feeds(rows, 9)
        for name, one in feeds.items():
            np.testing.assert_array_equal(one if isinstance(one, np.ndarray) else one.numpy(), expected[name])
        assert isinstance(feeds["memory"], np.ndarray) == on_host
    bank.forget(0, 3)
    bank.remove_object(1)
    del feeds, one
    assert len(machine.driver.live()) == (0 if on_host else 2 * 8 + 2)


def test_when_the_gpu_is_full_the_frame_can_be_given_again(machine: Machine) -> None:
    steady, tracker = VideoTracker(Model()), VideoTracker(machine.model())
    for number, frame in enumerate(clip(12)):
        if number in (0, 5):
            for each in (steady, tracker):
                each.add_points(number, [RED], [1])
        if number in (7, 9):
            for each in (steady, tracker):
                each.add_points(0, [RED], [1], frame="last")
        failures = {1: [("cuMemAlloc_v2", 0), ("cuMemAlloc_v2", 1)], 3: [("cuMemAlloc_v2", 1)]}
        failures |= {key: [("cuMemcpyDtoDAsync_v2", spare) for spare in range(4)] for key in range(6, 12)}
        for name, spare in failures.get(number, []):
            machine.driver.failing, machine.driver.spare = name, spare
            with pytest.raises(DeviceError, match=f"GPU memory failed in {name}"):
                tracker.step(frame)
            machine.driver.failing = ""
        np.testing.assert_array_equal(tracker.step(frame).logits, steady.step(frame).logits)
