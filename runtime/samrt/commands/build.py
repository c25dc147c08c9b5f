"""``samrt build``: TensorRT plans of a bundle's graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from samrt.commands.output import print_json

if TYPE_CHECKING:
    from samrt.build import BuildReport
    from samrt_engines.tensorrt import BuildStep

MIB = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(build)


def build(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    device: Annotated[str, typer.Option(help="The GPU to build for: cuda, cuda:N.")] = "cuda",
    check: Annotated[
        bool,
        typer.Option("--check", help="Only see whether every graph builds, through TensorRT for RTX, with no GPU."),
    ] = False,
    sm: Annotated[str | None, typer.Option(help="With --check: compute capability, 86 for 8.6.")] = None,
    flavour: Annotated[str, typer.Option(help="auto, tensorrt, or rtx (TensorRT for RTX).")] = "auto",
    workspace_mib: Annotated[int | None, typer.Option(min=1, help="Largest scratch memory of a layer.")] = None,
    hardware_compatible: Annotated[bool, typer.Option(help="Plans for every GPU from Ampere on; slower.")] = False,
    version_compatible: Annotated[bool, typer.Option(help="Plans that later TensorRT versions load; slower.")] = False,
    strip_weights: Annotated[bool, typer.Option(help="Small plans; loading takes weights from the ONNX file.")] = False,
    allow_unverified: Annotated[bool, typer.Option(help="Keep plans that fail the self-test.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build TensorRT plans for the GPU at hand, test them on it, and record them in the bundle.

    Plans that do not give PyTorch's answers are refused. With --check nothing is kept, and no GPU is needed.

    samrt build bundles/tiny

    samrt build bundles/tiny --check --sm 86
    """
    from samrt.build import build_bundle, check_bundle, with_device
    from samrt_engines.tensorrt import BuildOptions

    if sm is not None and not check:
        raise typer.BadParameter("--sm goes with --check: plans are built for the GPU at hand", param_hint="--sm")
    with _Steps(quiet=json_output) as steps:
        if check:
            report = check_bundle(bundle, sm=sm or "86", progress=steps)
        else:
            options = BuildOptions(
                flavour=flavour,
                workspace_bytes=None if workspace_mib is None else workspace_mib * MIB,
                hardware_compatible=hardware_compatible,
                version_compatible=version_compatible,
                strip_weights=strip_weights,
            )
            report = build_bundle(
                bundle, with_device(options, device), allow_unverified=allow_unverified, progress=steps
            )
    if json_output:
        print_json(report.to_json())
    else:
        _print(report, checked=check)


class _Steps:
    """A line per graph: what TensorRT is doing."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> _Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, graph: str, step: BuildStep) -> None:
        if graph not in self._tasks:
            self._tasks[graph] = self._progress.add_task(graph)
        self._progress.update(self._tasks[graph], description=f"{graph}: {step}")  # type: ignore[arg-type]


def _print(report: BuildReport, *, checked: bool) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for title in ("graph", "precision", "for", "layers", "attention", "build", "plan"):
        table.add_column(title, justify="left" if title in ("graph", "precision", "for") else "right")
    for graph in report.graphs:
        key = graph.key
        table.add_row(
            graph.graph,
            graph.precision,
            f"{key.gpu if key.gpu != 'any' else ''} {key.capability}".strip(),
            "" if graph.layers is None else str(graph.layers),
            "" if graph.attentions is None else f"{graph.attentions}, {graph.decomposable} may split",
            "there already" if graph.build_seconds is None else f"{graph.build_seconds:.1f} s",
            f"{graph.plan_bytes / MIB:.1f} MiB",
        )
    console.print(table)
    first = report.graphs[0].key
    flavour = "TensorRT for RTX" if first.flavour == "rtx" else "TensorRT"
    if checked:
        console.print(f"all {len(report.graphs)} graphs build with {flavour} {first.version}; nothing was kept")
        return
    for row in report.selftest:
        if row.unusual:
            console.print(
                f"{row.graph}: '{row.output}' is off by {row.relative_l2:.1e}, within its tolerance of {row.tolerance:.1e} "
                f"but more than rounding explains ({row.usual:.1e}): compare --precision bf16 or another TensorRT"
            )
    worst = max((row.relative_l2 for row in report.selftest), default=None)
    tested = "not tested" if worst is None else f"tested on this GPU, largest relative error {worst:.1e}"
    console.print(f"{len(report.graphs)} plans of {flavour} {first.version} in {report.path}: {tested}")
