"""Which backend runs a graph fastest on this machine: measured once, remembered, and open to inspection.

Speed alone chooses nothing: a candidate whose outputs differ from the reference's by more than the tolerance is out,
however fast it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from samrt_engines.errors import BackendError
from samrt_engines.executor import Executor
from samrt_engines.tensors import Array, TensorSpec

CACHE_VARIABLE = "SAMRT_CACHE"
"""The environment variable that names the folder for what samrt remembers; `cache_folder` says where it is without."""

TOLERANCE = 2e-5
"""Largest relative error (L2) of a candidate's outputs: two backends whose fp32 meets the export gate, 1e-5 each."""

_FORMAT = 1
_MARGIN = 0.03  # a later candidate has to be this much faster: less is noise, and the first is the best tested
_ROUNDS = 7
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}

Run = Callable[[], Mapping[str, Array]]
"""Runs a graph once, always on the same feeds."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen to run a graph, and why."""

    graph: str
    chosen: str
    seconds: Mapping[str, float]
    """Candidate -> median of its timed runs."""
    errors: Mapping[str, float]
    """Candidate -> largest relative error (L2) of its outputs against the reference's."""
    refused: Mapping[str, str]
    """Candidate -> why it was not measured."""
    context: Mapping[str, str] = field(default_factory=dict)
    """What the decision holds for: machine, threads, versions, checksums. Another context is measured anew."""


def choose(
    graph: str,
    candidates: Mapping[str, Run],
    reference: Mapping[str, Array] | None = None,
    *,
    tolerance: float = TOLERANCE,
    budget_seconds: float = 2.0,
    context: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], None] = lambda: time.sleep(0.005),
) -> Decision:
    """Measure the candidates and choose the fastest; the first one wins unless another is clearly faster.

    graph: what the decision and messages call it
    candidates: name -> run. The first run of each is its warm-up, and what its outputs are judged by
    reference: the right outputs; None takes the first candidate's
    tolerance: largest relative error (L2) of any output
    budget_seconds: no round begins once this is spent, warm-ups included; one is always timed
    pause: called before each timed run, so that the threads of the run before have stopped waiting for work

    A candidate that raises BackendError is out, with the reason. Raises BackendError when all are.
    """
    began = clock()
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, run in candidates.items():
        try:
            outputs = run()
        except BackendError as error:
            refused[name] = str(error)
            continue
        reference = outputs if reference is None else reference
        errors[name] = relative_error(outputs, reference)
        if not errors[name] <= tolerance:
            refused[name] = f"relative error {errors[name]:.1e}, above {tolerance:.0e}"
    fit = {name: run for name, run in candidates.items() if name not in refused}
    if not fit:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise BackendError(f"{graph}: no backend runs this graph", got=reasons or "no candidates")
    times = _measure(fit, began + budget_seconds, clock, pause) if len(fit) > 1 else {}
    seconds = {name: float(np.median(taken)) for name, taken in times.items()}
    enough = min(seconds.values(), default=0.0) * (1 + _MARGIN)
    chosen = next(name for name in fit if seconds.get(name, 0.0) <= enough)
    return Decision(graph, chosen, seconds, errors, refused, dict(context or {}))


