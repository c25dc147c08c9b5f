"""The exporter's commands. Light to import: PyTorch is loaded by the command that needs it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import quoteattr

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samrt.commands.output import print_json, progress_bar, write_whole
from samrt_engines.errors import MissingExtraError

TO_EXPORT = ("torch", "onnx", "onnxscript", "safetensors")
"""Packages of the export extra that exporting takes. The commands come with samrt itself, installed or not."""
TO_COMPARE = ("torch", "safetensors")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export")(export)
    app.command("verify")(verify)
    app.command("models")(models)
    app.command("demo")(demo)


def require_packages(command: str, packages: tuple[str, ...]) -> None:
    """Import packages of the export extra. Raises MissingExtraError for one that is missing or broken."""
    for package in packages:
        try:
            import_module(package)
        except (ImportError, OSError) as error:  # OSError: a library of its own is missing
            raise MissingExtraError.for_package(
                package, extra="export", purpose=f"for samrt {command}", got=str(error)
            ) from error


def export(
    model: Annotated[str, typer.Argument(help="A model of `samrt models`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the bundle goes.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Official .pt, or safetensors in either layout; the official folder of a model of several."),
    ] = None,
    hub: Annotated[str | None, typer.Option(help="Model id on the Hugging Face hub.")] = None,
    random_weights: Annotated[int | None, typer.Option(metavar="SEED", help="Live random weights.")] = None,
    toy: Annotated[bool, typer.Option("--toy", help="The small model of the same make: MODEL-toy.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16 (for GPUs), int8 (for CPUs).")] = "fp32",
    target: Annotated[
        list[str] | None,
        typer.Option(help="Only for these: onnxruntime-cpu, openvino, onnxruntime-cuda, tensorrt. Repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a model to a bundle, every graph compared with PyTorch before it gets its name.

    samrt export sam2.1-hiera-tiny --checkpoint sam2.1_hiera_tiny.pt -o bundles/tiny
    """
    require_packages("export", TO_EXPORT)
    from samrt_export.export import export_model

    model = f"{model}-toy" if toy else model
    with progress_bar(f"export {model}") as progress:
        report = export_model(
            model,
            out,
            checkpoint=checkpoint,
            hub=hub,
            random_seed=random_weights,
            precision=precision,
            targets=tuple(target) if target else None,
            overwrite=overwrite,
            progress=progress,
        )
    worst = max(row.relative_l2 for row in report.parity)
    if json_output:
        rows = [row.to_json() for row in report.parity]
        print_json({"path": str(report.path), "model": model, "seconds": report.seconds, "parity": rows})
        return
    print(f"{model} -> {report.path} in {report.seconds:.0f} s; largest relative error against PyTorch {worst:.1e}")
    print(f"next: samrt info {report.path}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    checkpoint: Annotated[Path | None, typer.Option(help="The file the bundle was made from.")] = None,
    masks: Annotated[
        int, typer.Option(min=0, max=500, help="nano: also compare narrow masks with fp32's on N held-out pictures.")
    ] = 0,
    clips: Annotated[
        int, typer.Option(min=0, max=50, help="nano: the same through N held-out clips of 300 frames.")
    ] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML report.")] = None,
) -> None:
    """Compare every graph of a bundle with PyTorch. Exits with 1 on a miss.

    samrt verify bundles/tiny --checkpoint sam2.1_hiera_tiny.pt
    """
    require_packages("verify", TO_COMPARE)
    from samrt_export.parity import ParityRow
    from samrt_export.verify import VerifyReport, verify_bundle

    def print_table(report: VerifyReport) -> None:
        table = Table(
            "", "worst output", "error", "cosine", "changes", "", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        groups: dict[str, list[ParityRow]] = {}
        for row in report.rows:
            groups.setdefault(f"{row.graph}, {row.form}", []).append(row)
        for title, rows in groups.items():
            misses = [row for row in rows if not row.ok]
            for row in misses or [max(rows, key=lambda row: row.relative_l2)]:
                verdict = Text("ok", "green") if row.ok else Text("dead" if not row.is_alive else "MISS", "bold red")
                figures = (f"{row.relative_l2:.1e}", f"{row.cosine:.6f}", f"{row.alive:.2f}")
                table.add_row(title, row.output, *figures, verdict)
        console = Console()
        console.print(table)
        for one in report.masks:
            found = f"mean {one.mean:.5f}, smallest {one.smallest:.4f} over {one.prompts} prompts"
            console.print(f"{one.precision} masks against fp32: IoU {found}: {'ok' if one.ok else 'MISS'}")
        for track in report.tracks:
            found = f"mean {track.mean:.5f}, smallest of a frame {track.smallest_frame:.4f} over {track.clips} clips"
            drift = f"{track.slope:+.1e} per 100 frames, standard error {track.slope_error:.0e}"
            console.print(
                f"{track.precision} tracks against fp32: IoU {found}, {drift}: {'ok' if track.ok else 'MISS'}"
            )
        console.print(f"{report.model}: {'verified' if report.ok else 'NOT the model it was made from'}")

    with progress_bar("verify") as progress:
        report = verify_bundle(bundle, checkpoint=checkpoint, masks=masks, clips=clips, progress=progress)
    if junit is not None:
        cases = []
        for row in report.rows:
            name = f"{row.graph} {row.form} {row.output} {row.sizes}"
            problem = f"relative error {row.relative_l2:.2e}, tolerance {row.tolerance:.0e}, changes by {row.alive:.1e}"
            failure = "" if row.ok else f"<failure message={quoteattr(problem)}/>"
            cases.append(f"<testcase classname={quoteattr(report.model)} name={quoteattr(name)}>{failure}</testcase>")
        failed = sum(not row.ok for row in report.rows)
        suite = f'<testsuite name="samrt verify" tests="{len(cases)}" failures="{failed}">'
        write_whole(junit, f'<?xml version="1.0"?>\n{suite}{"".join(cases)}</testsuite>\n'.encode())
    if json_output:
        print_json(report.to_json())
    else:
        print_table(report)
    raise typer.Exit(0 if report.ok else 1)


def models(
    toys: Annotated[
        bool, typer.Option("--toys", help="Also those that `samrt export --toy` makes, for tests.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models samrt can export."""
    require_packages("models", ("torch",))
    from samrt_export.registry import families

    rows = [
        {
            "model": model,
            "family": family.name,
            "input": _input_px(family.numbers(model)),
            "abilities": list(family.abilities(model)),
            "licence": family.licence(model)[0],
            "weights": _weights(family.shipped_checkpoint(model), family.hub_id(model)),
        }
        for family in families().values()
        for model in family.models
        if toys or not model.endswith("-toy")
    ]
    if json_output:
        print_json(rows)
        return
    table = Table("model", "input", "licence", "weights, --hub", box=None, pad_edge=False)
    for row in rows:
        size = f"{row['input']} px" if row["input"] else "any"
        table.add_row(str(row["model"]), size, str(row["licence"]), str(row["weights"]).removeprefix("--hub "))
    Console().print(table)


def _input_px(numbers: Mapping[str, Any]) -> int | None:
    """Side of the square picture that a model's first graph takes; None where it takes any."""
    for kind in ("image", "proposals"):
        if kind in numbers:
            return int(numbers[kind]["size_hw"][0])
    return int(numbers["reconstruction"]["view_px"]) if "reconstruction" in numbers else None


def _weights(shipped: Path | None, hub_id: str | None) -> str:
    """Where a model's weights come from."""
    if shipped is not None:
        return "shipped"
    return f"--hub {hub_id}" if hub_id else "--checkpoint"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where pictures and report go.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Which pictures.")] = 0,
) -> None:
    """Export the shipped nano model, verify it, segment pictures in every way; leave PNGs and a report. Offline."""
    require_packages("demo", TO_EXPORT)
    from samrt_export.demo import run_demo

    with progress_bar("demo") as progress:
        report = run_demo(out, seed=seed, progress=progress)
    Console().print(report.summary())
