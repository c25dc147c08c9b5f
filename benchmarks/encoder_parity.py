"""Is the image encoder of a large model its module? One form, one picture at a time, where a whole export would take an hour.

    python benchmarks/encoder_parity.py sam-vit-h sam-hq-vit-h --out benchmarks/results/full_size_parity.jsonl

The gate of every export (two input sets, dead outputs refused), at batch 1 only and for ONNX Runtime's CPU form only, on live
random weights. The other graphs of these models are those of the small ones. A line of JSON for each model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from samrt.machine import cpu_name
from samrt_engines.executor import open_executor
from samrt_export.external import openable
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import SEEDS, ReferenceRun, measure_parity, refuse_misses, run_module
from samrt_export.precision.narrow import choose
from samrt_export.registry import find
from samrt_export.source import load_weights

TARGET = "onnxruntime-cpu"


def main() -> None:
    """One model after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for model in options.models:
        row = measure(model)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def measure(model: str) -> dict[str, Any]:
    """Compare the encoder of one model with PyTorch. Raises ParityError, DeadOutputError."""
    started = time.perf_counter()
    family = find(model)
    module = load_weights(family, model, random_seed=0).module
    spec = next(spec for spec in family.graphs(module, model) if spec.name == "image_encoder")
    sizes = {"images": 1}
    feeds = tuple(spec.sample(sizes, seed) for seed in SEEDS)
    runs = (ReferenceRun(sizes, feeds, tuple(run_module(spec, feed) for feed in feeds)),)
    with tempfile.TemporaryDirectory() as name:
        graph = onnx_from_spec(spec, choose(spec, TARGET).module, Path(name) / "fp32.data")
        with (
            openable(graph) as content,
            open_executor(
                content,
                device="cpu",
                inputs=spec.inputs,
                outputs=spec.outputs,
                ranges={"images": (1, 8)},
                name=spec.name,
            ) as executor,
        ):
            rows = list(measure_parity(spec, executor, "fp32", (TARGET,), runs))
    refuse_misses(rows)
    return {
        "model": model,
        "graph": "image_encoder",
        "form": rows[0].form,
        "sizes": sizes,
        "worst_relative_l2": max(row.relative_l2 for row in rows),
        "smallest_change": min(row.alive for row in rows),
        "cpu": cpu_name(),
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    main()
