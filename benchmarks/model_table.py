"""The model table in README.md: what the registry knows of every model, and what was measured of it.

    python benchmarks/model_table.py            # rewrites what stands between <!-- models --> and <!-- /models -->
    python benchmarks/model_table.py --check    # exit code 1 when that is stale

Families, models and abilities come from the registry, figures from benchmarks/results alone; "-" was not measured. Toys, which
are for tests, have no row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samrt_export.registry import Family, families

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
START, END = "<!-- models -->", "<!-- /models -->"
COMMAND = "python benchmarks/model_table.py"
NOTHING = "-"
HEADER = ("family", "model", "does", "fp32 error", "fp16 error", "CPU encoder", "x PyTorch", "RTX, fp16")
RIGHT = 3
"""From this column on, cells stand to the right."""
NOTES = """\
Full size, live random weights; "-" was not measured. Errors are the largest relative ones (L2) of any output of any graph
against fp32 PyTorch, fp16 emulated on the CPU. The encoder's time is that of one picture on the faster of ONNX Runtime and
OpenVINO in fp32, beside PyTorch eager in the same run: {where}. At one thread that is processor time, which does not mind
other work on the machine. RTX: every graph through TensorRT for RTX for compute capability 8.6 with dynamic profiles, and how
many of its attentions are single kernels. Masks of SAM, SAM-HQ, MobileSAM and EfficientSAM agree with independent
implementations to an IoU of 0.9999; Light HQ-SAM's were not compared. Recorded in
[sam_family](benchmarks/results/sam_family.json), [full_size_parity](benchmarks/results/full_size_parity.jsonl),
[rtx_builds](benchmarks/results/rtx_builds.json) and [sam3d_full_size](benchmarks/results/sam3d_full_size.json)."""

Document = dict[str, Any]


@dataclass
class Build:
    """What TensorRT for RTX made of a model's fp16 graphs."""

    graphs: int = 0
    failed: int = 0
    attentions: int = 0
    may_split: int = 0

    def add(self, graph: Mapping[str, Any], may_split: str) -> None:
        """One graph's entry of a result file; may_split: under which name it counts attentions of several kernels."""
        self.graphs += 1
        if "failed" in graph:
            self.failed += 1
            return
        self.attentions += graph["attentions"]
        self.may_split += graph[may_split]

    def cell(self) -> str:
        """Whether all build, and how many of the attentions are single kernels."""
        if self.failed:
            return "fails"
        if not self.attentions:
            return "builds"
        return f"builds, {self.attentions - self.may_split} of {self.attentions} fused"


@dataclass
class Measured:
    """What result files hold about one model; None was not measured."""

    fp32: float | None = None
    fp16: float | None = None
    encoder: list[Document] = field(default_factory=list)
    threads: int | None = None
    cpu: str | None = None
    build: Build | None = None

    def errors(self) -> tuple[str, str]:
        """Largest relative error of any output of any graph, fp32 and fp16."""
        return _error(self.fp32), _error(self.fp16)

    def speed(self) -> tuple[str, str]:
        """Of the fastest fp32 backend: time of one picture, and how many times as fast as PyTorch; and the latter in bf16."""
        ours = [row for row in self.encoder if row["contender"] != "pytorch"]
        wide = [row for row in ours if row["contender"].endswith("fp32")]
        if not wide:
            return NOTHING, NOTHING
        best = max(wide, key=self.ratio)
        narrow = [row for row in ours if row["contender"].endswith("bf16")]
        bf16 = f", bf16 {max(map(self.ratio, narrow)):.1f}" if narrow else ""
        return _time(best["cpu_ms" if self.threads == 1 else "median_ms"]), f"{self.ratio(best):.1f}{bf16}"

    def ratio(self, row: Document) -> float:
        """One thread is compared by processor time, which other work on the machine does not change; several by the clock."""
        value: float = row["times_as_fast_cpu" if self.threads == 1 else "times_as_fast"]
        return value


def main() -> None:
    """Rewrite README's table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the table is stale")
    options = parser.parse_args()
    old = README.read_text()
    new = with_table(old, section(families().values(), read_results(RESULTS)))
    if options.check:
        if new != old:
            sys.exit(f"README.md: the model table is stale; {COMMAND} rewrites it")
        return
    README.write_text(new)


def with_table(text: str, table: str) -> str:
    """Put the table between the markers. Exits when they are not there, once each and in order."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        sys.exit(f"README.md: the lines {START} and {END} must stand there once each, in this order")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}"


