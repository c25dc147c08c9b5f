"""Timing calls beside each other, in turns, so that whatever else the machine does falls on all of them alike.

A turn is one run, or up to five short ones; in each round every contender has one turn, and the order rotates from round
to round. With several contenders each turn begins with a pause, in which the others' thread pools stop spinning for work,
and one run that is not counted, so that a contender finds its own data in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]

WARMUP = 3
FEWEST_RUNS = 5
SETTLE_S = 0.05
"""ONNX Runtime's threads spin for some milliseconds after a run; PyTorch's OpenMP ones for up to 200 by default."""
LONGEST_TURN, TURN_MS = 5, 50.0
"""Runs in a turn at most, and how long a turn of more than one run may take."""


@dataclass(frozen=True)
class Times:
    """One contender's times at one task: of each run, and the median of each turn."""

    run_ms: NDArray[np.float64]
    turn_ms: NDArray[np.float64]

    @property
    def median_ms(self) -> float:
        """The median of all runs."""
        return float(np.median(self.run_ms))


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another: the median over the rounds, and the quartiles."""

    median: float
    quartiles: tuple[float, float]


def time_in_turns(
    calls: Mapping[str, Call], *, runs: int, seconds: float, settle_s: float = SETTLE_S
) -> dict[str, Times]:
    """Time every call ``runs`` times.

    seconds: after which no new round begins; at least 5 runs each are made all the same
    """
    names = list(calls)
    pause_s = settle_s if len(names) > 1 else 0.0
    slowest_ms = max(_warm_up(call) for call in calls.values())
    turn = int(min(LONGEST_TURN, max(1.0, TURN_MS / max(slowest_ms, 1e-6)), runs)) if len(names) > 1 else 1
    turns: dict[str, list[list[float]]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    done = index = 0
    while done < runs:
        if done >= FEWEST_RUNS and time.perf_counter() > deadline:
            break
        count = min(turn, runs - done)
        for name in rotated(names, index):
            turns[name].append(_take_turn(calls[name], count, pause_s))
        done += count
        index += 1
    return {
        name: Times(np.concatenate([np.array(one) for one in parts]), np.array([np.median(one) for one in parts]))
        for name, parts in turns.items()
    }


def rotated(names: list[str], index: int) -> list[str]:
    """The order of round ``index``: everyone comes first, second, ... equally often."""
    first = index % len(names)
    return names[first:] + names[:first]


def paired_ratio(times: Times, base: Times) -> Ratio:
    """Compare two contenders round by round: what slows a whole round down cancels out."""
    paired = times.turn_ms / base.turn_ms
    low, median, high = (float(np.percentile(paired, q)) for q in (25, 50, 75))
    return Ratio(median, (low, high))


def _warm_up(call: Call) -> float:
    """Run a call a few times; returns the milliseconds of the last one."""
    elapsed = 0.0
    for _ in range(WARMUP):
        elapsed = _milliseconds(call)
    return elapsed


def _take_turn(call: Call, count: int, pause_s: float) -> list[float]:
    if pause_s:
        time.sleep(pause_s)
        call()
    return [_milliseconds(call) for _ in range(count)]


def _milliseconds(call: Call) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6
