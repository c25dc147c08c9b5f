"""What `backend="auto"` chose on a CPU beside every backend that could have been chosen, graph by graph, in one run.

    samrt export sam2.1-hiera-tiny --random-weights 0 -o bundles/tiny
    samrt export nano -o bundles/nano
    python benchmarks/cpu_auto.py bundles/tiny bundles/nano --out benchmarks/results/cpu_auto.json

"auto" decides anew, in a cache of its own, and runs as a contender beside the backends it chose from. Contenders take turns
and the order rotates; ratios are paired round by round. Times are of one thread, as processor time, which leaves out
waiting and so can be compared on a machine that other work shares, and as wall time, which is what "auto" goes by and
which such work blurs.

Bars: "auto" takes at most 1.05 times as long as the best fp32 backend; bf16 is at least 1.6 times as fast as that on the
encoder of SAM 2.1 tiny.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import samrt
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, absent_mask_hw
from samrt.machine import cpu_name, usable_cores
from samrt_engines import BackendError
from samrt_engines.backends import available_backends
from samrt_engines.choice import CACHE_VARIABLE

CONTENDERS = {
    "onnxruntime fp32": ("onnxruntime", None),
    "openvino fp32": ("openvino", "fp32"),
    "openvino bf16": ("openvino", "bf16"),
}
AUTO, BF16 = "auto", "openvino bf16"
SLOWEST_AUTO = 1.05
TURN_S = 0.05
"""A turn of a short graph is repeated until it takes about this long."""

Feeds = Mapping[str, np.ndarray]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"cpu": time.process_time, "wall": time.perf_counter}


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ[CACHE_VARIABLE] = cache
        for bundle in options.bundles:
            rows += measure_bundle(bundle, options)
    for row in rows:
        print(*row.values())
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def measure_bundle(bundle: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each graph."""
    rows = []
    with ExitStack() as stack:
        models, refused = {}, {}
        for name, (backend, precision) in {**CONTENDERS, AUTO: ("auto", None)}.items():
            try:
                model = samrt.load(bundle, backend, device="cpu", threads=1, precision=precision)
                models[name] = stack.enter_context(model)
            except BackendError as error:  # not installed, or a CPU without bf16
                refused[name] = str(error)
        auto = models[AUTO]
        for graph, feeds in graph_feeds(auto).items():
            runs = options.encodes if graph == IMAGE_ENCODER else options.runs
            calls = {name: run_of(model, graph, feeds) for name, model in models.items()}
            times = measure(calls, runs)
            decision = auto.decisions.get(graph)
            rows.append(
                {
                    "model": auto.manifest.source.model,
                    "graph": graph,
                    "auto_chose": auto.providers[graph] if decision is None else decision.chosen,
                    "auto_measured_ms": None if decision is None else milliseconds(decision.seconds),
                    "rounds": runs,
                    **{f"{clock}_ms": medians(times[clock]) for clock in CLOCKS},
                    **{f"{clock}_ratios": ratios(times[clock]) for clock in CLOCKS},
                    "refused": refused,
                }
            )
    return rows


def run_of(model: samrt.Model, graph: str, feeds: Feeds) -> Callable[[], Any]:
    """A call that runs one graph of a model."""
    executor = model.executors[graph]
    return lambda: executor.run(feeds)


def graph_feeds(model: samrt.Model) -> dict[str, Feeds]:
    """What the graphs get when a picture is encoded and clicked on once."""
    manifest, graphs = model.manifest, model.executors
    height, width = manifest.numbers.image.size_hw
    (picture,) = graphs[IMAGE_ENCODER].inputs
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3)).astype(picture.dtype)
    prompt = {
        "point_coords": np.array([[[width / 2, height / 2], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.int32),
        "mask_input": np.zeros((1, 1, *absent_mask_hw(manifest)), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    known = graphs[IMAGE_ENCODER].run({picture.name: image}) | graphs[PROMPT_ENCODER].run(prompt)
    decoder = {spec.name: known[spec.name] for spec in graphs[MASK_DECODER].inputs}
    return {IMAGE_ENCODER: {picture.name: image}, PROMPT_ENCODER: prompt, MASK_DECODER: decoder}


def measure(calls: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, np.ndarray]]:
    """Clock -> contender -> milliseconds of a run, round by round."""
    names = list(calls)
    for call in calls.values():
        call()
    started = time.perf_counter()
    for call in calls.values():
        call()
    repeats = max(1, round(TURN_S * len(names) / (time.perf_counter() - started)))
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in names} for clock in CLOCKS}
    for turn in range(runs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            before = {clock: read() for clock, read in CLOCKS.items()}
            for _ in range(repeats):
                calls[name]()
            for clock, read in CLOCKS.items():
                times[clock][name].append((read() - before[clock]) / repeats * 1e3)
    return {clock: {name: np.array(taken) for name, taken in of.items()} for clock, of in times.items()}


def medians(times: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Contender -> median milliseconds."""
    return {name: round(float(np.median(taken)), 3) for name, taken in times.items()}


def ratios(times: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the bars ask for: "auto" over the best fp32 backend, and that one over bf16."""
    best = min((name for name in times if name not in (AUTO, BF16)), key=lambda name: float(np.median(times[name])))
    auto = float(np.median(times[AUTO] / times[best]))
    found: dict[str, Any] = {"best_fp32": best, "auto_over_best": round(auto, 3), "auto_ok": auto <= SLOWEST_AUTO}
    if BF16 in times:
        gain = float(np.median(times[best] / times[BF16]))
        found["bf16_gain"] = round(gain, 2)
    return found


def milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by name in milliseconds."""
    return {name: round(value * 1e3, 3) for name, value in seconds.items()}


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    versions = {backend.name: backend.version for backend in available_backends()}
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {"cpu": cpu_name(), "cores": usable_cores(), "threads": 1, "load_average": load, **versions}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--encodes", type=int, default=9)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