def relative_error(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Largest relative L2 error of any output; infinite for one that is missing, of another shape, or not finite."""
    return max((_error(outputs.get(name), expected) for name, expected in reference.items()), default=math.inf)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a graph: a candidate that is opened only when it is needed."""

    backend: str
    """As `open_executor` takes it; it names the candidate."""
    sha256: str
    """Of the model file."""
    open: Callable[[], Executor]


def open_fastest(
    options: Sequence[Option],
    feeds: Callable[[], Mapping[str, Array]],
    *,
    graph: str,
    machine: str,
    threads: int | None = None,
    folder: Path | None = None,
    **measuring: Any,
) -> tuple[Executor, Decision]:
    """Open the fastest way to run a graph: the one remembered for this machine, else the one that measuring finds.

    options: the first one's outputs are the reference, and it has to work; the others may fail, which is noted
    feeds: makes the arrays to measure with; not called when a decision is remembered
    machine: what tells this machine from others, for example its processor's name and number of cores
    threads: what the options open with
    folder: where decisions are kept, None for `cache_folder`
    measuring: for `choose`: tolerance, budget_seconds, clock, pause

    With one option there is nothing to measure. Raises what opening and running the first option raises. A decision
    that cannot be written is measured again next time.
    """
    context = {
        "machine": machine,
        "threads": "backend's choice" if threads is None else str(threads),
        **{f"{one.backend} version": installed_version(one.backend) or "unknown" for one in options},
        **{f"{one.backend} model": one.sha256 for one in options},
    }
    if len(options) == 1:
        return options[0].open(), Decision(graph, options[0].backend, {}, {}, {}, context)
    store = DecisionStore(folder)
    known = store.load(graph, context)
    if known is not None:
        for option in options:
            if option.backend == known.chosen:
                return option.open(), known
    executors: dict[str, Executor] = {}
    with ExitStack() as opened:
        refused = {}
        for option in options:
            try:
                executors[option.backend] = opened.enter_context(option.open())
            except BackendError as error:
                if option is options[0]:
                    raise
                refused[option.backend] = str(error)
        arrays = feeds()
        runs: dict[str, Run] = {name: _runner(executor, arrays) for name, executor in executors.items()}
        decision = choose(graph, runs, context=context, **measuring)
        decision = replace(decision, refused={**refused, **decision.refused})
        store.save(decision)
        chosen = executors.pop(decision.chosen)
        opened.pop_all()
    for executor in executors.values():
        executor.close()
    return chosen, decision


def sample_feeds(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], ranges: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Array]:
    """Make up feeds for a graph, always the same: numbers that keep it busy, not a picture.

    sizes: symbol -> size
    ranges: input -> (least, most) of uniform numbers; without one, floats are normal, uint8 take all values, other
        integers are 0 (an index that is always there), and bools true
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
        values: Array
        if ranges and spec.name in ranges:
            values = rng.uniform(*ranges[spec.name], shape)
        elif spec.dtype == "uint8":
            values = rng.integers(0, 256, shape)
        elif spec.dtype.startswith("float"):
            values = rng.standard_normal(shape, np.float32)
        else:
            values = np.full(shape, spec.dtype == "bool")
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


class DecisionStore:
    """Decisions on disk, one small JSON file each, so that processes at work at the same time lose nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = (cache_folder() if folder is None else folder) / "choices"

    def load(self, graph: str, context: Mapping[str, str]) -> Decision | None:
        """The decision for exactly this context; None when there is none, or its file is damaged."""
        decision = _read_decision(self._path(graph, context))
        return decision if decision is not None and decision.context == dict(context) else None

    def save(self, decision: Decision) -> bool:
        """Write a decision, whole or not at all. Whether it could be written: no room in a cache stops nobody's work."""
        path = self._path(decision.graph, decision.context)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        document = {"format": _FORMAT, **asdict(decision)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def all(self) -> tuple[Decision, ...]:
        """Every decision that can be read, by graph."""
        files = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        found = (_read_decision(path) for path in files)
        return tuple(
            sorted((one for one in found if one is not None), key=lambda one: (one.graph, sorted(one.context)))
        )

    def forget(self) -> int:
        """Remove every decision; all are measured again. How many there were."""
        files = list(self._folder.glob("*.json")) if self._folder.is_dir() else []
        for path in files:
            with suppress(OSError):
                path.unlink()
        return len(files)

    def _path(self, graph: str, context: Mapping[str, str]) -> Path:
        text = json.dumps([_FORMAT, graph, sorted(context.items())])
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def cache_folder() -> Path:
    """Where samrt keeps what it can make again: $SAMRT_CACHE, else the platform's folder for a user's caches."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local", "samrt", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "samrt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "samrt")


def installed_version(backend: str) -> str | None:
    """A backend's version, without importing it; None when it is not installed as a package."""
    from importlib import metadata  # 20 ms that importing samrt does without

    for package in _PACKAGES.get(backend, (backend,)):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def _measure(
    candidates: Mapping[str, Run], deadline: float, clock: Callable[[], float], pause: Callable[[], None]
) -> dict[str, list[float]]:
    """Time the candidates in turn, each round beginning with another one, so that what drifts hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for order in _rotations(list(candidates)):
        if times[order[0]] and clock() >= deadline:
            break
        for name in order:
            pause()
            start = clock()
            candidates[name]()
            times[name].append(clock() - start)
    return times


def _rotations(names: list[str]) -> Iterator[list[str]]:
    for turn in range(_ROUNDS):
        first = turn % len(names)
        yield names[first:] + names[:first]


def _error(output: Array | None, expected: Array) -> float:
    if output is None or output.shape != expected.shape or output.dtype != expected.dtype:
        return math.inf
    wanted = expected.astype(np.float64)
    difference = float(np.linalg.norm((output.astype(np.float64) - wanted).ravel()))
    size = float(np.linalg.norm(wanted.ravel()))
    error = difference / size if size else (0.0 if difference == 0 else math.inf)
    return error if math.isfinite(error) else math.inf


def _runner(executor: Executor, feeds: Mapping[str, Array]) -> Run:
    return lambda: executor.run(feeds)


def _read_decision(path: Path) -> Decision | None:
    """A decision's file, trusting nothing about it."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
        return None
    texts, numbers = ("refused", "context"), ("seconds", "errors")
    whole = (
        document.keys() == {"graph", "chosen", *texts, *numbers}
        and isinstance(document["graph"], str)
        and isinstance(document["chosen"], str)
        and all(_is_map(document[key], str) for key in texts)
        and all(_is_map(document[key], float) for key in numbers)
    )
    return Decision(**document) if whole else None


def _is_map(value: object, kind: type) -> bool:
    return isinstance(value, dict) and all(type(one) is kind for one in value.values())
