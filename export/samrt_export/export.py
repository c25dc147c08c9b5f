"""A model name and weights in, a verified bundle out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from samrt.manifest import VERSION
from samrt_engines.errors import ExportError
from samrt_export.forms import make_form
from samrt_export.parity import TOLERANCE, ParityRow, reference_runs
from samrt_export.precision.narrow import TARGETS, forms_for, planned_forms
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
    targets: tuple[str, ...] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Export a model to a bundle at ``out``.

    Every graph is compared with PyTorch before the bundle gets its name; a killed or failed export leaves nothing there.
    targets: of `TARGETS`, what the bundle is for: it then holds no other forms of its graphs. None: for all
    Raises ExportError for an unknown model, precision or target, CheckpointError (HubError) for its weights, ParityError and
    DeadOutputError when a graph is not its module, BundleError when ``out`` cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    family = find(model)
    if precision not in PRECISIONS:
        raise ExportError("unknown precision", got=repr(precision), expected=", ".join(PRECISIONS))
    if targets is not None and not (targets and set(targets) <= set(TARGETS)):
        raise ExportError("unknown target", got=", ".join(targets) or "none", expected=", ".join(TARGETS))
    with bundle_folder(out, overwrite=overwrite) as folder:
        progress("weights", 0, 1)
        weights = load_weights(family, model, checkpoint=checkpoint, hub=hub, random_seed=random_seed)
        specs = family.graphs(weights.module, model)
        rows: list[ParityRow] = []
        entries: dict[str, Any] = {}
        contents: dict[str, bytes | Path] = {}
        planned = {spec.name: forms_for(planned_forms(spec, precision), targets) for spec in specs}
        done, total = 0, sum(map(len, planned.values()))
        for spec in specs:
            progress(f"{spec.name}: PyTorch", done, total)
            runs = reference_runs(spec)
            entries[spec.name] = _graph_entry(spec) | {"forms": []}
            for form, form_precision in planned[spec.name]:
                stored = make_form(spec, form, form_precision, runs, folder, partial(_at, progress, done, total))
                contents[spec.name] = stored.content  # in the end of the last form, which is for most targets
                entries[spec.name]["forms"].append(stored.to_json())
                rows += stored.parity
                done += 1
        progress("self-test", total, total)
        selftest = write_file(folder, SELFTEST, make_selftest(specs, contents).to_bytes())
        write_manifest(folder, _manifest(family, model, weights, entries) | {"selftest": selftest})
        progress("done", total, total)
    return ExportReport(out, model, tuple(rows), time.perf_counter() - started)


def _at(progress: Progress, done: int, total: int, step: str) -> None:
    progress(step, done, total)


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
    own = {} if family.module_numbers is None else family.module_numbers(weights.module)
    return {
        "format": "samrt-bundle",
        "version": VERSION,
        "source": {
            "model": model,
            "checkpoint": {"kind": weights.kind, "sha256": weights.sha256, "seed": weights.seed},
            "licence": {"name": licence, "note": note},
            "samrt": version("samrt"),
            "opset": max(form["opset"] for graph in graphs.values() for form in graph["forms"]),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
        "graphs": graphs,
        "numbers": family.numbers(model) | own,
        "abilities": list(family.abilities(model)),
    }
