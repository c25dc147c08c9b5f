"""What is measured of a model that makes 3D: every stage in a process of its own, its time and its memory.

Stages are fed what they meet for an object of N voxels: index maps of a spherical shell, and random numbers elsewhere. Their
answers mean nothing; their cost does not depend on it. A flow's graph is timed once for each kind of pass and counted as
often as the model's schedule runs it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.bench.gpu import open_context, process_vram_bytes
from samrt.bench.run import Progress
from samrt.bundle import open_bundle
from samrt.machine import cpu_name, usable_cores
from samrt.manifest import Graph, Manifest
from samrt.numbers import ReconstructionNumbers
from samrt.reconstruct.flow_sampling import plan_schedule
from samrt.reconstruct.occupancy import Coords
from samrt.reconstruct.pipeline import SLAT_FLOW, SS_FLOW
from samrt.reconstruct.reconstructor import check_reconstruction
from samrt.reconstruct.stages import Shelf, weight_bytes
from samrt.resident import peak_resident_mib, resident_mib
from samrt.sparse import MAP_NAMES, SparseMaps
from samrt.surface import CubeField
from samrt_engines.errors import BackendError, InputError, SamrtError
from samrt_engines.executor import Executor
from samrt_engines.tensors import Array, TensorSpec

SURFACE = "surface"
INDEX_MAPS = "index maps"
HOST_STAGES = (INDEX_MAPS, SURFACE)
VOXELS = 20_000
SPHERE = 0.36
"""Radius of the shell, of the grid's side."""
CUBES_PER_VOXEL = 64
RUNS = 3

PROGRAM = """
import sys
from samrt.bench.reconstruct import answer
answer(sys.argv[1])
"""


@dataclass(frozen=True)
class StageCost:
    """What one stage costs. Sizes in MiB; None where the system does not tell.

    runs: how often the model's schedule runs the graph, unconditioned passes among them. run_s: the median of a conditioned
    pass; free_run_s of an unconditioned one. weights: of the files. index_maps: fed to the graph. loaded: what loading took.
    activations: what the first run took at its peak beside that, inputs and outputs among it. vram: NVML's count for the
    process after running, its CUDA context left out.
    """

    name: str
    runs: int
    run_s: float
    free_run_s: float | None
    total_s: float
    load_s: float
    weights_mib: float
    index_maps_mib: float
    loaded_mib: float | None
    activations_mib: float | None
    provider: str | None = None
    vram_mib: float | None = None

    @property
    def peak_mib(self) -> float | None:
        """What the stage takes at its peak beside the program itself."""
        if self.loaded_mib is None or self.activations_mib is None:
            return None
        return self.loaded_mib + self.activations_mib


@dataclass(frozen=True)
class ReconstructionReport:
    """What one run of `bench_reconstruction` found."""

    model: str
    digest: str
    machine: Mapping[str, Any]
    voxels: int
    coarse: int
    stages: tuple[StageCost, ...]

    @property
    def total_s(self) -> float:
        """All stages, one after another; loading included."""
        return sum(stage.total_s + stage.load_s for stage in self.stages)

    @property
    def staged_peak_mib(self) -> float | None:
        """The largest peak: what ``memory="staged"`` takes beside the program itself."""
        peaks = [stage.peak_mib for stage in self.stages if stage.peak_mib is not None]
        return max(peaks, default=None)

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            **asdict(self),
            "stages": [{**asdict(stage), "peak_mib": stage.peak_mib} for stage in self.stages],
            "total_s": self.total_s,
            "staged_peak_mib": self.staged_peak_mib,
        }


