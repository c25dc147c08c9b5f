"""Reading ahead: the same frames, no thread left behind, errors where they belong, old frames dropped."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from samrt import ImageError, InputError
from samrt.media import Prefetched, open_frames

from .clips import collect, number, numbers, paint, write_clip


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("samrt reads")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert readers() == []


class Source:
    """Frames 0, 1, ... that come when `let` says so; takes note of how many were asked for."""

    def __init__(self, count: int = 1000, gated: bool = False) -> None:
        self.asked = 0
        self.permits = threading.Semaphore(0)
        self.reached = threading.Condition()
        self._count, self._gated = count, gated

    def let(self, frames: int) -> None:
        self.permits.release(frames)

    def wait_until_asked(self, count: int) -> None:
        with self.reached:
            assert self.reached.wait_for(lambda: self.asked >= count, timeout=30)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(self._count):
            with self.reached:
                self.asked += 1
                self.reached.notify_all()
            if self._gated and not self.permits.acquire(timeout=30):
                raise TimeoutError
            yield paint(index % 256)


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_the_same_frames(tmp_path: Path, depth: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", 30)
    ahead = Prefetched(open_frames(path, start=3, every=2), depth)
    assert (ahead.fps, ahead.size_hw, ahead.count) == (10, (32, 128), 14)
    timed = list(ahead.timed())
    assert [frame.index for frame in timed] == numbers(frame.image for frame in timed) == list(range(3, 30, 2))
    assert ahead.dropped == 0
    with pytest.raises(InputError, match="was read before"):
        list(ahead)


def test_it_reads_ahead_and_no_further_than_its_depth() -> None:
    source = Source()
    frames = iter(Prefetched(iter(source), depth=3))
    assert number(next(frames)) == 0
    source.wait_until_asked(5)  # 1 taken, 3 wait, 1 in the thread's hand
    for expected in range(1, 20):
        assert number(next(frames)) == expected
        assert source.asked <= expected + 5
    frames.close()  # type: ignore[attr-defined]


def test_an_error_comes_after_the_frames_before_it() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from (paint(index) for index in range(3))
        raise ZeroDivisionError("in the reader")

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError, match="in the reader"):
        collect(Prefetched(broken()), seen)
    assert seen == [0, 1, 2]


def test_break_ends_the_thread() -> None:
    for image in Prefetched(iter(Source())):
        assert number(image) == 0
        assert len(readers()) == 1
        break
    assert readers() == []


def test_an_exception_of_the_reader_ends_the_thread() -> None:
    def interrupted(frames: Prefetched) -> None:
        with frames:
            next(iter(frames))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(Prefetched(iter(Source())))
    assert readers() == []


def test_a_forgotten_one_ends_its_thread() -> None:
    frames = Prefetched(iter(Source()))
    iterator = iter(frames)
    next(iterator)
    assert len(readers()) == 1
    del frames, iterator
    gc.collect()
    assert readers() == []


def test_one_that_was_never_read_has_no_thread() -> None:
    frames = Prefetched(iter(Source()))
    assert readers() == []
    frames.close()
    with pytest.raises(InputError, match="was read before"):
        next(iter(frames))


def test_the_source_is_closed_with_it(tmp_path: Path) -> None:
    closed = []

    def source() -> Iterator[np.ndarray]:
        try:
            yield from Source()
        finally:
            closed.append(True)

    for _ in Prefetched(source()):
        break
    gc.collect()
    assert closed == [True]


def test_drop_oldest_gives_the_newest_and_counts() -> None:
    source = Source(gated=True)
    ahead = Prefetched(iter(source), drop="oldest")
    frames = iter(ahead)
    source.let(1)
    assert number(next(frames)) == 0
    source.let(9)  # frames 1 to 9 come while nobody looks
    source.wait_until_asked(11)
    assert number(next(frames)) == 9
    assert ahead.dropped == 8
    source.let(1)
    assert number(next(frames)) == 10
    source.let(5)
    source.wait_until_asked(17)
    assert number(next(frames)) == 15
    assert ahead.dropped == 12
    source.let(1000)
    ahead.close()
    assert list(frames) == []


def test_without_a_policy_nothing_is_dropped() -> None:
    source = Source(count=40)
    ahead = Prefetched(iter(source), depth=2)
    assert numbers(ahead) == list(range(40))
    assert ahead.dropped == 0


def test_a_silent_source_is_an_error() -> None:
    source = Source(gated=True)
    ahead = Prefetched(iter(source), timeout_s=0.3)
    source.let(2)
    frames = iter(ahead)
    assert [number(next(frames)) for _ in range(2)] == [0, 1]
    source.wait_until_asked(3)
    late = threading.Timer(0.6, source.let, (1000,))
    late.start()
    with pytest.raises(ImageError, match=r"stopped delivering \| got: no frame for 0.3 s, after 2 frames"):
        next(frames)
    late.join()


def test_until_ends_a_wait() -> None:
    source = Source(gated=True)
    enough = threading.Event()
    ahead = Prefetched(iter(source), until=enough.is_set)
    source.let(1)
    frames = iter(ahead)
    assert number(next(frames)) == 0
    source.wait_until_asked(2)
    threading.Timer(0.1, enough.set).start()
    threading.Timer(0.3, source.let, (1000,)).start()
    assert list(frames) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"depth": 0}, "depth is not usable"), ({"drop": "newest"}, "unknown drop policy | got: 'newest'")],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Prefetched([paint(0)], **arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
