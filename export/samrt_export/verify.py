"""Is a bundle still what it was made from? Its graphs, as stored, against PyTorch."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from samrt.bundle import Bundle, open_bundle
from samrt_engines.errors import BundleError, ExportError
from samrt_engines.executor import open_executor
from samrt_export.parity import TOLERANCE, ParityRow, form_name, measure_parity, reference_runs
from samrt_export.precision.emulate import open_runnable
from samrt_export.precision.masks import MaskAgreement, compare_masks, open_forms
from samrt_export.precision.tracks import TrackAgreement, compare_tracks
from samrt_export.progress import Progress, silent
from samrt_export.registry import find
from samrt_export.source import reference_graphs


@dataclass(frozen=True)
class VerifyReport:
    """Every output of every stored form of every graph, against PyTorch in fp32."""

    model: str
    rows: tuple[ParityRow, ...]
    masks: tuple[MaskAgreement, ...] = ()
    """Of each narrow precision with fp32, where masks were asked for."""
    tracks: tuple[TrackAgreement, ...] = ()
    """The same through clips, where they were asked for."""

    @property
    def ok(self) -> bool:
        """Whether all hold their tolerance and are alive, and masks and tracks their bars."""
        agree = all(one.ok for one in self.masks) and all(one.ok for one in self.tracks)
        return bool(self.rows) and all(row.ok for row in self.rows) and agree

    def to_json(self) -> dict[str, Any]:
        """Verdict and rows."""
        document = {"model": self.model, "ok": self.ok, "rows": [row.to_json() for row in self.rows]}
        tracks = [one.to_json() for one in self.tracks]
        return document | {"masks": [one.to_json() for one in self.masks], "tracks": tracks}


def verify_bundle(
    path: Path, *, checkpoint: Path | None = None, masks: int = 0, clips: int = 0, progress: Progress = silent
) -> VerifyReport:
    """Run every stored graph beside the module it was made from. Narrow ones are emulated: no GPU is needed.

    masks: for the shipped model, on how many held-out pictures (of 500) to compare narrow forms' masks with fp32's
    clips: the same through so many held-out clips of 300 frames

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
        with (
            open_runnable(bundle.read_model(form)) as model,
            open_executor(
                model, device="cpu", inputs=graph.inputs, outputs=graph.outputs, ranges=graph.ranges, name=name
            ) as executor,
        ):
            rows += measure_parity(specs[name], executor, form.precision, form.targets, runs(name))
    agreement, tracks = compare_precisions(path, bundle, masks, clips, progress)
    progress("done", len(forms), len(forms))
    return VerifyReport(manifest.source.model, tuple(rows), agreement, tracks)


def compare_precisions(
    path: Path, bundle: Bundle, masks: int, clips: int, progress: Progress
) -> tuple[tuple[MaskAgreement, ...], tuple[TrackAgreement, ...]]:
    """Compare the masks of a bundle's narrow forms with those of its fp32 forms on held-out pictures and clips.

    Raises ExportError for a model that has no held-out pictures.
    """
    if not masks and not clips:
        return (), ()
    model = bundle.manifest.source.model
    if find(model).shipped_checkpoint(model) is None:
        raise ExportError(
            "there are no held-out pictures for this model",
            got=model,
            expected="nano",
            fix="leave out --masks and --clips",
        )
    stored = {form.precision for graph in bundle.manifest.graphs.values() for form in graph.forms}
    with ExitStack() as stack:
        others = {
            precision: stack.enter_context(open_forms(path, precision)) for precision in sorted(stored - {"fp32"})
        }
        if not others:
            return (), ()
        reference = stack.enter_context(open_forms(path, "fp32"))
        agreement = compare_masks(reference, others, masks, progress) if masks else ()
        return agreement, compare_tracks(reference, others, clips, progress=progress) if clips else ()
