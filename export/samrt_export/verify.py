"""Is a bundle still what it was made from? Its graphs, as stored, against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from samrt.bundle import open_bundle
from samrt_engines.errors import BundleError
from samrt_engines.executor import open_executor
from samrt_export.parity import TOLERANCE, ParityRow, form_name, measure_parity, reference_runs
from samrt_export.precision.emulate import runnable
from samrt_export.progress import Progress, silent
from samrt_export.source import reference_graphs


@dataclass(frozen=True)
class VerifyReport:
    """Every output of every stored form of every graph, against PyTorch in fp32."""

    model: str
    rows: tuple[ParityRow, ...]

    @property
    def ok(self) -> bool:
        """Whether all hold their tolerance and are alive."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Verdict and rows."""
        return {"model": self.model, "ok": self.ok, "rows": [row.to_json() for row in self.rows]}


def verify_bundle(path: Path, *, checkpoint: Path | None = None, progress: Progress = silent) -> VerifyReport:
    """Run every stored graph beside the module it was made from.

    Raises BundleError for a damaged bundle, CheckpointError when its weights are not at hand.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    progress("weights", 0, 1)
    specs = {spec.name: spec for spec in reference_graphs(manifest, checkpoint)}
    missing = specs.keys() - manifest.graphs.keys()
    if missing:
        raise BundleError("the bundle lacks graphs", got=", ".join(manifest.graphs), expected=", ".join(specs))
    forms = [(name, form) for name in specs for form in manifest.graphs[name].forms]
    rows: list[ParityRow] = []
    runs = lru_cache(maxsize=1)(lambda name: reference_runs(specs[name]))  # the forms of a graph follow each other
    for index, (name, form) in enumerate(forms):
        progress(f"{name}: {form_name(form.precision, form.targets)}", index, len(forms))
        graph = manifest.graphs[name]
        if form.precision not in TOLERANCE:
            raise BundleError(f"{name}: cannot judge this precision", got=form.precision, expected=", ".join(TOLERANCE))
        with open_executor(
            runnable(bundle.read_model(form)),
            device="cpu",
            inputs=graph.inputs,
            outputs=graph.outputs,
            ranges=graph.ranges,
            name=name,
        ) as executor:
            rows += measure_parity(specs[name], executor, form.precision, form.targets, runs(name))
    progress("done", len(forms), len(forms))
    return VerifyReport(manifest.source.model, tuple(rows))
