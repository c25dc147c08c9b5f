"""What one benchmark run found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samrt.bench.process import Process


@dataclass(frozen=True)
class Row:
    """One contender at one task and batch. Times in milliseconds; what was not measured is None.

    ran_on: "numpy" where no graph runs. quartiles_ms: the middle half of the runs. per_second: pictures, prompts or objects
    at the median. gflop: the work of one run, 1e9 operations. share_of_peak: work over time, as a part of the machine's
    probed peak. ratio, ratio_quartiles: how many times samrt's time, paired round by round. relative_l2: largest relative error
    of samrt's outputs against this contender's. mask_iou: smallest IoU between samrt's masks and this contender's.
    """

    task: str
    kind: str  # "graph" or "whole"
    batch: int
    contender: str
    ran_on: str
    precision: str
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    quartiles_ms: tuple[float, float]
    per_second: float
    gflop: float | None = None
    share_of_peak: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    relative_l2: float | None = None
    mask_iou: float | None = None


@dataclass(frozen=True)
class GraphFacts:
    """One graph as it was loaded: file and size (external data included), and what it needs in a process of its own."""

    file: str
    model_bytes: int
    plan_bytes: int | None
    precision: str
    ran_on: str
    process: Process


@dataclass(frozen=True)
class Skipped:
    """A contender that was asked for and could not be measured, from a task on, and why."""

    contender: str
    task: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything one run of `bench` found."""

    model: str
    digest: str
    machine: Mapping[str, Any]
    image_hw: tuple[int, int]
    graphs: Mapping[str, GraphFacts]
    processes: Mapping[str, Process]
    """Contender -> what it needs in a process of its own: load, encode one picture, answer one click."""
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = ()
    masks_found: int | None = None
    """How many a model that proposes masks found in the picture, which the host's work grows with. None for other models."""

    @property
    def contenders(self) -> tuple[str, ...]:
        """Everyone with a row, samrt first."""
        return tuple(dict.fromkeys(row.contender for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values. Numbers may be infinite; `samrt.commands.output.json_text` writes null for those."""
        return asdict(self)
