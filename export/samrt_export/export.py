"""A model name and weights in, a verified bundle out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from samrt.manifest import VERSION
from samrt_engines.errors import DeadOutputError, ExportError, ParityError
from samrt_engines.executor import open_executor
from samrt_export.flops import count_flops
from samrt_export.onnx_graph import OPSET, onnx_from_spec
from samrt_export.parity import ALIVE, TOLERANCE, ParityRow, ReferenceRun, measure_parity, reference_runs, summary
from samrt_export.progress import Progress, silent
from samrt_export.registry import Family, GraphSpec, find
from samrt_export.selftest import make_selftest
from samrt_export.source import Weights, load_weights
from samrt_export.writer import bundle_folder, write_file, write_manifest

PRECISIONS = tuple(TOLERANCE)
SELFTEST = "selftest.npz"


@dataclass(frozen=True)
class ExportReport:
    """What an export did: the bundle's folder, the parity of every graph, and how long it took."""

    path: Path
    model: str
    parity: tuple[ParityRow, ...]
    seconds: float


def export_model(
    model: str,
    out: Path,
    *,
    checkpoint: Path | None = None,
    hub: str | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    overwrite: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Export a model to a bundle at ``out``.

    Every graph is compared with PyTorch before the bundle gets its name; a killed or failed export leaves nothing there.
    Raises ExportError for an unknown model or precision, CheckpointError (HubError) for its weights, ParityError and
    DeadOutputError when a graph is not its module, BundleError when ``out`` cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    family = find(model)
    if precision not in PRECISIONS:
        raise ExportError("unknown precision", got=repr(precision), expected=", ".join(PRECISIONS))
    with bundle_folder(out, overwrite=overwrite) as folder:
        progress("weights", 0, 1)
        weights = load_weights(family, model, checkpoint=checkpoint, hub=hub, random_seed=random_seed)
        specs = family.graphs(weights.module, model)
        rows: list[ParityRow] = []
        entries: dict[str, Any] = {}
        contents: dict[str, bytes] = {}
        done, total = 0, sum(len(spec.forms) for spec in specs)
        for spec in specs:
            progress(f"{spec.name}: PyTorch", done, total)
            runs = reference_runs(spec)
            entries[spec.name] = _graph_entry(spec) | {"forms": []}
            for form in spec.forms:
                name = " for ".join((spec.name, *form.targets))
                progress(f"{name}: ONNX", done, total)
                content = onnx_from_spec(spec, form.module).SerializeToString(deterministic=True)
                progress(f"{name}: parity", done, total)
                form_rows = checked_parity(spec, content, precision, form.targets, runs)
                record = write_file(folder, ".".join((spec.name, *form.targets, "onnx")), content) | {
                    "data": [],
                    "precision": precision,
                    "targets": list(form.targets),
                    "opset": OPSET,
                    "flops": count_flops(content, runs[0].feeds[0]),
                    "parity": summary(form_rows),
                }
                entries[spec.name]["forms"].append(record)
                contents[spec.name] = content  # the last form, which is for any target
                rows += form_rows
                done += 1
        progress("self-test", total, total)
        selftest = write_file(folder, SELFTEST, make_selftest(specs, contents, precision).to_bytes())
        write_manifest(folder, _manifest(family, model, weights, entries) | {"selftest": selftest})
        progress("done", total, total)
    return ExportReport(out, model, tuple(rows), time.perf_counter() - started)


def checked_parity(
    spec: GraphSpec,
    content: bytes,
    precision: str,
    targets: tuple[str, ...] = (),
    runs: tuple[ReferenceRun, ...] | None = None,
) -> list[ParityRow]:
    """Compare a graph with its module. Raises DeadOutputError, ParityError."""
    ranges = {symbol: (least, most) for symbol, (least, _, most) in spec.profiles.items()}
    with open_executor(
        content, device="cpu", inputs=spec.inputs, outputs=spec.outputs, ranges=ranges, name=spec.name
    ) as executor:
        rows = list(measure_parity(spec, executor, precision, targets, runs))
    for row in rows:
        where = f"{row.graph}: output '{row.output}' at {row.sizes}"
        if not row.is_alive:
            raise DeadOutputError(
                f"{where} does not depend on the input, so parity would prove nothing",
                got=f"changes by {row.alive:.1e} (relative)",
                expected=f"at least {ALIVE:.0e}",
                fix="check the weights: an untrained or zeroed head does this",
            )
        if not row.ok:
            raise ParityError(
                f"{where} differs from PyTorch",
                got=f"relative error {row.relative_l2:.2e}",
                expected=f"at most {row.tolerance:.0e}",
            )
    return rows


def _graph_entry(spec: GraphSpec) -> dict[str, Any]:
    """The manifest's description of a graph, its forms apart."""
    return {
        "inputs": [tensor.to_json() for tensor in spec.inputs],
        "outputs": [tensor.to_json() for tensor in spec.outputs],
        "profiles": {
            symbol: {"min": least, "opt": opt, "max": most} for symbol, (least, opt, most) in spec.profiles.items()
        },
    }


def _manifest(family: Family, model: str, weights: Weights, graphs: dict[str, Any]) -> dict[str, Any]:
    licence, note = family.licence(model)
    return {
        "format": "samrt-bundle",
        "version": VERSION,
        "source": {
            "model": model,
            "checkpoint": {"kind": weights.kind, "sha256": weights.sha256, "seed": weights.seed},
            "licence": {"name": licence, "note": note},
            "samrt": version("samrt"),
            "opset": OPSET,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
        "graphs": graphs,
        "numbers": family.numbers(model),
        "abilities": list(family.abilities(model)),
    }