def section(known: Iterable[Family], measured: Mapping[str, Measured]) -> str:
    """The table and what its figures mean."""
    lines = [line(HEADER), line("---:" if index >= RIGHT else "---" for index in range(len(HEADER)))]
    models = [(family, model) for family in known for model in family.models if not model.endswith("-toy")]
    for family, model in models:
        found = measured.get(model, Measured())
        build = NOTHING if found.build is None else found.build.cell()
        does = ", ".join(family.abilities(model))
        lines.append(line((family.name, f"`{model}`", does, *found.errors(), *found.speed(), build)))
    return "\n".join([*lines, "", notes([measured[model] for _, model in models if model in measured])])


def line(cells: Iterable[str]) -> str:
    """One line of the table."""
    return f"| {' | '.join(cells)} |"


def notes(measured: list[Measured]) -> str:
    """What stands below the table."""
    machines = sorted({(one.cpu or "", one.threads or 0) for one in measured if one.encoder})
    where = "; ".join(f"{threads} thread{'s' if threads > 1 else ''} of an {cpu}" for cpu, threads in machines)
    return NOTES.format(where=where or "nothing yet")


def read_results(folder: Path) -> dict[str, Measured]:
    """Model -> what the result files hold; a file that is not there holds nothing."""
    found: dict[str, Measured] = {}
    for row in _rows(folder / "rtx_builds.json"):
        if row["precision"] == "fp16" and row["sm"] == "86":
            _build(_entry(found, row["model"])).add(row, "may_split")
    for row in _lines(folder / "full_size_parity.jsonl"):
        entry = _entry(found, row["model"])
        if (precision := row.get("precision", "fp32")) in ("fp32", "fp16"):
            _worst(entry, precision, row["worst_relative_l2"])
        if precision == "fp16" and row.get("sm") == "86":
            _replace_build(entry, row["rtx"])
    solid = folder / "sam3d_full_size.json"
    for row in _rows(solid):
        entry = _entry(found, json.loads(solid.read_text())["model"])
        _worst(entry, "fp32", max(row["relative_l2"].values()))
        _build(entry).add(row["rtx"], "may_split")
    for row in _rows(folder / "sam_family.json"):
        _read_family(_entry(found, row["model"]), row)
    return found


def _read_family(entry: Measured, row: Document) -> None:
    """A row of sam_family.json: the newest there is, so its build takes the place of an older one."""
    for precision in ("fp32", "fp16"):
        if "export" in row.get(precision, {}):
            _worst(entry, precision, row[precision]["export"]["worst_relative_l2"])
    if "timing" in row.get("fp32", {}):
        entry.encoder, entry.threads = row["fp32"]["timing"]["encoder"], row["fp32"]["timing"]["threads"]
        entry.cpu = row["fp32"]["machine"]["cpu"]
    if "rtx" in row.get("fp16", {}):
        _replace_build(entry, row["fp16"]["rtx"].get("graphs", {"one": {"failed": True}}))


def _entry(found: dict[str, Measured], model: str) -> Measured:
    return found.setdefault(model, Measured())


def _build(entry: Measured) -> Build:
    if entry.build is None:
        entry.build = Build()
    return entry.build


def _replace_build(entry: Measured, graphs: Mapping[str, Document]) -> None:
    """What an export really wrote counts for more than a graph built by itself."""
    entry.build = Build()
    for graph in graphs.values():
        entry.build.add(graph, "decomposable")


def _worst(entry: Measured, precision: str, value: float) -> None:
    setattr(entry, precision, max(value, getattr(entry, precision) or 0.0))


def _rows(path: Path) -> list[Document]:
    rows: list[Document] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def _lines(path: Path) -> list[Document]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def _error(value: float | None) -> str:
    """1.8e-06 -> 1.8e-6."""
    return NOTHING if value is None else f"{value:.1e}".replace("e-0", "e-")


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.1f} s" if milliseconds >= 1e3 else f"{milliseconds:.0f} ms"


if __name__ == "__main__":
    main()
