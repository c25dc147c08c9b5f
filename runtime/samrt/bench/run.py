"""The measurement itself: contenders, tasks, rows."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt import __version__
from samrt.bench.contenders import SAMRT, Contender, Outputs, Samrt, mask_iou, open_reference, open_samrt, worst_error
from samrt.bench.peak import Peak, probe_peak
from samrt.bench.process import Process, measure_process
from samrt.bench.proposals import ProposalTask, check_proposal_bench, proposal_tasks
from samrt.bench.report import GraphFacts, Report, Row, Skipped
from samrt.bench.tasks import ENCODE, GraphTask, WholeTask, flops_at, graph_tasks, made_up_picture, whole_tasks
from samrt.bench.timing import Times, paired_ratio, time_in_turns
from samrt.bench.video import FrameTask, video_tasks
from samrt.bundle import open_bundle
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, choose_form
from samrt.machine import cpu_name, usable_cores
from samrt.manifest import Form, Graph
from samrt.model import Model
from samrt.proposals import ProposalModel
from samrt.proposals.model import DETECTOR
from samrt_engines.errors import BackendError

Progress = Callable[[str, int, int], None]
Task = GraphTask | WholeTask | FrameTask | ProposalTask

HOST = "numpy"
"""What a task without a graph runs on."""


@dataclass(frozen=True)
class Settings:
    """How to measure: see `bench`."""

    against: tuple[str, ...] = ()
    checkpoint: Path | None = None
    backend: str = "auto"
    device: str = "auto"
    runs: int = 200
    seconds: float = 30.0
    threads: int | None = None
    precision: str | None = None


@dataclass
class _Field:
    """The contenders still in the race, and those that dropped out."""

    contenders: dict[str, Contender]
    skipped: list[Skipped] = field(default_factory=list)

    def prepare(
        self, task: str, make: Callable[[Contender], Callable[[], Outputs]]
    ) -> tuple[dict[str, Callable[[], Outputs]], dict[str, Outputs]]:
        """The call of every contender and what it returns; one that cannot is recorded and leaves. samrt's errors are raised."""
        calls, made = {}, {}
        for name, contender in list(self.contenders.items()):
            try:
                calls[name] = make(contender)
                made[name] = calls[name]()
            except BackendError as error:
                if name == SAMRT:
                    raise
                calls.pop(name, None)
                self.skipped.append(Skipped(name, task, str(error)))
                self.contenders.pop(name).close()
        return calls, made


