"""What TensorRT says: errors kept for the exception, the rest for Python's logging; and how far a build has come."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LOGGER = logging.getLogger("samrt.tensorrt")

_LONGEST_MESSAGE = 1000  # characters; the optimiser quotes a whole fused subgraph


@dataclass(slots=True)
class Messages:
    """What TensorRT logged as errors while a `collect_errors` block ran."""

    thread: int
    errors: list[str] = field(default_factory=list)

    def text(self) -> str:
        """All errors in one line, each at most `_LONGEST_MESSAGE` characters, without repetitions."""
        short = (" ".join(error.split()) for error in self.errors)
        cut = (text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " [...]" for text in short)
        return "; ".join(dict.fromkeys(cut)) or "TensorRT gave no reason"


_collecting: list[Messages] = []
_collecting_lock = threading.Lock()


@contextmanager
def collect_errors() -> Iterator[Messages]:
    """Keep what TensorRT logs as errors, for the message of an exception."""
    messages = Messages(threading.get_ident())
    with _collecting_lock:
        _collecting.append(messages)
    try:
        yield messages
    finally:
        with _collecting_lock:
            _collecting.remove(messages)


@functools.cache
def open_logger(trt: Any) -> Any:
    """The TensorRT logger of this process.

    There is one, because TensorRT has one: while a builder or runtime lives, the loggers of later ones are ignored.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT is loaded at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            if level == logging.ERROR and _keep_error(message):
                level = logging.INFO  # the exception will say it: once is enough
            LOGGER.log(level, "%s", message)

    return Logger()


def _keep_error(message: str) -> bool:
    """Give an error to the block it belongs to. From a thread of TensorRT's own, that may be any that is open."""
    thread = threading.get_ident()
    with _collecting_lock:
        mine = [messages for messages in _collecting if messages.thread == thread] or _collecting
        for messages in mine:
            messages.errors.append(message)
        return bool(mine)


@dataclass(frozen=True, slots=True)
class BuildStep:
    """How far a phase of a build has come. Phases nest; the outermost one has no parent."""

    phase: str
    parent: str | None
    done: int
    """Steps finished. A phase ends with `done == steps`, even one that skipped some."""
    steps: int


Progress = Callable[[BuildStep], None]
"""Told of every step of a build, from TensorRT's own threads. An exception it raises cancels the build."""


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int


def open_monitor(trt: Any, progress: Progress, failures: list[BaseException]) -> Any:
    """A TensorRT progress monitor that calls `progress`.

    failures: gets the exception that `progress` raised; it may not travel through TensorRT's C++ and has to be raised
        again by the caller, once the build that it cancelled has returned
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT is loaded at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, _Phase] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = _Phase(parent_phase, num_steps)
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """False asks TensorRT to stop."""
            self._tell(phase_name, step + 1)
            return not failures

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._phases[phase_name].steps)
            del self._phases[phase_name]

        def _tell(self, name: str, done: int) -> None:
            if failures:
                return
            phase = self._phases[name]
            try:
                progress(BuildStep(name, phase.parent, done, phase.steps))
            except BaseException as error:  # Ctrl-C arrives here too, and C++ would end the process
                failures.append(error)

    return Monitor()
