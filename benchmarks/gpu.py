"""On a machine with an NVIDIA GPU: check every backend there is, time it beside PyTorch, write the rows.

    python benchmarks/gpu.py --out benchmarks/results/gpu-h100.json            SAM 2.1 tiny and nano, under ten minutes
    python benchmarks/gpu.py --models nano sam2.1-hiera-large --seconds 20

Correctness comes first: nothing is timed on a backend whose answers are not the model's. What cannot run is a row with
the reason. Without a GPU the script says so and exits with 2: it never invents a figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import samrt
from samrt.bench import bench
from samrt.build import build_bundle
from samrt.bundle import open_bundle
from samrt.selftest import SelfTest
from samrt_engines import SamrtError
from samrt_engines.backends import available_backends, cuda_device_count
from samrt_engines.tensorrt import BuildOptions, open_cuda
from samrt_export.export import export_model

PACKAGES = (
    "samrt",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)
MODELS = ("nano", "sam2.1-hiera-tiny")
PRECISIONS = ("fp16", "fp32")
REFERENCES = ("pytorch", "pytorch-compile")


@dataclass(frozen=True)
class Backend:
    """A way to run a bundle on the GPU."""

    name: str
    prepare: Callable[[Path], dict[str, Any]]
    """Builds what the backend needs and returns what it measured on the way."""


def build_with(flavour: str) -> Callable[[Path], dict[str, Any]]:
    """Plans of one TensorRT, self-tested on this GPU."""
    return lambda bundle: build_bundle(bundle, BuildOptions(flavour=flavour)).to_json()


BACKENDS = (
    Backend("onnxruntime", lambda bundle: {}),
    Backend("tensorrt", build_with("tensorrt")),
    Backend("tensorrt", build_with("rtx")),
)
TITLES = ("onnxruntime", "tensorrt", "tensorrt-rtx")


def main() -> None:
    """Measure, and write as it goes: what a time limit cuts off does not take the rest with it."""
    options = parse_arguments()
    if cuda_device_count() == 0:
        print("no NVIDIA GPU answers: nothing to measure here (samrt doctor)", file=sys.stderr)
        sys.exit(2)
    report: dict[str, Any] = {"machine": describe_machine(), "results": []}
    deadline = time.monotonic() + options.limit
    with tempfile.TemporaryDirectory() as work:
        for model in options.models:
            for precision in options.precisions:
                bundle = Path(work) / f"{model}-{precision}"
                entry: dict[str, Any] = {"model": model, "precision": precision}
                with recorded(entry, "export"):
                    seed = None if model == "nano" else 0
                    entry["export_seconds"] = export_model(model, bundle, precision=precision, random_seed=seed).seconds
                for title, backend in zip(TITLES, BACKENDS, strict=True):
                    row = {**entry, "backend": title}
                    report["results"].append(row)
                    if "failed" not in entry:
                        measure(backend, bundle, row, options, deadline)
                    print(title, model, precision, row.get("failed") or row.get("skipped") or "done", flush=True)
                    write(options.out, report)
                shutil.rmtree(bundle, ignore_errors=True)


def measure(backend: Backend, bundle: Path, row: dict[str, Any], options: argparse.Namespace, deadline: float) -> None:
    """Prepare, check, then time one backend; all of it goes into the row."""
    if time.monotonic() > deadline:
        row["skipped"] = "the time limit"
        return
    with recorded(row, "prepare"):
        row["prepare"] = backend.prepare(bundle)
    if "failed" in row:
        return
    with recorded(row, "check"):
        row["selftest"] = run_selftest(bundle, backend.name)
    if "failed" in row or not all(one["ok"] for one in row["selftest"]):
        row.setdefault("failed", "check: the answers are not the model's")
        return
    with recorded(row, "bench"):
        row["bench"] = bench(
            bundle,
            against=options.against,
            backend=backend.name,
            device="cuda",
            runs=options.runs,
            seconds_per_task=options.seconds,
            video="video" in open_bundle(bundle).manifest.abilities,
        ).to_json()


def run_selftest(bundle: Path, backend: str) -> list[dict[str, Any]]:
    """The bundle's self-test on a backend."""
    opened = open_bundle(bundle)
    assert opened.manifest.selftest is not None
    test = SelfTest.from_bytes(opened.read_file(opened.manifest.selftest))
    with samrt.load(bundle, backend, device="cuda") as model:
        return [row.to_json() for row in test.run(model.executors)]


@contextmanager
def recorded(row: dict[str, Any], stage: str) -> Iterator[None]:
    """Note a failure in the row and go on: the other backends can still be measured."""
    try:
        yield
    except (SamrtError, RuntimeError, OSError, ImportError) as error:
        row["failed"] = f"{stage}: {error}"


def describe_machine() -> dict[str, Any]:
    """GPU, driver and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    devices = [asdict(open_cuda(index).describe()) for index in range(cuda_device_count())]
    backends = [asdict(backend) for backend in available_backends()]
    return {"platform": platform.platform(), "gpus": devices, "versions": versions, "backends": backends}


def write(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--against", nargs="*", default=REFERENCES, choices=REFERENCES)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0, help="at most, for each task")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which nothing new begins")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
