"""One stored form of a graph: traced, compared with PyTorch, and narrowed where a precision asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samrt_engines.executor import open_executor
from samrt_export.external import data_files, load_graph, openable, scratch_folder, store
from samrt_export.flops import Shape, count_flops
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.onnx_module import OnnxModule
from samrt_export.parity import ParityRow, ReferenceRun, measure_parity, refuse_misses, summary
from samrt_export.precision.elements import opset_versions
from samrt_export.precision.narrow import checked_narrow, narrow_form
from samrt_export.registry import Form, GraphSpec
from samrt_export.writer import record_file, write_file


@dataclass(frozen=True)
class StoredForm:
    """An ONNX file in a bundle's folder that has passed its gate, and what the manifest says of it."""

    content: bytes | Path
    """What an executor opens: the file's bytes; the path of one that has its constants in another file."""
    record: dict[str, Any]
    """The manifest's, of the file."""
    data: list[dict[str, Any]]
    """The same of the file with its constants, where there is one."""
    precision: str
    targets: tuple[str, ...]
    parity: list[ParityRow]
    flops: float
    opset: int
    kept_fp32: list[dict[str, Any]] = field(default_factory=list)
    """What computes in fp32 in a narrow form, and why."""

    def to_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        kept = {"kept_fp32": self.kept_fp32} if self.precision != "fp32" else {}
        return (
            self.record
            | {
                "data": self.data,
                "precision": self.precision,
                "targets": list(self.targets),
                "opset": self.opset,
                "flops": self.flops,
                "parity": summary(self.parity),
            }
            | kept
        )


def make_form(
    spec: GraphSpec,
    form: Form,
    precision: str,
    runs: tuple[ReferenceRun, ...],
    folder: Path,
    progress: Callable[[str], None] = lambda step: None,
) -> StoredForm:
    """Make a form of a graph and write it into a bundle's folder, where a large one stays while it is worked on.

    The fp32 graph is compared first: what is wrong there is no matter of precision.
    Raises ExportError, DeadOutputError, ParityError.
    """
    name = " for ".join((spec.name, *form.targets))
    path = folder / ".".join((spec.name, *form.targets, *(() if precision == "fp32" else (precision,)), "onnx"))
    with scratch_folder(folder) as scratch:
        progress(f"{name}: ONNX")
        data = path.with_suffix(".data") if precision == "fp32" else scratch / "fp32.data"
        module = form.module
        model = module.copy_graph() if isinstance(module, OnnxModule) else onnx_from_spec(spec, module, data)
        progress(f"{name}: parity")
        with openable(model) as content:
            rows = checked_parity(spec, content, "fp32", form.targets, runs)
        flops = count_flops(model, usual_shapes(spec))
        kept_fp32: list[dict[str, Any]] = []
        if precision == "fp32":
            content = store(model, path)
        else:
            progress(f"{name}: {precision}")
            narrow = narrow_form(model, spec, precision, runs)
            content, kept_fp32 = store(narrow.model, path), narrow.kept_fp32
            progress(f"{name}: {precision} parity")
            rows = checked_narrow(spec, content, precision, runs, targets=form.targets, fp32=model)
    if isinstance(content, bytes):
        record, data_records = write_file(folder, path.name, content), []
    else:
        record, data_records = record_file(content), [record_file(file) for file in data_files(load_graph(content))]
    opset = opset_versions(model)[""]
    return StoredForm(content, record, data_records, precision, form.targets, rows, flops, opset, kept_fp32)


def usual_shapes(spec: GraphSpec) -> dict[str, Shape]:
    """The inputs' shapes at the profiles' opt sizes, which may be larger than those that parity is measured at."""
    usual = {symbol: opt for symbol, (_, opt, _) in spec.profiles.items()}
    return {
        tensor.name: tuple(usual[size] if isinstance(size, str) else size for size in tensor.shape)
        for tensor in spec.inputs
    }


def checked_parity(
    spec: GraphSpec,
    content: bytes | Path,
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
