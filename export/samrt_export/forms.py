"""One stored form of a graph: traced, compared with PyTorch, and narrowed where a precision asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from samrt_engines.executor import open_executor
from samrt_export.flops import count_flops
from samrt_export.onnx_graph import OPSET, onnx_from_spec
from samrt_export.parity import ParityRow, ReferenceRun, measure_parity, refuse_misses, summary
from samrt_export.precision.narrow import checked_narrow, narrow_form
from samrt_export.registry import Feeds, Form, GraphSpec


@dataclass(frozen=True)
class StoredForm:
    """An ONNX file that has passed its gate, and what the manifest says of it."""

    graph: str
    targets: tuple[str, ...]
    precision: str
    content: bytes
    parity: list[ParityRow]
    flops: float
    kept_fp32: list[dict[str, Any]] = field(default_factory=list)
    """What computes in fp32 in a narrow form, and why."""

    @property
    def file(self) -> str:
        """Its name in the bundle."""
        precision = () if self.precision == "fp32" else (self.precision,)
        return ".".join((self.graph, *self.targets, *precision, "onnx"))

    def to_json(self) -> dict[str, Any]:
        """The manifest's entry, the file's record apart."""
        kept = {"kept_fp32": self.kept_fp32} if self.precision != "fp32" else {}
        return {
            "data": [],
            "precision": self.precision,
            "targets": list(self.targets),
            "opset": OPSET,
            "flops": self.flops,
            "parity": summary(self.parity),
        } | kept


def make_form(
    spec: GraphSpec,
    form: Form,
    precision: str,
    runs: tuple[ReferenceRun, ...],
    progress: Callable[[str], None] = lambda step: None,
) -> StoredForm:
    """Make a form of a graph. The fp32 graph is compared first: what is wrong there is no matter of precision.

    Raises ExportError, DeadOutputError, ParityError.
    """
    name = " for ".join((spec.name, *form.targets))
    progress(f"{name}: ONNX")
    model = onnx_from_spec(spec, form.module)
    content = model.SerializeToString(deterministic=True)
    progress(f"{name}: parity")
    rows = checked_parity(spec, content, "fp32", form.targets, runs)
    flops = count_flops(content, _usual_feeds(spec, runs[0]))
    if precision == "fp32":
        return StoredForm(spec.name, form.targets, precision, content, rows, flops)
    progress(f"{name}: {precision}")
    narrow = narrow_form(model, spec, precision, runs)
    content = narrow.model.SerializeToString(deterministic=True)
    progress(f"{name}: {precision} parity")
    rows = checked_narrow(spec, content, precision, runs, targets=form.targets, fp32=model)
    return StoredForm(spec.name, form.targets, precision, content, rows, flops, narrow.kept_fp32)


def _usual_feeds(spec: GraphSpec, run: ReferenceRun) -> Feeds:
    """Feeds of the profiles' opt sizes, which may be larger than those that parity is measured at."""
    sizes = {symbol: usual for symbol, (_, usual, _) in spec.profiles.items()}
    return run.feeds[0] if run.sizes == sizes else spec.sample(sizes, 0)


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
    refuse_misses(rows)
    return rows
