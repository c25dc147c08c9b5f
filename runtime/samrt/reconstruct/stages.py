"""The stages of a reconstruction: one after another, watched, and with no more graphs in memory than wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from samrt.bundle import Bundle
from samrt.graphs import choose_form
from samrt.opening import OpenGraph, open_graph, open_plan_graphs
from samrt.resident import peak_resident_mib, resident_mib
from samrt_engines.closing import ClosesItself
from samrt_engines.errors import BackendError, Cancelled, InputError
from samrt_engines.tensors import Array

Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its steps are done, and how many there are."""

Memory = Literal["staged", "resident"]
MEMORY: tuple[Memory, ...] = ("staged", "resident")

_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What one stage took. Sizes in bytes; None where the system does not tell.

    weights: of the graph's files. index_maps: fed to the graph. loaded: by how much resident memory grew when the graph was
    opened. peak: by how much it grew at most from the stage's beginning; where the process has been larger before, that is
    known only if memory is measured exactly.
    """

    name: str
    graph: str | None
    seconds: float
    runs: int
    provider: str | None = None
    precision: str | None = None
    weights_bytes: int = 0
    index_map_bytes: int = 0
    loaded_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def activation_bytes(self) -> int | None:
        """What running took beside what loading had taken."""
        if self.peak_bytes is None or self.loaded_bytes is None:
            return None
        return max(0, self.peak_bytes - self.loaded_bytes)


class Stage:
    """A stage under way: counts its steps and runs its graph."""

    def __init__(self, name: str, total: int, watch: Stages, opened: OpenGraph | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self.index_map_bytes = 0
        self._watch, self._opened = watch, opened

    def step(self) -> None:
        """One more step is done. Raises Cancelled when the caller wants no more."""
        self.done += 1
        self._watch.report(self.name, self.done, self.total)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the stage's graph once, and count it. Feeds of another float type are cast; more of them are left out.

        Raises Cancelled, and what `Executor.run` raises.
        """
        assert self._opened is not None
        executor = self._opened.executor
        made = executor.run(
            {spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in executor.inputs}, outputs
        )
        self.step()
        return {
            name: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
            for name, array in made.items()
        }


class Stages:
    """Runs stages and keeps their records."""

    def __init__(
        self, progress: Progress | None, cancelled: Callable[[], bool] | None, *, exact_memory: bool = False
    ) -> None:
        """exact_memory: reset the process's peak of resident memory at every stage, where the system lets it"""
        self.records: list[StageRecord] = []
        self._progress, self._cancelled, self._exact = progress, cancelled, exact_memory

    def report(self, name: str, done: int, total: int) -> None:
        """Say how far a stage is. Raises Cancelled."""
        if self._progress is not None:
            self._progress(name, done, total)
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the reconstruction was cancelled", got=f"{name}, {done} of {total} steps done")

    @contextmanager
    def stage(
        self, name: str, total: int = 1, *, shelf: Shelf | None = None, graph: str | None = None
    ) -> Iterator[Stage]:
        """A stage of `total` steps, with its graph open meanwhile if it has one."""
        self.report(name, 0, total)
        start = time.perf_counter()
        before, peak_before = self._start_of_memory()
        with ExitStack() as stack:
            opened = None
            if graph is not None:
                assert shelf is not None
                opened = stack.enter_context(shelf.open(graph))
            loaded = _bytes(resident_mib())
            stage = Stage(name, total, self, opened)
            yield stage
            peak = _peak_after(before, peak_before)
            self.records.append(
                StageRecord(
                    name=name,
                    graph=graph,
                    seconds=time.perf_counter() - start,
                    runs=stage.done,
                    provider=None if opened is None else opened.executor.provider,
                    precision=None if opened is None else opened.precision,
                    weights_bytes=0 if opened is None else weight_bytes(opened),
                    index_map_bytes=stage.index_map_bytes,
                    loaded_bytes=None if before is None or loaded is None else max(0, loaded - before),
                    peak_bytes=peak,
                )
            )

    def _start_of_memory(self) -> tuple[int | None, int | None]:
        """Resident memory now, and its peak so far."""
        if self._exact:
            try:
                _CLEAR.write_text(_RESET_PEAK)
            except OSError:
                self._exact = False  # not Linux, or not allowed: the peak stays a lower bound
        return _bytes(resident_mib()), _bytes(peak_resident_mib())