def bench(
    bundle: Path,
    *,
    image: NDArray[np.uint8] | None = None,
    against: Sequence[str] = (),
    checkpoint: Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    runs: int = 200,
    seconds_per_task: float = 30.0,
    threads: int | None = None,
    precision: str | None = None,
    video: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Measure a bundle.

    image: uint8 (H, W, 3); None is a made-up 1080p picture
    against: references to measure beside it: "pytorch" (eager), "pytorch-compile"
    checkpoint: the file a reference needs when the bundle was made from one that samrt does not ship
    backend, device, threads, precision: as in `samrt.load`
    video: also the memory graphs, and frames of a video with 1, 4 and 16 objects
    runs: timed runs of every task, fewer (at least 5) where they would take over ``seconds_per_task``
    Raises BackendError for an unknown reference, and for any beside a model that proposes masks, MissingExtraError,
    BundleError. A reference that opens and then cannot run is no error: it stands in ``report.skipped`` with the reason.
    """
    load_before = _load_average()
    check_proposal_bench(open_bundle(bundle).manifest, against, video)
    picture = made_up_picture() if image is None else image
    settings = Settings(
        tuple(dict.fromkeys(against)), checkpoint, backend, device, runs, seconds_per_task, threads, precision
    )
    with ExitStack() as stack:
        samrt = open_samrt(bundle, backend=backend, device=device, threads=threads, precision=precision)
        stack.callback(samrt.close)
        entrants: dict[str, Contender] = {SAMRT: samrt}
        for name in settings.against:
            entrants[name] = open_reference(
                name, bundle, checkpoint=checkpoint, threads=threads, device=_device(samrt, device)
            )
            stack.callback(entrants[name].close)
        race = _Field(entrants)
        tasks, found = _tasks(samrt.model, picture, video)
        total = len(tasks) + 1 + len(entrants) + len(samrt.model.executors)
        progress("peak", 0, total)
        peak = probe_peak(threads)
        rows: list[Row] = []
        for index, task in enumerate(tasks, start=1):
            progress(_title(task), index, total)
            rows += _bench_task(race, samrt, task, picture, peak, settings)
        processes, graphs = _processes(race, samrt, bundle, _hw(picture), settings, progress, len(tasks) + 1, total)
        progress("done", total, total)
    return Report(
        model=samrt.model.manifest.source.model,
        digest=samrt.model.digest,
        machine=_machine(threads, peak, load_before),
        image_hw=_hw(picture),
        graphs=graphs,
        processes=processes,
        rows=tuple(rows),
        skipped=tuple(race.skipped),
        masks_found=found,
    )


def _tasks(model: Model | ProposalModel, picture: NDArray[np.uint8], video: bool) -> tuple[list[Task], int | None]:
    """All that is measured, and how many masks the model found by itself, if it is one that does."""
    if isinstance(model, ProposalModel):
        segments = model.propose(picture)
        return [*proposal_tasks(model, picture, segments)], len(segments)
    frames = video_tasks(model, picture) if video else ()
    return [*graph_tasks(model, picture), *whole_tasks(picture), *frames], None


def _bench_task(
    race: _Field,
    samrt: Samrt,
    task: Task,
    picture: NDArray[np.uint8],
    peak: Peak,
    settings: Settings,
) -> list[Row]:
    """One task through every contender, in turns, with what they return compared first."""
    if isinstance(task, GraphTask):
        calls, made = race.prepare(_title(task), lambda contender: lambda: contender.run_graph(task.graph, task.feeds))
    elif isinstance(task, FrameTask):
        calls, made = race.prepare(task.name, lambda contender: lambda: task.run(contender.run_graph))
    elif isinstance(task, ProposalTask):  # samrt is alone
        calls, made = race.prepare(task.name, lambda contender: task.run)
    else:
        calls, made = race.prepare(task.name, lambda contender: contender.whole(task, picture))
    times = time_in_turns(calls, runs=settings.runs, seconds=settings.seconds)
    graph = _graph(task)
    rows = []
    for name in calls:
        contender = race.contenders[name]
        gflop = _gflop(samrt, task, plain=name != SAMRT)
        rows.append(
            _row(
                task,
                name,
                times,
                ran_on=HOST if graph is None else contender.ran_on(graph),
                precision="fp32" if graph is None else contender.precision(graph),
                gflop=gflop,
                peak=None if graph is None or contender.on_gpu(graph) else peak,
                agreement=None if name == SAMRT else (made[SAMRT], made[name]),
            )
        )
    return rows


def _graph(task: Task) -> str | None:
    """The graph whose provider and precision a task's row names; None for one on the host."""
    if isinstance(task, GraphTask | ProposalTask):
        return task.graph
    return IMAGE_ENCODER if task.name == ENCODE else MASK_DECODER


def _row(
    task: Task,
    contender: str,
    times: dict[str, Times],
    *,
    ran_on: str,
    precision: str,
    gflop: float | None,
    peak: Peak | None,
    agreement: tuple[Outputs, Outputs] | None,
) -> Row:
    values = times[contender].run_ms
    p25, p50, p75, p95, p99 = (float(np.percentile(values, q)) for q in (25, 50, 75, 95, 99))
    ratio = None if agreement is None else paired_ratio(times[contender], times[SAMRT])
    masks = agreement is not None and "masks" in agreement[0]
    return Row(
        task=task.graph if isinstance(task, GraphTask) else task.name,
        kind="graph" if isinstance(task, GraphTask) else "whole",
        batch=task.batch,
        contender=contender,
        ran_on=ran_on,
        precision=precision,
        runs=len(values),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(values.min()),
        quartiles_ms=(p25, p75),
        per_second=task.batch / p50 * 1e3,
        gflop=gflop,
        share_of_peak=None if gflop is None or peak is None else gflop / (p50 / 1e3) / peak.gflops,
        ratio=None if ratio is None else ratio.median,
        ratio_quartiles=None if ratio is None else ratio.quartiles,
        relative_l2=worst_error(*agreement) if agreement is not None and not masks else None,
        mask_iou=mask_iou(agreement[0]["masks"], agreement[1]["masks"]) if agreement is not None and masks else None,
    )


def _gflop(samrt: Samrt, task: Task, *, plain: bool) -> float | None:
    """The work of a graph task: in the form samrt runs, or in the plain form, which is what the reference's module does."""
    if not isinstance(task, GraphTask):
        return None
    graph = samrt.model.manifest.graphs[task.graph]
    form = _form(graph, task.graph, samrt)
    if plain:
        form = next((one for one in graph.forms if not one.targets), form)
    flops = flops_at(graph, form, task.feeds)
    return None if flops is None else flops / 1e9


def _form(graph: Graph, name: str, samrt: Samrt) -> Form:
    provider = samrt.ran_on(name).lower()
    backend = next((known for known in ("tensorrt", "openvino") if known in provider), "onnxruntime")
    return choose_form(graph, name, backend, "cuda" if samrt.on_gpu(name) else "cpu")


def _processes(
    race: _Field,
    samrt: Samrt,
    bundle: Path,
    hw: tuple[int, int],
    settings: Settings,
    progress: Progress,
    done: int,
    total: int,
) -> tuple[dict[str, Process], dict[str, GraphFacts]]:
    """Every contender, and every graph of samrt's, in a process of its own."""
    device = _device(samrt, settings.device)
    measure = partial(
        measure_process,
        bundle,
        hw=hw,
        backend=settings.backend,
        device=device,
        threads=settings.threads,
        precision=settings.precision,
    )
    processes: dict[str, Process] = {}
    graphs: dict[str, GraphFacts] = {}
    for name in race.contenders:
        progress(f"memory: {name}", done + len(processes), total)
        processes[name] = measure(contender=name, checkpoint=settings.checkpoint)
    for name in samrt.model.executors:
        progress(f"memory: {name}", done + len(processes) + len(graphs), total)
        form = _form(samrt.model.manifest.graphs[name], name, samrt)
        graphs[name] = GraphFacts(
            file=form.file.file,
            model_bytes=form.file.size + sum(record.size for record in form.data),
            plan_bytes=getattr(samrt.model.executors[name], "plan_bytes", None),
            precision=samrt.precision(name),
            ran_on=samrt.ran_on(name),
            process=measure(graph=name),
        )
    return processes, graphs


def _device(samrt: Samrt, asked: str) -> str:
    """The device that was asked for; for "auto" the one that was found, so that everyone runs on the same."""
    graph = DETECTOR if isinstance(samrt.model, ProposalModel) else MASK_DECODER
    return asked if asked != "auto" else "cuda" if samrt.on_gpu(graph) else "cpu"


def _load_average() -> float | None:
    """How many processes wanted to run in the last minute; on a quiet machine near 0. None where it is not told."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _machine(threads: int | None, peak: Peak, load_before: float | None) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": threads or usable_cores(),
        "load_before": load_before,
        "peak": asdict(peak),
        "samrt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _title(task: Task) -> str:
    return task.name if not isinstance(task, GraphTask) else f"{task.graph}, batch {task.batch}"


def _hw(picture: NDArray[np.uint8]) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]
