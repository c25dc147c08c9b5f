"""``samrt bench``: latency, throughput, memory and parity of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samrt.bench import Report, to_html, to_markdown
from samrt.bench import bench as measure
from samrt.bench.markdown import found_texts, quiet_text, ratio_text
from samrt.bundle import open_bundle
from samrt.commands.output import json_text, print_json, progress_bar, write_whole
from samrt.images import read_image
from samrt_engines.errors import InputError, MissingExtraError

KINDS: dict[str, Callable[[Report], str]] = {
    ".json": lambda report: json_text(report.to_json()),
    ".md": to_markdown,
    ".html": to_html,
}
"""Suffix of a report -> what makes its content."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    image: Annotated[Path | None, typer.Option(help="Picture to measure with; made up when left out.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Measure beside: pytorch, pytorch-compile.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights for the reference, where needed.")] = None,
    runs: Annotated[int, typer.Option(min=5, help="Timed runs of every task.")] = 200,
    seconds: Annotated[float, typer.Option(min=0, help="Fewer runs (at least 5) where a task takes longer.")] = 30.0,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16, with --backend openvino.")] = None,
    video: Annotated[
        bool, typer.Option("--video", help="Also the memory graphs, and frames with 1, 4, 16 objects.")
    ] = False,
    voxels: Annotated[int | None, typer.Option(min=1, help="Of the object, for a model that makes 3D.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Report: .md, .json, .html, or a folder for all three.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure latency per graph and end to end, throughput, memory, load time; parity and speed beside PyTorch.

    Of a model that proposes masks: its detector, what the host does after it, a click and a box; never beside PyTorch.
    Of a model that makes 3D every stage is measured, in a process of its own: time, weights, index maps, activations.

    samrt bench bundles/nano --against pytorch -o report.html

    samrt bench bundles/sam3d-objects --voxels 27000 -o report.md
    """
    if open_bundle(bundle).manifest.reconstruction is not None:
        _bench_reconstruction(bundle, voxels, runs, backend, device, threads, out, json_output)
        return
    if out is not None:
        check_target(out)
    picture = None if image is None else read_image(image)
    with progress_bar("bench") as progress:
        report = measure(
            bundle,
            image=picture,
            against=against or (),
            checkpoint=checkpoint,
            backend=backend,
            device=device,
            runs=runs,
            seconds_per_task=seconds,
            threads=threads,
            precision=precision,
            video=video,
            progress=progress,
        )
    if out is not None:
        write_report(report, out)
    if json_output:
        print_json(report.to_json())
    else:
        _print(report)


def _bench_reconstruction(
    bundle: Path,
    voxels: int | None,
    runs: int,
    backend: str,
    device: str,
    threads: int | None,
    out: Path | None,
    json_output: bool,
) -> None:
    """The stages of a model that makes 3D."""
    from samrt.bench.reconstruct import RUNS, bench_reconstruction, summary, to_table, to_text

    if out is not None and out.suffix not in (".md", ".json"):
        raise InputError("unknown kind of report for 3D", got=repr(out.name), expected="a name ending in .md or .json")
    with progress_bar("bench") as progress:
        report = bench_reconstruction(
            bundle,
            voxels=voxels,
            runs=min(runs, RUNS),
            backend=backend,
            device=device,
            threads=threads,
            progress=progress,
        )
    if out is not None:
        write_whole(out, (to_text(report) if out.suffix == ".md" else json_text(report.to_json())).encode())
    if json_output:
        print_json(report.to_json())
        return
    head, rows = to_table(report)
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=True, justify="left" if name == head[0] else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(f"{report.model}: {summary(report)}", highlight=False)
    console.print(table)


def check_target(out: Path) -> None:
    """Refuse, before minutes of measuring, a report that could not be written. Raises InputError, MissingExtraError."""
    if out.suffix and out.suffix not in KINDS and not out.is_dir():
        raise InputError(
            "unknown kind of report", got=repr(out.name), expected=f"a name ending in {', '.join(KINDS)}, or a folder"
        )
    if out.suffix in KINDS and not out.parent.is_dir():
        raise InputError(f"cannot write {out}", got=f"no folder {out.parent}", expected="a folder that exists")
    if out.suffix in KINDS and out.is_dir():
        raise InputError(
            f"cannot write {out}", got="a folder of that name", expected="a file, or a folder without suffix"
        )
    if not out.suffix and out.exists() and not out.is_dir():
        raise InputError(f"cannot write to {out}", got="a file", expected=f"a folder, or a name in {', '.join(KINDS)}")
    if out.suffix in (".html", ""):
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise MissingExtraError.for_package(
                "matplotlib", extra="bench", purpose="to draw the plots of an HTML report"
            ) from error


def write_report(report: Report, out: Path) -> None:
    """Write one file by its suffix; into a folder, made where there is none, ``report`` of every kind. Raises InputError."""
    if out.suffix in KINDS:
        write_whole(out, KINDS[out.suffix](report).encode())
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}", got=error.strerror, expected="a folder") from error
    for suffix, content in KINDS.items():
        write_whole(out / f"report{suffix}", content(report).encode())


def _print(report: Report) -> None:
    """What fits a terminal; the report files say more."""
    console, machine = Console(), report.machine
    console.print(
        f"{report.model} on {machine['cpu']}, {machine['threads']} threads. {quiet_text(report)}", highlight=False
    )
    for text in found_texts(report):
        console.print(text, highlight=False)
    table = Table("task", "contender", "p50 ms", "p95", "p99", "times samrt", "error or IoU", box=None)
    for row in report.rows:
        error = "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"
        agreement = error if row.mask_iou is None else f"IoU {row.mask_iou:.4f}"
        task = f"{row.task} x{row.batch}" if row.kind == "graph" else row.task
        figures = (f"{ms:.2f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms))
        table.add_row(task, row.contender, *figures, ratio_text(row), agreement)
    console.print(table)
    for name, process in report.processes.items():
        peak = "unknown" if process.rss_peak_mib is None else f"{process.rss_peak_mib:.0f} MiB"
        console.print(
            f"{name}: loads in {process.load_s:.2f} s, first mask after {process.first_s:.2f} s, peak memory {peak}",
            highlight=False,
        )
    for one in report.skipped:
        console.print(Text(f"{one.contender} was skipped from '{one.task}' on: {one.reason}", "yellow"))