class Shelf(ClosesItself):
    """Opens the graphs of a bundle: each while its stage runs, or all of them for good."""

    def __init__(
        self, bundle: Bundle, *, backend: str, device: str, threads: int | None, memory: Memory, allow_unverified: bool
    ) -> None:
        self.bundle = bundle
        # "auto" means measuring backends for other models; here one run may take a minute and gigabytes.
        self._backend = "onnxruntime" if backend == "auto" else backend
        self._device, self._threads, self._memory = device, threads, memory
        self._allow_unverified = allow_unverified
        self._kept: dict[str, OpenGraph] = {}
        self._resources = ExitStack()
        self._closed = False

    def __contains__(self, graph: str) -> bool:
        return graph in self.bundle.manifest.graphs

    def open_all(self, graphs: Sequence[str]) -> None:
        """Open graphs for good. Errors: see `samrt.load`."""
        if self._backend == "tensorrt":
            opened, resources = open_plan_graphs(
                self.bundle, graphs, device=self._device, allow_unverified=self._allow_unverified
            )
            self._resources.enter_context(resources)
            self._kept |= opened
            return
        for name in graphs:
            self._kept[name] = self._open(name)
            self._resources.callback(self._kept[name].executor.close)

    @contextmanager
    def open(self, graph: str) -> Iterator[OpenGraph]:
        """A graph, open until the block ends, or longer. Raises BackendError when the shelf is closed; see `samrt.load`."""
        if self._closed:
            raise BackendError("the reconstructor is closed", expected="an open one", fix="samrt.Reconstructor(...)")
        if graph not in self._kept and self._memory == "resident":
            self.open_all([graph])
        if graph in self._kept:
            yield self._kept[graph]
        elif self._backend == "tensorrt":
            # The self-test needs all graphs at once; `samrt build` ran it on this very GPU before it recorded the plan.
            opened, resources = open_plan_graphs(self.bundle, [graph], device=self._device, allow_unverified=True)
            with resources:
                yield opened[graph]
        else:
            one = self._open(graph)
            try:
                yield one
            finally:
                one.executor.close()

    def close(self) -> None:
        """Close what is open."""
        self._closed = True
        self._kept.clear()
        self._resources.close()

    def _open(self, graph: str) -> OpenGraph:
        return open_graph(
            self.bundle, graph, backend=self._backend, device=self._device, threads=self._threads, precision=None
        )

    def check(self, graphs: Sequence[str]) -> None:
        """See, before minutes of work, that every graph has a form for this backend. Raises BackendError."""
        for name in graphs:
            choose_form(self.bundle.manifest.graphs[name], name, self._backend, self._device)


def weight_bytes(opened: OpenGraph) -> int:
    """Size of a graph's files, external data included."""
    return opened.form.file.size + sum(record.size for record in opened.form.data)


def check_memory(memory: str) -> Memory:
    """Raises InputError for anything but "staged" and "resident"."""
    for known in MEMORY:
        if memory == known:
            return known
    raise InputError("unknown memory", got=repr(memory), expected=" or ".join(MEMORY))


def _peak_after(before: int | None, peak_before: int | None) -> int | None:
    """By how much resident memory grew at most, as far as the peak since tells."""
    peak, now = _bytes(peak_resident_mib()), _bytes(resident_mib())
    if before is None or peak_before is None or peak is None or now is None:
        return None
    return max(0, (peak if peak > peak_before else now) - before)


def _bytes(mib: float | None) -> int | None:
    return None if mib is None else int(mib * 2**20)
