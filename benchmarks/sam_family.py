"""Models at full size, one after another: export, parity, time and memory on every CPU backend, an fp16 build for RTX.

    python benchmarks/sam_family.py mobile-sam sam-vit-b --precisions fp32 fp16 --out benchmarks/results/sam_family.json

Live random weights: neither speed nor memory depends on their values. Every step runs in a process of its own, and what it
leaves on the disk (5 GB for SAM ViT-H) goes when its model is done. A row is written as soon as a step is done; another call
takes up what is missing, and measures again only with --again.

fp32: exported for CPUs, every form of every graph compared with PyTorch; then `sam_family_timing.py`; then peak memory of a
    process that loads the bundle, encodes a 1080p picture and answers a click, and of one that only runs the image encoder.
fp16: exported for TensorRT, every graph emulated on the CPU and compared with fp32 PyTorch, which is the gate of every export;
    then every graph built through TensorRT for RTX, which needs no GPU, with the manifest's dynamic profiles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samrt import __version__
from samrt.bench import measure_process
from samrt.bench.tasks import HD_HW
from samrt.bundle import open_bundle
from samrt.graphs import IMAGE_ENCODER
from samrt.machine import cpu_name, usable_cores
from samrt.manifest import Manifest
from samrt_engines.errors import BackendError
from samrt_engines.tensorrt import load_tensorrt

TIMING = Path(__file__).with_name("sam_family_timing.py")
CPUS = ("onnxruntime-cpu", "openvino")
MEMORY: dict[str, dict[str, Any]] = {
    "pytorch": {"contender": "pytorch"},
    "onnxruntime fp32": {"backend": "onnxruntime"},
    "openvino fp32": {"backend": "openvino"},
    "openvino bf16": {"backend": "openvino", "precision": "bf16"},
}
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy")

Row = dict[str, Any]


class StepError(Exception):
    """A step's process failed; the message is the end of what it printed."""


def main() -> None:
    """Measure what is missing, and write after each step."""
    options = parse_arguments()
    for model in options.models:
        rows = {row["model"]: row for row in read_rows(options.out)}
        row = {"model": model} | rows.get(model, {})
        if options.again:
            row = {name: value for name, value in row.items() if name not in options.precisions}

        def save(row: Row = row) -> None:
            write_rows(options.out, row)

        try:
            measure(row, options, save)
        except StepError as error:
            print(f"{model}: {error}", file=sys.stderr, flush=True)
            row.setdefault("failed", []).append(str(error))
            save()
        finally:
            shutil.rmtree(options.work / model, ignore_errors=True)
        print(json.dumps(row), flush=True)


def measure(row: Row, options: argparse.Namespace, save: Callable[[], None]) -> None:
    """The parts that a row lacks."""
    row.pop("failed", None)
    for precision in options.precisions:
        part: Row = row.setdefault(precision, {})
        steps = fp32_steps(options) if precision == "fp32" else narrow_steps(precision, options)
        missing = [name for name in steps if name not in part or "failed" in part[name]]
        if not missing:
            continue
        bundle = options.work / row["model"] / precision
        exported = export(row["model"], precision, bundle, options)
        part.setdefault("export", exported)
        for name in missing:
            part[name] = steps[name](bundle)
            part["machine"] = machine()
            save()
        shutil.rmtree(bundle)


def fp32_steps(options: argparse.Namespace) -> dict[str, Callable[[Path], Any]]:
    """What is measured of an fp32 bundle: name -> how."""
    return {"timing": lambda bundle: timing(bundle, options), "memory": lambda bundle: memory(bundle, options.threads)}


def narrow_steps(precision: str, options: argparse.Namespace) -> dict[str, Callable[[Path], Any]]:
    """What is measured of a bundle for GPUs."""
    return {"rtx": lambda bundle: rtx_build(bundle, options.sm)}


def export(model: str, precision: str, bundle: Path, options: argparse.Namespace) -> Row:
    """Export, and say what the manifest says of it. Raises StepError."""
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    targets = [word for target in (CPUS if precision == "fp32" else ("tensorrt",)) for word in ("--target", target)]
    command = ["export", model, "--random-weights", "0", "--precision", precision, *targets, "-o", str(bundle)]
    started = time.perf_counter()
    peak_mib, _ = samrt_command(*command)
    manifest = open_bundle(bundle).manifest
    forms = [form for graph in manifest.graphs.values() for form in graph.forms]
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(peak_mib),
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
        "worst_relative_l2": max(entry["relative_l2"] for form in forms for entry in form.parity.values()),
        "graphs": graph_parity(manifest),
    }


