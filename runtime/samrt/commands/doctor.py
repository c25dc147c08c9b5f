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
from samrt_engines.backends import BackendInfo, available_backends, cuda_device_count
from samrt_engines.choice import Decision, DecisionStore
from samrt_engines.errors import BackendError, pip_line
from samrt_engines.tensorrt import open_cuda

EXTRAS = {
    "export": ("torch", "to export and verify models"),
    "video": ("av", "to read and write video files"),
    "bench": ("matplotlib", "for the plots of samrt bench"),
}
"""Extra -> the package that shows whether it is installed, and what it is for."""
GPU_BACKENDS = ("tensorrt",)
"""Backends that are of no use without an NVIDIA GPU."""


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
    """The machine, the backends and the extras, in plain JSON values. A fix stands only where it helps this machine."""
    gpus = cuda_device_count()
    return {
        "samrt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpus": _gpus(gpus),
        "backends": [_backend(backend, gpus) for backend in available_backends()],
        "choices": [_choice(decision) for decision in DecisionStore().all()],
        "extras": [
            {"name": name, "installed": found, "purpose": purpose, "fix": None if found else pip_line(name)}
            for name, (package, purpose) in EXTRAS.items()
            for found in (_is_installed(package),)
        ],
    }


def _backend(backend: BackendInfo, gpus: int) -> dict[str, Any]:
    """A backend in plain JSON values; one that only a GPU could use is no problem to mend where none is."""
    entry = asdict(backend)
    if backend.name in GPU_BACKENDS and not gpus:
        problem = "of no use here: no NVIDIA GPU answers" if backend.version is None else backend.problem
        entry |= {"problem": problem, "fix": None}
    return entry


def _gpus(count: int) -> list[dict[str, Any]]:
    """What CUDA says of each GPU; only the error where it says nothing."""
    found: list[dict[str, Any]] = []
    for index in range(count):
        try:
            found.append(asdict(open_cuda(index).describe()))
        except BackendError as error:
            found.append({"index": index, "problem": str(error)})
    return found


def _gpu_text(gpu: dict[str, Any]) -> str:
    memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
    return f"{gpu['name']}, compute capability {gpu['capability']}, {memory}, driver for CUDA {gpu['driver']}"


def _choice(decision: Decision) -> dict[str, Any]:
    """What "auto" chose for a graph on this machine, and how fast the others were."""
    return {
        "graph": decision.graph,
        "chosen": decision.chosen,
        "ms": {name: round(seconds * 1e3, 2) for name, seconds in decision.seconds.items()},
        "refused": dict(decision.refused),
        "context": dict(decision.context),
    }


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a package that was imported in an unusual way has no spec
        return False


def _print(document: dict[str, Any]) -> None:
    console = Console()
    console.print(f"samrt {document['samrt']}, Python {document['python']}, numpy {document['numpy']}")
    console.print(f"{document['cpu']}, {document['cores']} cores, {len(document['gpus']) or 'no'} NVIDIA GPU")
    for gpu in document["gpus"]:
        console.print(f"cuda:{gpu['index']}: {gpu.get('problem') or _gpu_text(gpu)}")
    table = Table("what", "state", "fix")
    for backend in document["backends"]:
        state = ": ".join(filter(None, (backend["version"], ", ".join(backend["providers"])))) or "not available"
        problem, fix = backend["problem"], backend["fix"]
        style = "yellow" if fix else "dim" if problem else "green"
        table.add_row(backend["name"], Text(f"{state}; {problem}" if problem else state, style), Text(fix or ""))
    table.add_section()
    for extra in document["extras"]:
        installed = Text("installed", "green") if extra["installed"] else Text("not installed", "dim")
        table.add_row(
            f"extra {extra['name']}", installed, Text(f"{extra['fix']}\n{extra['purpose']}" if extra["fix"] else "")
        )
    console.print(table)
    for choice in document["choices"]:
        times = ", ".join(f"{name} {ms:g} ms" for name, ms in choice["ms"].items())
        refused = "".join(f"; {name} refused: {reason}" for name, reason in choice["refused"].items())
        console.print(Text(f"auto runs {choice['graph']} on {choice['chosen']} ({times}{refused})", "dim"))
