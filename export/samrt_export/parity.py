"""Is a graph the module it was made from? Measured on live inputs, with dead outputs refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samrt_engines.errors import DeadOutputError, ParityError
from samrt_engines.executor import Executor
from samrt_export.registry import Feeds, GraphSpec

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}
"""Largest relative error (L2) per output, by precision. bf16 has three bits less than fp16: eight times as much. A cosine
follows: it is at least sqrt(1 - e^2), for fp16 0.99998."""
ALIVE = 1e-3
"""Smallest relative change of an output between two inputs; a hundred tolerances."""
SEEDS = (0, 1)


@dataclass(frozen=True)
class ParityRow:
    """One output of one graph at one set of sizes, against PyTorch in fp32, over two input sets together.

    alive: how much the output changes between the two input sets, relative (L2). cosine: of the flattened outputs.
    """

    graph: str
    form: str
    output: str
    sizes: dict[str, int]
    max_abs: float
    relative_l2: float
    cosine: float
    alive: float
    tolerance: float

    @property
    def is_alive(self) -> bool:
        """Whether the output varies with the input."""
        return self.alive >= ALIVE

    @property
    def ok(self) -> bool:
        """Within tolerance, and alive."""
        return self.is_alive and self.relative_l2 <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return asdict(self) | {"ok": self.ok}


def form_name(precision: str, targets: tuple[str, ...]) -> str:
    """What reports call a form: "fp32", or "fp32 for onnxruntime-cpu"."""
    return f"{precision} for {', '.join(targets)}" if targets else precision


@dataclass(frozen=True)
class ReferenceRun:
    """A graph's module on two input sets (`SEEDS`) at one set of sizes: what every form of the graph is compared with."""

    sizes: dict[str, int]
    feeds: tuple[Feeds, ...]
    outputs: tuple[Feeds, ...]


def reference_runs(spec: GraphSpec) -> tuple[ReferenceRun, ...]:
    """Run the module at the sizes of ``spec.checks``."""
    return tuple(reference_run(spec, sizes) for sizes in spec.checks)


def reference_run(spec: GraphSpec, sizes: Mapping[str, int]) -> ReferenceRun:
    """Run the module at one set of sizes."""
    feeds = tuple(spec.sample(sizes, seed) for seed in SEEDS)
    return ReferenceRun(dict(sizes), feeds, tuple(run_module(spec, feed) for feed in feeds))


def measure_parity(
    spec: GraphSpec,
    executor: Executor,
    precision: str,
    targets: tuple[str, ...] = (),
    runs: tuple[ReferenceRun, ...] | None = None,
) -> Iterator[ParityRow]:
    """Run a stored form of a graph where its module was run; ``runs`` where they were made before."""
    runs = reference_runs(spec) if runs is None else runs
    usual = {out.name: _rms([made[out.name] for run in runs for made in run.outputs]) for out in spec.outputs}
    for run in runs:
        ours, theirs = [executor.run(feed) for feed in run.feeds], run.outputs
        for output in (out.name for out in spec.outputs):
            max_abs, relative_l2, cosine = _errors(
                [a[output] for a in ours], [b[output] for b in theirs], usual[output]
            )
            yield ParityRow(
                graph=spec.name,
                form=form_name(precision, targets),
                output=output,
                sizes=run.sizes,
                max_abs=max_abs,
                relative_l2=relative_l2,
                cosine=cosine,
                alive=_relative_l2(theirs[0][output], theirs[1][output]),
                tolerance=TOLERANCE[precision],
            )


def refuse_misses(rows: Sequence[ParityRow], found: Callable[[], str] = str) -> None:
    """Raise DeadOutputError or ParityError for the first row that is not right.

    found: what more to say of a miss, worked out only then
    """
    for row in rows:
        where = f"{row.graph} in {row.form}: output '{row.output}' at {row.sizes}"
        if not row.is_alive:
            raise DeadOutputError(
                f"{where} does not depend on the input, so parity would prove nothing",
                got=f"changes by {row.alive:.1e} (relative)",
                expected=f"at least {ALIVE:.0e}",
                fix="check the weights: an untrained or zeroed head does this",
            )
        if not row.ok:
            raise ParityError(
                f"{where} differs from PyTorch",
                got=f"relative error {row.relative_l2:.2e}{found()}",
                expected=f"at most {row.tolerance:.0e}",
            )


def run_module(spec: GraphSpec, feeds: Feeds) -> Feeds:
    """The PyTorch module on a graph's feeds."""
    with torch.inference_mode():
        outputs = spec.module(*(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs))
    return {tensor.name: value.numpy() for tensor, value in zip(spec.outputs, outputs, strict=True)}


def summary(rows: list[ParityRow]) -> dict[str, dict[str, float]]:
    """The manifest's entry: the worst figures per output."""
    worst: dict[str, dict[str, float]] = {}
    for row in rows:
        entry = worst.setdefault(row.output, {"max_abs": 0.0, "relative_l2": 0.0, "cosine": 1.0})
        entry["max_abs"] = max(entry["max_abs"], row.max_abs)
        entry["relative_l2"] = max(entry["relative_l2"], row.relative_l2)
        entry["cosine"] = min(entry["cosine"], row.cosine)
    return worst


def _errors(ours: list[NDArray[Any]], theirs: list[NDArray[Any]], usual: float) -> tuple[float, float, float]:
    """Max abs difference, relative L2 error, cosine, of both input sets as one vector.

    usual: the root mean square of the output over all runs, below which the yardstick never is: of a single prompt's single
        score, two numbers near zero may be all there is
    A wrong shape or a value that is not a number counts as infinitely wrong.
    """
    if any(a.shape != b.shape or not np.isfinite(a).all() for a, b in zip(ours, theirs, strict=True)):
        return float("inf"), float("inf"), -1.0
    x, y = (np.concatenate([part.astype(np.float64).ravel() for part in parts]) for parts in (ours, theirs))
    size = float(np.linalg.norm(y))
    error = float(np.linalg.norm(x - y)) / max(size, usual * float(np.sqrt(y.size)), 1e-30)
    norms = float(np.linalg.norm(x)) * size
    return float(np.abs(x - y).max(initial=0.0)), error, min(1.0, float(x @ y) / norms) if norms else 1.0


def _rms(parts: list[NDArray[Any]]) -> float:
    """Root mean square of all elements."""
    count = sum(part.size for part in parts)
    return float(np.sqrt(sum(float(np.square(part.astype(np.float64)).sum()) for part in parts) / max(1, count)))


def _relative_l2(a: NDArray[Any], b: NDArray[Any]) -> float:
    """|a - b| / |b|."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30))


def failures(rows: Mapping[str, list[ParityRow]] | list[ParityRow]) -> list[ParityRow]:
    """The rows that miss."""
    flat = [row for part in rows.values() for row in part] if isinstance(rows, Mapping) else rows
    return [row for row in flat if not row.ok]
