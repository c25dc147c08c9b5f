"""Latency and memory of a bundle, graph by graph and end to end, and beside a reference in the same run.

Contenders take turns within every round, so whatever else the machine does falls on all of them alike. Ratios are of
medians, with the quartiles of the paired ratios next to them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samrt import __version__
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER
from samrt.machine import cpu_name, usable_cores
from samrt.model import Model, load
from samrt.prompts import Prompts, to_tensors
from samrt.transforms import Frame, image_to_input
from samrt_engines.errors import BackendError, MissingExtraError

Feeds = Mapping[str, NDArray[Any]]

HD_HW = (1080, 1920)
WARMUP = 3
FEWEST_RUNS = 5
RSS_PROGRAM = """
import json, resource, sys, time
import numpy as np
start = time.perf_counter()
import samrt
model = samrt.load(sys.argv[1], threads=json.loads(sys.argv[2]))
loaded = time.perf_counter()
features = model.encode(np.full((1080, 1920, 3), 127, np.uint8))
model.decode(features, samrt.Prompts(points=[[960, 540]], labels=[1])).best().masks
first = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"load_s": loaded - start, "first_mask_s": first - start, "peak_rss_mib": peak * unit / 2**20}))
"""


class Reference(Protocol):
    """Another implementation of the same graphs."""

    def run_graph(self, name: str, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run one graph."""

    def close(self) -> None:
        """Free it."""


@dataclass(frozen=True)
class Row:
    """One contender at one task. Times in milliseconds; ratio: its median over samrt's; parity: worst relative error."""

    task: str
    contender: str
    ran_on: str
    precision: str
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    relative_l2: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything one benchmark run found."""

    model: str
    digest: str
    machine: dict[str, Any]
    image_hw: tuple[int, int]
    memory: dict[str, float]
    rows: tuple[Row, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """All of it in plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A page to read."""
        machine, memory = self.machine, self.memory
        lines = [
            f"# {self.model}",
            "",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; samrt {machine['samrt']}, "
            f"Python {machine['python']}; {machine['time']}; picture {self.image_hw[1]} x {self.image_hw[0]}.",
            "",
            f"Load {memory['load_s']:.2f} s, first mask {memory['first_mask_s']:.2f} s after start, "
            f"peak memory {memory['peak_rss_mib']:.0f} MiB (one process: load, encode, decode).",
            "",
            "| task | contender | runs | p50 ms | p95 ms | p99 ms | times samrt (quartiles) | relative error |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            ratio = "" if row.ratio is None or row.ratio_quartiles is None else f"{row.ratio:.2f}"
            if ratio and row.ratio_quartiles:
                ratio += f" ({row.ratio_quartiles[0]:.2f} to {row.ratio_quartiles[1]:.2f})"
            error = "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"
            lines.append(
                f"| {row.task} | {row.contender}, {row.precision} on {row.ran_on} | {row.runs} | {row.p50_ms:.2f} "
                f"| {row.p95_ms:.2f} | {row.p99_ms:.2f} | {ratio} | {error} |"
            )
        return "\n".join(lines) + "\n"


def bench(
    bundle: Path,
    *,
    image: NDArray[np.uint8] | None = None,
    against: Sequence[str] = (),
    checkpoint: Path | None = None,
    runs: int = 50,
    threads: int | None = None,
    seconds_per_task: float = 30.0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Report:
    """Measure a bundle.

    image: uint8 (H, W, 3); None is a made-up 1080p picture
    against: references to measure beside it, by entry point of the group ``samrt.references``: "pytorch"
    checkpoint: the file a reference needs when the bundle was made from one that samrt does not ship
    runs: timed runs of every task, fewer (at least 5) where they would take over ``seconds_per_task``
    Raises BackendError for an unknown reference, MissingExtraError, BundleError.
    """
    picture = _test_picture() if image is None else image
    progress("memory", 0, 1)
    memory = _memory(bundle, threads)
    references = {name: _open_reference(name, bundle, checkpoint, threads) for name in against}
    rows: list[Row] = []
    try:
        with load(bundle, threads=threads) as model:
            graph_tasks, whole_tasks = _graph_feeds(model, picture), _whole_tasks(model, picture)
            total = len(graph_tasks) + len(whole_tasks)
            for index, (name, feeds) in enumerate(graph_tasks.items()):
                progress(name, index, total)
                rows += _bench_graph(model, name, feeds, references, runs, seconds_per_task)
            for index, (name, call) in enumerate(whole_tasks.items(), start=len(graph_tasks)):
                progress(name, index, total)
                times = _time_in_turns({"samrt": call}, runs, seconds_per_task)
                rows.append(_row(name, "samrt", model.providers[MASK_DECODER], model.precisions[MASK_DECODER], times))
            progress("done", total, total)
            return Report(
                model.manifest.source.model, model.digest, _machine(threads), _hw(picture), memory, tuple(rows)
            )
    finally:
        for reference in references.values():
            reference.close()


def _bench_graph(
    model: Model, name: str, feeds: Feeds, references: Mapping[str, Reference], runs: int, seconds: float
) -> list[Row]:
    """One graph through samrt and every reference, in turns, with their outputs compared first."""
    executor = model.executors[name]
    calls: dict[str, Callable[[], Any]] = {"samrt": lambda: executor.run(feeds)}
    errors: dict[str, float] = {}
    ours = executor.run(feeds)
    for contender, reference in references.items():
        theirs = reference.run_graph(name, feeds)
        errors[contender] = max(_relative_l2(ours[output], theirs[output]) for output in ours)
        calls[contender] = lambda reference=reference: reference.run_graph(name, feeds)  # type: ignore[misc]
    times = _time_in_turns(calls, runs, seconds)
    rows = [_row(name, "samrt", model.providers[name], model.precisions[name], times)]
    return rows + [_row(name, other, "cpu", "fp32", times, errors[other]) for other in references]


def _time_in_turns(calls: Mapping[str, Callable[[], Any]], runs: int, seconds: float) -> dict[str, NDArray[np.float64]]:
    """Contender -> milliseconds of each run, the contenders taking turns."""
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    for index in range(runs):
        if index >= FEWEST_RUNS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: np.array(values) for name, values in times.items()}


def _row(
    task: str,
    contender: str,
    ran_on: str,
    precision: str,
    times: Mapping[str, NDArray[np.float64]],
    relative_l2: float | None = None,
) -> Row:
    values = times[contender]
    p50, p95, p99 = (float(np.percentile(values, q)) for q in (50, 95, 99))
    ratio, quartiles = None, None
    if contender != "samrt":
        paired = values / times["samrt"]
        ratio = p50 / float(np.median(times["samrt"]))
        quartiles = (float(np.percentile(paired, 25)), float(np.percentile(paired, 75)))
    return Row(
        task,
        contender,
        ran_on,
        precision,
        len(values),
        p50,
        p95,
        p99,
        float(values.min()),
        ratio,
        quartiles,
        relative_l2,
    )


def _graph_feeds(model: Model, picture: NDArray[np.uint8]) -> dict[str, Feeds]:
    """What each graph really meets: this picture, one click in its middle."""
    manifest = model.manifest
    spec = manifest.graphs[IMAGE_ENCODER].inputs[0]
    image = {spec.name: image_to_input(picture, manifest.numbers.image, spec.dtype)[None]}
    prompt = to_tensors(_click(picture), (Frame(_hw(picture), manifest.numbers.image),), manifest.numbers.prompts)
    made = {**model.executors[IMAGE_ENCODER].run(image), **model.executors[PROMPT_ENCODER].run(prompt)}
    decoder = {tensor.name: made[tensor.name] for tensor in manifest.graphs[MASK_DECODER].inputs}
    return {IMAGE_ENCODER: image, PROMPT_ENCODER: prompt, MASK_DECODER: decoder}


def _whole_tasks(model: Model, picture: NDArray[np.uint8]) -> dict[str, Callable[[], Any]]:
    """What a user does, masks at the picture's size included."""
    features = model.encode(picture)
    height, width = _hw(picture)
    box = Prompts(boxes=[width * 0.3, height * 0.3, width * 0.7, height * 0.7])
    x, y = np.meshgrid(np.linspace(0.2, 0.8, 4) * width, np.linspace(0.2, 0.8, 4) * height)
    many = Prompts(points=np.stack((x, y), -1).reshape(16, 1, 2), labels=np.ones((16, 1), np.int32))
    return {
        "encode": lambda: model.encode(picture),
        "click, best of 3 masks": lambda: model.decode(features, _click(picture)).best().masks,
        "click, 3 masks": lambda: model.decode(features, _click(picture)).masks,
        "box, 1 mask": lambda: model.decode(features, box, multimask=False).masks,
        "16 clicks at once, best masks": lambda: model.decode(features, many).best().masks,
    }


