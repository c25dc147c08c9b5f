"""An official model at its full size, once: export, masks, builds. For slow tests.

SAMRT_RECORD names a file that takes the measured figures, a line for each precision.

The image encoder of a model of more than `LARGE` parameters runs with one picture at a time, which is a third of the work:
pictures in a batch are what smaller sizes of the same code are checked with.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import samrt
from samrt.build import check_bundle
from samrt.graphs import IMAGE_ENCODER
from samrt.machine import cpu_name
from samrt_export import export
from samrt_export.parity import ParityRow, ReferenceRun, reference_run, reference_runs
from samrt_export.registry import GraphSpec

SM = "86"
MASK_IOU = 0.999
LARGE = 5e7

Compare = Callable[[samrt.Model], Mapping[str, float]]
"""An open bundle -> kind of prompt -> smallest mask IoU with an oracle."""


def check_full_size(model: str, folder: Path, compare: Compare | None, attentions: Mapping[str, int]) -> None:
    """Export for GPUs in fp16, which adds fp32 forms for CPUs; every form passes its gate there. Then look closer.

    attentions: of each graph; TensorRT for RTX has to find as many, each a kernel of its own
    """
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "reference_runs", affordable_runs)
        report = export.export_model(model, folder / "bundle", random_seed=0, precision="fp16")
    built = {graph.graph: graph for graph in check_bundle(folder / "bundle", sm=SM).graphs}
    ious: Mapping[str, float] = {}
    if compare is not None:
        with samrt.load(folder / "bundle", backend="onnxruntime") as opened, pytest.MonkeyPatch.context() as patch:
            patch.setattr(opened, "encode", answer_once(opened.encode))
            ious = compare(opened)
    wide = [row for row in report.parity if row.form.startswith("fp32")]
    narrow = [row for row in report.parity if not row.form.startswith("fp32")]
    kept = {graph: len(form.kept_fp32) for graph, form in narrow_forms(folder / "bundle").items()}
    builds = {
        graph: {"plan_bytes": one.plan_bytes, "attentions": one.attentions, "decomposable": one.decomposable}
        for graph, one in built.items()
    }
    times = {"export_s": round(report.seconds, 1), "seconds": round(time.perf_counter() - started, 1)}
    where = {"cpu": cpu_name()} | times
    record(
        {"model": model, "precision": "fp32"} | figures(wide) | ({"smallest_iou": dict(ious)} if ious else {}) | where,
        {"model": model, "precision": "fp16"} | figures(narrow) | {"kept_fp32": kept, "sm": SM, "rtx": builds} | where,
    )
    assert all(row.ok for row in report.parity)
    assert all(iou >= MASK_IOU for iou in ious.values()), ious
    assert {graph: one.attentions for graph, one in built.items()} == attentions
    assert not any(one.decomposable for one in built.values())


def answer_once(call: Callable[..., Any]) -> Callable[..., Any]:
    """The first answer again and again: of one picture and many prompts, encoding is the work."""
    answers: list[Any] = []

    def answer(*arguments: Any, **named: Any) -> Any:
        if not answers:
            answers.append(call(*arguments, **named))
        return answers[0]

    return answer


def affordable_runs(spec: GraphSpec) -> tuple[ReferenceRun, ...]:
    """Those of the gate; of a large image encoder only the first."""
    if spec.name != IMAGE_ENCODER or sum(value.numel() for value in spec.module.parameters()) < LARGE:
        return reference_runs(spec)
    return (reference_run(spec, spec.checks[0]),)


def narrow_forms(bundle: Path) -> dict[str, Any]:
    """Graph -> its form for GPUs."""
    graphs = samrt.bundle.open_bundle(bundle).manifest.graphs
    return {name: next(form for form in graph.forms if not form.targets) for name, graph in graphs.items()}


def figures(rows: list[ParityRow]) -> dict[str, float]:
    """The worst of all forms of a precision."""
    return {
        "worst_relative_l2": max(row.relative_l2 for row in rows),
        "smallest_change": min(row.alive for row in rows),
    }


def record(*lines: dict[str, Any]) -> None:
    """Append to the file that SAMRT_RECORD names."""
    if path := os.environ.get("SAMRT_RECORD"):
        with Path(path).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