def bench_reconstruction(
    bundle: Path,
    *,
    voxels: int | None = None,
    runs: int = RUNS,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    graphs: Sequence[str] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ReconstructionReport:
    """Measure every stage of a model that makes 3D.

    voxels: of the object; None is 20,000, or as many as half fill the model's grid
    runs: timed runs of each graph, after the first
    backend, device, threads: as in `samrt.Reconstructor`
    graphs: measure only these, and what runs on the host
    Raises BundleError for a model of another kind, InputError for voxels that do not fit, BackendError for a stage that
    fails, with the last line that it left.
    """
    opened = open_bundle(bundle)
    numbers = check_reconstruction(opened.manifest)
    count = min(VOXELS, numbers.grid**3 // 8, numbers.max_voxels) if voxels is None else voxels
    coords = shell(numbers.grid, count)
    names = [*(opened.manifest.graphs if graphs is None else graphs), *HOST_STAGES]
    request = {"bundle": str(bundle), "voxels": count, "runs": runs, "backend": backend, "device": device}
    stages = []
    for index, name in enumerate(names):
        progress(name, index, len(names))
        stages.append(measure_stage({**request, "threads": threads, "stage": name}))
    progress("done", len(names), len(names))
    return ReconstructionReport(
        model=opened.manifest.source.model,
        digest=opened.digest,
        machine={"cpu": cpu_name(), "cores": usable_cores(), "threads": threads or usable_cores()},
        voxels=count,
        coarse=len(SparseMaps.from_coords(coords, grid=numbers.grid, window=numbers.window).coarse_coords),
        stages=tuple(stages),
    )


def shell(grid: int, voxels: int) -> Coords:
    """The voxels nearest to a sphere, in lexicographic order: int32 (voxels, 3). Raises InputError."""
    if not 1 <= voxels <= grid**3 // 2:
        raise InputError("no such number of voxels", got=str(voxels), expected=f"1 to {grid**3 // 2}")
    place = np.indices((grid,) * 3).reshape(3, -1) + 0.5 - grid / 2
    distance = np.abs(np.sqrt((place**2).sum(axis=0)) - SPHERE * grid)
    rows = np.sort(np.argsort(distance, kind="stable")[:voxels])
    return np.stack(np.unravel_index(rows, (grid,) * 3), axis=1).astype(np.int32)


def measure_stage(request: Mapping[str, Any]) -> StageCost:
    """One stage in a fresh process. Raises BackendError with the last line that it left when it fails."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no message"]
        raise BackendError(f"{request['stage']} does not run in a fresh process", got=lines[-1])
    return StageCost(**json.loads(done.stdout.splitlines()[-1]))


def answer(text: str) -> None:
    """The fresh process itself: measures the stage of a request, prints a `StageCost` as JSON."""
    request: dict[str, Any] = json.loads(text)
    try:
        cost = _on_host(request) if request["stage"] in HOST_STAGES else _of_graph(request)
    except SamrtError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(cost)))


def _of_graph(request: Mapping[str, Any]) -> StageCost:
    """Open a graph, run it once for its memory and a few times for its speed."""
    bundle = open_bundle(request["bundle"])
    numbers, name = check_reconstruction(bundle.manifest), request["stage"]
    graph = bundle.manifest.graphs[name]
    feeds = made_up_feeds(graph, numbers, shell(numbers.grid, request["voxels"]))
    shelf = Shelf(
        bundle,
        backend=request["backend"],
        device=request["device"],
        threads=request["threads"],
        memory="staged",
        allow_unverified=True,
    )
    context = process_vram_bytes() if request["device"] != "cpu" and open_context() else None
    before, start = resident_mib(), time.perf_counter()
    with shelf.open(name) as opened:
        load_s, loaded = time.perf_counter() - start, resident_mib()
        executor = opened.executor
        runs, free_runs = schedule_runs(numbers, name)
        run_s, peak = _timed(executor, feeds, request["runs"])
        free = None if not free_runs else _timed(executor, unconditioned(feeds), request["runs"])[0]
        vram = process_vram_bytes() if context is not None else None
        return StageCost(
            name=name,
            runs=runs + free_runs,
            run_s=run_s,
            free_run_s=free,
            total_s=runs * run_s + free_runs * (free or 0.0),
            load_s=load_s,
            weights_mib=weight_bytes(opened) / 2**20,
            index_maps_mib=sum(feeds[key].nbytes for key in feeds if key in MAP_NAMES) / 2**20,
            loaded_mib=None if before is None or loaded is None else max(0.0, loaded - before),
            activations_mib=None if peak is None or loaded is None else max(0.0, peak - loaded),
            provider=executor.provider,
            vram_mib=None if vram is None or context is None else (vram - context) / 2**20,
        )


def _timed(executor: Executor, feeds: Mapping[str, Array], runs: int) -> tuple[float, float | None]:
    """The median time of a run after the first, and the process's peak of memory after that first one, in MiB."""
    executor.run(feeds)
    peak, seconds = peak_resident_mib(), []
    for _ in range(runs):
        start = time.perf_counter()
        executor.run(feeds)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), peak


def schedule_runs(numbers: ReconstructionNumbers, graph: str) -> tuple[int, int]:
    """How often a reconstruction runs a graph: conditioned, unconditioned."""
    flow = {SS_FLOW: numbers.structure, SLAT_FLOW: numbers.latent}.get(graph)
    if flow is None:
        return 1, 0
    schedule = plan_schedule(flow)
    return len(schedule.guided), sum(schedule.guided)


def unconditioned(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The same with a condition of one token of zeros."""
    return {
        name: np.zeros_like(array[:, :1]) if name.endswith("_condition") else array for name, array in feeds.items()
    }


def made_up_feeds(graph: Graph, numbers: ReconstructionNumbers, coords: Coords) -> dict[str, Array]:
    """Index maps of an object, and random numbers of the sizes that go with it."""
    maps = SparseMaps.from_coords(coords, grid=numbers.grid, window=numbers.window)
    feeds: dict[str, Array] = dict(maps.feeds([spec.name for spec in graph.inputs]))
    sizes = {symbol: profile.opt for symbol, profile in graph.profiles.items()}
    sizes["voxels"] = len(coords)
    rng = np.random.default_rng(0)
    for spec in graph.inputs:
        if spec.name not in feeds:
            feeds[spec.name] = _random(spec, sizes, rng)
    return {spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in graph.inputs}


def _random(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> NDArray[np.float32]:
    shape = tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
    return rng.random(shape, np.float32)


def _on_host(request: Mapping[str, Any]) -> StageCost:
    """Index maps, or the surface of a sphere in the shell."""
    manifest: Manifest = open_bundle(request["bundle"]).manifest
    numbers = check_reconstruction(manifest)
    coords = shell(numbers.grid, request["voxels"])
    sdf = None if request["stage"] == INDEX_MAPS else sphere_sdf(coords, numbers)
    before, seconds, made = resident_mib(), [], 0
    peak: float | None = None
    for _ in range(request["runs"] + 1):
        start = time.perf_counter()
        made = _make_maps(coords, numbers) if sdf is None else _make_surface(coords, sdf, numbers)
        seconds.append(time.perf_counter() - start)
        peak = peak_resident_mib() if peak is None else peak
    run_s = statistics.median(seconds[1:])
    return StageCost(
        name=request["stage"],
        runs=1,
        run_s=run_s,
        free_run_s=None,
        total_s=run_s,
        load_s=0.0,
        weights_mib=0.0,
        index_maps_mib=made / 2**20,
        loaded_mib=None if before is None else 0.0,
        activations_mib=None if before is None or peak is None else max(0.0, peak - before),
    )


def _make_maps(coords: Coords, numbers: ReconstructionNumbers) -> int:
    """All maps; their size in bytes."""
    maps = SparseMaps.from_coords(coords, grid=numbers.grid, window=numbers.window)
    return sum(array.nbytes for array in maps.feeds(MAP_NAMES).values())


def _make_surface(coords: Coords, sdf: NDArray[np.float32], numbers: ReconstructionNumbers) -> int:
    """The mesh of a field; no index maps."""
    field = CubeField(coords, sdf, resolution=numbers.mesh.resolution, sdf_bias=0.0)
    count = len(field.rows)
    field.extract(*(np.zeros((count, *shape), np.float32) for shape in ((8, 3), (21,), (8, 6))))
    return 0


def sphere_sdf(coords: Coords, numbers: ReconstructionNumbers) -> NDArray[np.float32]:
    """Signed distances from the shell's sphere at the corners of all cubes: float32 (64 N, 8), in the grid's side."""
    resolution = numbers.mesh.resolution
    child = np.array([(c >> 2 & 1, c >> 1 & 1, c & 1) for c in range(8)])
    within = (2 * child[:, None] + child).reshape(1, CUBES_PER_VOXEL, 1, 3)
    corner = np.array([(i & 1, i >> 1 & 1, i >> 2) for i in range(8)])
    distances = []
    for part in np.array_split(coords, max(1, len(coords) // 2000)):
        place = (4 * part[:, None, None] + within + corner) / np.float32(resolution) - np.float32(0.5)
        distances.append((np.sqrt((place**2).sum(axis=-1)) - SPHERE).reshape(-1, 8).astype(np.float32))
    return np.concatenate(distances)


def to_table(report: ReconstructionReport) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row for each stage."""
    head = ["stage", "runs", "run", "free", "all", "load", "weights", "maps", "active", "peak"]
    rows = [
        [
            one.name,
            str(one.runs),
            _seconds(one.run_s),
            _seconds(one.free_run_s),
            _seconds(one.total_s),
            _seconds(one.load_s),
            *(_mib(size) for size in (one.weights_mib, one.index_maps_mib, one.activations_mib, one.peak_mib)),
        ]
        for one in report.stages
    ]
    return head, rows


def to_text(report: ReconstructionReport) -> str:
    """The whole report as a page of Markdown."""
    head, rows = to_table(report)
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"# {report.model}", "", summary(report), "", *lines, ""])


def summary(report: ReconstructionReport) -> str:
    """What matters most, in a few sentences."""
    peak = report.staged_peak_mib
    return (
        f"{report.voxels} voxels, {report.coarse} coarse ones, on {report.machine['cpu']}, "
        f"{report.machine['threads']} threads. All stages: {_seconds(report.total_s)} s. "
        f"One graph at a time takes {'an unknown size' if peak is None else f'{peak:.0f} MiB'} at most beside the program; "
        "times in seconds (free: an unconditioned run), sizes in MiB (active: tensors), each stage in a fresh process."
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.0f}"


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
