"""Memory and load time, each measured in a fresh process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.bench.contenders import SAMRT, Contender, Samrt, is_gpu, memory_by_use, open_reference, open_samrt
from samrt.bench.gpu import open_context, process_vram_bytes
from samrt.bench.proposals import propose_and_click
from samrt.bench.tasks import WholeTask, clicks, made_up_picture
from samrt.bundle import Bundle, open_bundle
from samrt.graphs import MASK_DECODER
from samrt.opening import open_graph, open_plan_graphs
from samrt.proposals import ProposalModel
from samrt.proposals.model import DETECTOR
from samrt.resident import peak_resident_mib, resident_mib
from samrt_engines.errors import BackendError, SamrtError
from samrt_engines.executor import Executor

PROGRAM = """
import sys, time
start = time.perf_counter()
import samrt
seconds = time.perf_counter() - start
from samrt.bench.process import answer
answer(sys.argv[1], seconds)
"""


@dataclass(frozen=True)
class Process:
    """What one fresh process needed. Sizes in MiB; None where this machine cannot tell, and for a GPU that is not used.

    base: Python, numpy and samrt, before anything is loaded. loaded: libraries and weights too. peak: after the first runs.
    """

    import_s: float
    load_s: float
    first_s: float
    """From the start of loading to the end of the first runs: the first mask, or a graph's first outputs."""
    rss_base_mib: float | None
    rss_loaded_mib: float | None
    rss_peak_mib: float | None
    vram_context_mib: float | None = None
    vram_mib: float | None = None
    """NVML's count for the process after the first runs, its CUDA context included."""
    vram_allocated_mib: float | None = None
    """What the contender's own allocator handed out at most. None for ONNX Runtime, whose allocator tells Python nothing."""
    vram_uses_mib: Mapping[str, float] | None = None
    """The same by use, where that is known: "weights", "scratch", "inputs_outputs"."""


def measure_process(
    bundle: Path,
    *,
    contender: str = SAMRT,
    graph: str | None = None,
    hw: tuple[int, int],
    backend: str = "auto",
    device: str = "auto",
    checkpoint: Path | None = None,
    threads: int | None = None,
    precision: str | None = None,
) -> Process:
    """Load a contender in a fresh process, and answer a click there; or load a single graph of samrt's and run it once.

    Raises BackendError with the last line the process left when it fails.
    """
    request = {
        "bundle": str(bundle),
        "contender": contender,
        "graph": graph,
        "hw": hw,
        "backend": backend,
        "device": device,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "threads": threads,
        "precision": precision,
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no message"]
        raise BackendError(f"{graph or contender} does not run in a fresh process", got=lines[-1])
    return Process(**json.loads(done.stdout.splitlines()[-1]))


def answer(text: str, import_s: float) -> None:
    """The fresh process itself: does what a request asks, prints a `Process` as JSON."""
    request: dict[str, Any] = json.loads(text)
    base = resident_mib()
    uses_gpu = request["device"] != "cpu"
    context = process_vram_bytes() if uses_gpu and open_context() else None
    start = time.perf_counter()
    try:
        measured = _one_graph(request) if request["graph"] else _whole(request)
    except SamrtError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    loaded, rss_loaded, allocated, uses, on_gpu = measured
    seconds = time.perf_counter() - start
    found = Process(
        import_s=import_s,
        load_s=loaded - start,
        first_s=seconds,
        rss_base_mib=base,
        rss_loaded_mib=rss_loaded,
        rss_peak_mib=peak_resident_mib(),
        vram_context_mib=_mib(context) if on_gpu else None,
        vram_mib=_mib(process_vram_bytes()) if on_gpu else None,
        vram_allocated_mib=_mib(allocated) if on_gpu else None,
        vram_uses_mib={use: size / 2**20 for use, size in uses.items()} if on_gpu and uses is not None else None,
    )
    print(json.dumps(asdict(found)))


Measured = tuple[float, float | None, int | None, dict[str, int] | None, bool]
"""When it was loaded, resident memory then, GPU memory allocated, the same by use, and whether a GPU was used."""


def _whole(request: Mapping[str, Any]) -> Measured:
    """Load a contender, encode a picture and answer a click."""
    contender = _open(request)
    loaded, rss_loaded = time.perf_counter(), resident_mib()
    picture = made_up_picture((request["hw"][0], request["hw"][1]))
    graph = _click(contender, picture)
    uses = memory_by_use(contender.model.executors.values()) if isinstance(contender, Samrt) else None
    return loaded, rss_loaded, contender.allocated_bytes(), uses, contender.on_gpu(graph)


def _click(contender: Contender, picture: NDArray[np.uint8]) -> str:
    """Encode a picture and answer a click; returns the graph that the mask comes from."""
    if isinstance(contender, Samrt) and isinstance(contender.model, ProposalModel):
        propose_and_click(contender.model, picture)
        return DETECTOR
    contender.whole(WholeTask("click", clicks(picture, 1), best=True), picture)()
    return MASK_DECODER


def _open(request: Mapping[str, Any]) -> Contender:
    bundle, threads = Path(request["bundle"]), request["threads"]
    if request["contender"] == SAMRT:
        return open_samrt(
            bundle,
            backend=request["backend"],
            device=request["device"],
            threads=threads,
            precision=request["precision"],
        )
    checkpoint = None if request["checkpoint"] is None else Path(request["checkpoint"])
    return open_reference(
        request["contender"], bundle, checkpoint=checkpoint, threads=threads, device=request["device"]
    )


def _one_graph(request: Mapping[str, Any]) -> Measured:
    """Open one graph and run it on zeros of its profiles' opt sizes."""
    name, bundle = request["graph"], open_bundle(request["bundle"])
    graph = bundle.manifest.graphs[name]
    executor = _open_one(bundle, name, request)
    loaded, rss_loaded = time.perf_counter(), resident_mib()
    sizes = {symbol: profile.opt for symbol, profile in graph.profiles.items()}
    executor.run(
        {
            spec.name: np.zeros(
                [sizes.get(size, 1) if isinstance(size, str) else size for size in spec.shape], spec.dtype
            )
            for spec in graph.inputs
        }
    )
    uses = memory_by_use([executor])
    allocated = None if uses is None else sum(uses.values())
    return loaded, rss_loaded, allocated, uses, is_gpu(executor.provider)


def _open_one(bundle: Bundle, name: str, request: Mapping[str, Any]) -> Executor:
    if request["backend"] == "tensorrt":
        # The self-test takes all graphs, and passed when the model was loaded to be timed.
        graphs, _ = open_plan_graphs(bundle, [name], device=request["device"], allow_unverified=True)
        return graphs[name].executor
    options = {key: request[key] for key in ("backend", "device", "threads", "precision")}
    return open_graph(bundle, name, **options).executor


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20
