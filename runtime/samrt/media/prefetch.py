"""Frames read ahead on a thread, so that decoding and the model work at the same time."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self

from samrt.images import Image
from samrt.media.frames import Frames, TimedFrame, Uint8Array
from samrt.media.opening import open_frames
from samrt_engines.errors import ImageError, InputError

_DEPTH = 4
_POLL_S = 0.1  # how often a waiting consumer asks whether to give up
_JOIN_S = 5.0  # how long a reader may take to notice; one that hangs in a driver is left behind, as a daemon


class Prefetched:
    """Frames of a source, read ahead by one thread that lives while somebody iterates.

    depth: how many frames wait at most; 4, or 1 where old ones are dropped
    drop: None, the source waits for the reader; "oldest", a frame that nobody took makes way for the next one, so that
        the reader gets the newest. `dropped` counts them
    timeout_s: how long the source may be silent, ImageError after; for live sources theirs, else for ever
    until: asked again and again while waiting; iteration ends without an error once it returns True

    Read once. Errors of the source are raised where the reader would have got the frame. The thread ends when iteration
    does: at the end, on break, on an exception, on Ctrl-C, when this is closed or forgotten.
    """

    def __init__(
        self,
        frames: Frames | Iterable[Image],
        depth: int | None = None,
        *,
        drop: Literal["oldest"] | None = None,
        timeout_s: float | None = None,
        until: Callable[[], bool] | None = None,
    ):
        if drop not in (None, "oldest"):
            raise InputError("unknown drop policy", got=repr(drop), expected="None or 'oldest'")
        depth = (1 if drop else _DEPTH) if depth is None else depth
        if depth < 1:
            raise InputError("depth is not usable", got=repr(depth), expected="at least 1")
        self.frames = open_frames(frames)
        self.name, self.live = self.frames.name, self.frames.live
        self._timeout_s = getattr(self.frames, "timeout_s", None) if timeout_s is None else timeout_s
        self._until = until
        self._channel = _Channel(depth, drop)
        self._thread = threading.Thread(
            target=_produce, args=(self.frames, self._channel), name=f"samrt reads {self.name}", daemon=True
        )
        self._started = False
        self._finalize = weakref.finalize(self, _end, self._channel, self._thread)

    @property
    def fps(self) -> float | None:
        return self.frames.fps

    @property
    def size_hw(self) -> tuple[int, int] | None:
        return self.frames.size_hw

    @property
    def count(self) -> int | None:
        return self.frames.count

    @property
    def dropped(self) -> int:
        """Frames that were read and that nobody got, so far."""
        return self._channel.dropped

    def __iter__(self) -> Iterator[Uint8Array]:
        for frame in self.timed():
            yield frame.image

    def timed(self) -> Generator[TimedFrame, None, None]:
        """The frames with numbers and times."""
        if self._started:
            raise InputError(f"{self.name} was read before", got="a second reading", fix="Prefetched(frames) again")
        self._started = True
        taken = 0
        try:
            self._thread.start()
            while (frame := self._channel.take(self._timeout_s, self._until, self.name, taken)) is not None:
                taken += 1
                yield frame
        finally:
            self.close()

    def close(self) -> None:
        """End the thread."""
        self._started = True
        self._finalize()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Channel:
    """What reader and thread share. The thread holds nothing else, so that a forgotten `Prefetched` can end it."""

    def __init__(self, depth: int, drop: str | None):
        self.dropped = 0
        self._depth, self._drop = depth, drop
        self._waiting: deque[TimedFrame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, frame: TimedFrame) -> bool:
        """Hand a frame over; False once nobody wants it any more."""
        with self._changed:
            if self._drop is None:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._depth)
            while len(self._waiting) >= self._depth and not self._closed:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(frame)
            self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def take(
        self, timeout_s: float | None, until: Callable[[], bool] | None, name: str, taken: int
    ) -> TimedFrame | None:
        """The next frame; None at the end. Raises what the source raised, ImageError for a silent source."""
        began = time.monotonic()
        with self._changed:
            while not (self._waiting or self._ended or self._closed):
                if until is not None and until():
                    return None
                self._changed.wait(_POLL_S)
                if timeout_s is not None and time.monotonic() - began > timeout_s and not self._waiting:
                    raise ImageError(
                        f"{name} stopped delivering",
                        got=f"no frame for {timeout_s:g} s, after {taken} frames",
                        expected=f"a frame within {timeout_s:g} s",
                        fix="check the camera or the network, and open it again",
                    )
            if self._waiting and not self._closed:
                frame = self._waiting.popleft()
                self._changed.notify_all()
                return frame
            if self._error is not None and not self._closed:
                error, self._error = self._error, None
                raise error
            return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()


def _produce(frames: Frames, channel: _Channel) -> None:
    """The thread's work."""
    error: BaseException | None = None
    source: Any = frames.timed()
    try:
        for frame in source:
            if not channel.put(frame):
                break
    except BaseException as caught:  # whatever it is, the reader gets it, as if it had read the source itself
        error = caught
    finally:
        source.close()
        channel.end(error)


def _end(channel: _Channel, thread: threading.Thread) -> None:
    channel.close()
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join(_JOIN_S)