def _click(picture: NDArray[np.uint8]) -> Prompts:
    height, width = _hw(picture)
    return Prompts(points=[[width / 2, height / 2]], labels=[1])


def _test_picture() -> NDArray[np.uint8]:
    """1080p: discs on a gradient."""
    y, x = np.mgrid[: HD_HW[0], : HD_HW[1]]
    picture = np.stack((x * 255 // HD_HW[1], y * 255 // HD_HW[0], (x + y) % 256), axis=-1).astype(np.uint8)
    for index, (cy, cx, radius) in enumerate(((540, 960, 260), (300, 500, 180), (760, 1450, 220))):
        picture[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = (220, 60 + 80 * index, 40)
    return picture


def _open_reference(name: str, bundle: Path, checkpoint: Path | None, threads: int | None) -> Reference:
    known = {entry.name: entry for entry in entry_points(group="samrt.references")}
    if name not in known:
        if not known:
            raise MissingExtraError.for_package("samrt_export", extra="export", purpose=f"to measure against {name}")
        raise BackendError("unknown reference", got=repr(name), expected=", ".join(sorted(known)))
    reference: Reference = known[name].load()(bundle, checkpoint=checkpoint, threads=threads)
    return reference


def _memory(bundle: Path, threads: int | None) -> dict[str, float]:
    """Load time, time to the first mask and peak memory, of a fresh process that does nothing else."""
    command = [sys.executable, "-c", RSS_PROGRAM, str(bundle), json.dumps(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError("the bundle does not run in a fresh process", got=done.stderr.strip().splitlines()[-1])
    values: dict[str, float] = json.loads(done.stdout)
    return values


def _machine(threads: int | None) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": threads or usable_cores(),
        "samrt": __version__,
        "python": platform.python_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _hw(picture: NDArray[np.uint8]) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]


def _relative_l2(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / max(float(np.linalg.norm(b)), 1e-30))
