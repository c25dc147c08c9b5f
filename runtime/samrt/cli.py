"""The command line. Each command parses, calls one public function and prints.

Exit codes: 0 done; 1 a check failed (a verify miss); 2 a usage error, or any error of samrt's own, printed with its parts.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

import typer
from rich.console import Console
from rich.text import Text

from samrt.commands import bench, build, doctor, downsample, everything, info, reconstruct, segment, track
from samrt_engines.errors import MissingExtraError, SamrtError

EXPORT_COMMANDS = ("export", "verify", "models", "demo")
"""Commands of the exporter; where its folder is not installed at all, they say how to install it."""

app = typer.Typer(
    name="samrt",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Segment-Anything models from checkpoint to masks: export, verify, run without PyTorch, measure.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong usage or input. SAMRT_TRACEBACK=1 shows tracebacks.",
)


def build_app() -> typer.Typer:
    """The application with the runtime's commands, and those of every installed entry point ``samrt.commands``."""
    if not app.registered_commands:
        for entry in entry_points(group="samrt.commands"):
            entry.load()(app)
        known = {command.name for command in app.registered_commands}
        for name in EXPORT_COMMANDS:
            if name not in known:
                _add_missing(name)
        for module in (segment, everything, track, reconstruct, downsample, info, build, bench, doctor):
            module.register(app)
    return app


def main() -> None:
    """Entry point of the ``samrt`` program."""
    try:
        build_app()()
    except SamrtError as error:
        if os.environ.get("SAMRT_TRACEBACK"):
            raise
        print_error(error)
        sys.exit(2)


def print_error(error: SamrtError) -> None:
    """One error on stderr: what failed in red, then what was found, what was expected, what mends it."""
    console = Console(stderr=True)
    console.print(Text("error: ", "bold red") + Text(error.what), soft_wrap=True)
    for name, text in (("got", error.got), ("expected", error.expected), ("fix", error.fix)):
        if text is not None:
            console.print(Text(f"  {name}: ", "bold") + Text(text), soft_wrap=True)


def _add_missing(name: str) -> None:
    """A command that only says how to install it."""

    @app.command(
        name,
        help="Comes with the export extra, which is not installed.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def missing() -> None:
        raise MissingExtraError.for_package("samrt_export", extra="export", purpose=f"for samrt {name}")