def graph_parity(manifest: Manifest) -> dict[str, list[Row]]:
    """Graph -> one entry for each of its forms."""
    return {
        name: [
            {
                "precision": form.precision,
                "targets": list(form.targets),
                "gflop": None if form.flops is None else round(form.flops / 1e9, 2),
                "worst_relative_l2": max(entry["relative_l2"] for entry in form.parity.values()),
                "kept_fp32": len(form.kept_fp32),
            }
            for form in graph.forms
        ]
        for name, graph in manifest.graphs.items()
    }


def timing(bundle: Path, options: argparse.Namespace) -> Row:
    """Encoder, click and boxes beside PyTorch. Raises StepError."""
    command = [str(TIMING), str(bundle), "--threads", str(options.threads), "--runs", str(options.runs)]
    command += ["--clicks", str(options.clicks), "--box-runs", str(options.box_runs)]
    backends = [name for name in MEMORY if name != "pytorch"]
    groups = [[name] for name in backends] if options.apart else [backends]
    documents: list[Row] = []
    for group in groups:
        _, printed = run([*command, "--contenders", *group])
        documents.append(json.loads(printed.splitlines()[-1]))
    together = documents[0]
    for document in documents[1:]:
        for task in ("encoder", "click", "boxes"):
            together.get(task, []).extend(row for row in document.get(task, []) if row["contender"] != "pytorch")
        together["skipped"] |= document["skipped"]
    return together | {"apart": options.apart}


def memory(bundle: Path, threads: int) -> Row:
    """Contender -> MiB of a fresh process; a contender that this machine cannot run has the reason instead."""
    found: Row = {}
    for name, arguments in MEMORY.items():
        measured = partial(measure_process, bundle, hw=HD_HW, device="cpu", threads=threads, **arguments)
        try:
            whole = measured()
            found[name] = {
                "rss_loaded_mib": whole.rss_loaded_mib,
                "rss_peak_mib": whole.rss_peak_mib,
                "load_s": round(whole.load_s, 2),
                "first_mask_s": round(whole.first_s, 2),
            }
            if name != "pytorch":
                found[name]["image_encoder_rss_peak_mib"] = measured(graph=IMAGE_ENCODER).rss_peak_mib
        except BackendError as error:
            found[name] = {"failed": str(error)}
    return found


def rtx_build(bundle: Path, sm: str) -> Row:
    """Graph by graph what TensorRT for RTX makes of it; or why it does not."""
    facts = {"sm": sm, "tensorrt": str(load_tensorrt("rtx"))}
    try:
        peak_mib, printed = samrt_command("build", str(bundle), "--check", "--sm", sm, "--json")
    except StepError as error:
        return facts | {"failed": str(error)}
    fields = ("plan_bytes", "build_seconds", "layers", "attentions", "decomposable")
    graphs = {graph["graph"]: {field: graph[field] for field in fields} for graph in json.loads(printed)["graphs"]}
    return facts | {"peak_mib": round(peak_mib), "graphs": graphs}


def samrt_command(*arguments: str) -> tuple[float, str]:
    """Run ``samrt ...`` in a process of its own: its peak resident memory in MiB, and what it printed. Raises StepError."""
    return run(["-m", "samrt", *arguments])


def run(arguments: list[str]) -> tuple[float, str]:
    """Run this Python; see `samrt_command`. On Linux the peak is at least what this process had when it forked: 0.4 GB."""
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([sys.executable, *arguments], stdout=printed, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (told, printed):
            file.seek(0)
        if process.returncode:
            last = " | ".join([*told.read().strip().splitlines()[-3:], *printed.read().strip().splitlines()[-1:]])
            raise StepError(f"{' '.join(arguments[:3])}: exit code {process.returncode}: {last}")
        peak_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return peak_mib, printed.read()


def machine() -> Row:
    """Where and with what this was measured."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "platform": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"samrt": __version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


def read_rows(out: Path) -> list[Row]:
    """The rows of a result file; none where there is no file yet."""
    rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    return rows


def write_rows(out: Path, row: Row) -> None:
    """Put a row into the file in place of the model's older one; the file is replaced whole."""
    rows = read_rows(out)
    known = [one["model"] for one in rows]
    if row["model"] in known:
        rows[known.index(row["model"])] = row
    else:
        rows.append(row)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    temporary.replace(out)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="of `samrt models`, prompted on pictures")
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where exports lie meanwhile")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "fp16", "bf16"), default=["fp32"])
    parser.add_argument("--again", action="store_true", help="measure what the file has already, too")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--runs", type=int, default=5, help="timed runs of the image encoder")
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--box-runs", type=int, default=3)
    parser.add_argument(
        "--apart", action="store_true", help="time each backend in a process of its own, beside PyTorch"
    )
    parser.add_argument("--sm", default="86", help="compute capability of the RTX build")
    return parser.parse_args()


if __name__ == "__main__":
    main()
