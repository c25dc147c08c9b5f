"""What a tracker is between two frames: plain data, which a file can hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samrt.features import Features
from samrt.video.bank import MemoryBank
from samrt.video.outcome import Outcome
from samrt.video.requests import Request


@dataclass(slots=True)
class LastFrame:
    """The frame that was stepped last. What it leaves in memory is made when the next one comes: it can be corrected."""

    index: int
    image: NDArray[np.uint8] | None
    """Only while nothing has needed its features."""
    features: Features | None
    outcome: Outcome | None
    """Of all objects; None where there are none."""
    tracked: list[bool]
    """For each object, whether it was remembered when the frame came."""
    requests: dict[int, Request] = field(default_factory=dict)
    """What was asked about the frame, by object id."""


@dataclass(slots=True)
class TrackerState:
    """All that a tracker knows."""

    bank: MemoryBank
    obj_ids: list[int] = field(default_factory=list)
    """Of the bank's rows."""
    pending: dict[int, Request] = field(default_factory=dict)
    """What was asked about the frame that comes next, by object id."""
    last: LastFrame | None = None
    next_index: int = 0
    hw: tuple[int, int] | None = None
    """The size of all frames, once there was one."""
