"""``samrt doctor``: what this machine can run, and what to install."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samrt import __version__
from samrt.commands.output import print_json
from samrt.machine import cpu_name, usable_cores
from samrt_engines.backends import available_backends, cuda_device_count
from samrt_engines.errors import pip_line

EXTRAS = {"export": "torch", "video": "av", "bench": "matplotlib", "openvino": "openvino"}
"""Extra -> the package that shows whether it is installed."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what this machine can run: backends, providers, GPU, extras; and the command that mends what is missing."""
    document = diagnose()
    if json_output:
        print_json(document)
    else:
        _print(document)


def diagnose() -> dict[str, Any]:
    """The machine, the backends and the extras, in plain JSON values."""
    return {
        "samrt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpus": cuda_device_count(),
        "backends": [asdict(backend) for backend in available_backends()],
        "extras": [
            {"name": name, "installed": found, "fix": None if found else pip_line(name)}
            for name, package in EXTRAS.items()
            for found in (find_spec(package) is not None,)
        ],
    }


def _print(document: dict[str, Any]) -> None:
    console = Console()
    console.print(f"samrt {document['samrt']}, Python {document['python']}, numpy {document['numpy']}")
    console.print(f"{document['cpu']}, {document['cores']} cores, {document['gpus'] or 'no'} NVIDIA GPU")
    table = Table("what", "state", "fix")
    for backend in document["backends"]:
        state = f"{backend['version']}: {', '.join(backend['providers'])}" if backend["version"] else "not installed"
        ok = not backend["problem"]
        table.add_row(
            backend["name"],
            Text(state if ok else f"{state}; {backend['problem']}", "green" if ok else "yellow"),
            Text(backend["fix"] or ""),
        )
    table.add_section()
    for extra in document["extras"]:
        installed = Text("installed", "green") if extra["installed"] else Text("not installed", "dim")
        table.add_row(f"extra {extra['name']}", installed, Text(extra["fix"] or ""))
    console.print(table)
