"""Which forms of a graph a bundle of some precision holds, how they are made, and the gate each passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from samrt_engines.executor import open_executor
from samrt_export.external import load_graph
from samrt_export.parity import ParityRow, ReferenceRun, measure_parity, refuse_misses
from samrt_export.precision import int8
from samrt_export.precision.divergence import first_divergence
from samrt_export.precision.emulate import open_runnable
from samrt_export.precision.islands import choose_islands
from samrt_export.precision.tolerance import NARROW_TOLERANCE
from samrt_export.registry import Form, GraphSpec

FOR_CPU = ("onnxruntime-cpu", "openvino")
"""Targets that get an fp32 form in a bundle for GPUs."""
TARGETS = (*FOR_CPU, "onnxruntime-cuda", "tensorrt")
"""What a graph may be loaded for."""


def planned_forms(spec: GraphSpec, precision: str) -> tuple[tuple[Form, str], ...]:
    """(form, its precision) in the order in which a runtime should look at them.

    fp16 and bf16 are for GPUs: the form without targets is narrow, and CPUs get an fp32 form, since ONNX Runtime has to
    widen every fp16 operator there and knows hardly any of bf16. int8 is for CPUs and for `int8.GRAPHS`; all else stays
    fp32.
    """
    fp32 = tuple((form, "fp32") for form in spec.forms)
    if precision == "fp32" or (precision == "int8" and spec.name not in int8.GRAPHS):
        return fp32
    if precision == "int8":
        quantised = Form(choose(spec, int8.TARGETS[0]).module, int8.TARGETS)
        others = [Form(form.module, tuple(t for t in form.targets if t not in int8.TARGETS)) for form in spec.forms]
        kept = [new for new, old in zip(others, spec.forms, strict=True) if new.targets or not old.targets]
        return (quantised, "int8"), *((form, "fp32") for form in kept)
    general = choose(spec, "")
    targeted = [form for form in spec.forms if form.targets]
    missing = tuple(target for target in FOR_CPU if choose(spec, target) is general)
    wide = [*targeted, *([Form(general.module, missing)] if missing else [])]
    return *((form, "fp32") for form in wide), (general, precision)


def forms_for(planned: tuple[tuple[Form, str], ...], targets: tuple[str, ...] | None) -> tuple[tuple[Form, str], ...]:
    """Of planned forms those that the targets would take; all of them without targets."""
    if targets is None:
        return planned
    taken = [
        next(index for index, (form, _) in enumerate(planned) if not form.targets or target in form.targets)
        for target in targets
    ]
    return tuple(planned[index] for index in sorted(set(taken)))


def choose(spec: GraphSpec, target: str) -> Form:
    """The form a runtime would take for a target: the first made for it or for any."""
    return next(form for form in spec.forms if not form.targets or target in form.targets)


@dataclass(frozen=True)
class NarrowForm:
    """A narrow graph and the manifest's ``kept_fp32``."""

    model: onnx.ModelProto
    kept_fp32: list[dict[str, Any]]


def narrow_form(model: onnx.ModelProto, spec: GraphSpec, precision: str, runs: tuple[ReferenceRun, ...]) -> NarrowForm:
    """Make the narrow form of an fp32 graph that has passed its own gate. Raises ParityError when there is none."""
    if precision == "int8":
        quantised = int8.quantise(model, spec, runs)
        return NarrowForm(quantised.model, quantised.to_json())
    choice = choose_islands(model, spec, precision, runs)
    return NarrowForm(choice.typed, choice.to_json())


def checked_narrow(
    spec: GraphSpec,
    content: bytes | Path,
    precision: str,
    runs: tuple[ReferenceRun, ...],
    *,
    targets: tuple[str, ...] = (),
    fp32: onnx.ModelProto | None = None,
) -> list[ParityRow]:
    """Compare a narrow form, emulated where the CPU cannot run it, with the graph's module.

    fp32: the graph it was made from; with it, a miss names the first node that differs. Raises DeadOutputError, ParityError.
    """
    ranges = {symbol: (least, most) for symbol, (least, _, most) in spec.profiles.items()}
    with (
        open_runnable(content, content.parent if isinstance(content, Path) else None) as model,
        open_executor(
            model, device="cpu", inputs=spec.inputs, outputs=spec.outputs, ranges=ranges, name=spec.name
        ) as executor,
    ):
        rows = list(measure_parity(spec, executor, precision, targets, runs))
    refuse_misses(rows, lambda: _first_difference(fp32, content, runs, NARROW_TOLERANCE[precision]))
    return rows


def _first_difference(
    fp32: onnx.ModelProto | None, content: bytes | Path, runs: tuple[ReferenceRun, ...], tolerance: float
) -> str:
    """For a message: the first node out of tolerance, on the last run, which is the largest."""
    if fp32 is None:
        return ""
    first = first_divergence(fp32, load_graph(content), runs[-1].feeds[0], tolerance)
    return f", first at {first}" if first else ", spread over many nodes"
