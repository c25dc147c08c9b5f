"""``samrt bench``: latency and memory of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from samrt.bench import bench as measure
from samrt.commands.output import print_json, progress_bar, write_whole
from samrt.images import read_image
from samrt_engines.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    image: Annotated[Path | None, typer.Option(help="Picture to measure with; made up when left out.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Measure beside: pytorch.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights for the reference, where needed.")] = None,
    runs: Annotated[int, typer.Option(min=5, help="Timed runs of every task.")] = 50,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Report: .json or .md.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure latency (p50, p95, p99) per graph and end to end, load time and peak memory.

    samrt bench bundles/nano --against pytorch -o report.md
    """
    if out is not None and out.suffix not in (".json", ".md"):
        raise InputError("unknown kind of report", got=repr(out.name), expected="a name ending in .json or .md")
    picture = None if image is None else read_image(image)
    with progress_bar("bench") as progress:
        report = measure(
            bundle,
            image=picture,
            against=against or (),
            checkpoint=checkpoint,
            runs=runs,
            threads=threads,
            progress=progress,
        )
    if out is not None:
        text = report.to_markdown() if out.suffix == ".md" else json.dumps(report.to_json(), indent=1) + "\n"
        write_whole(out, text.encode())
    if json_output:
        print_json(report.to_json())
    else:
        Console().print(Markdown(report.to_markdown()))
