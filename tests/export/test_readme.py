"""The README's code runs and its commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

import samrt
from samrt.cli import build_app
from samrt_export.demo import DemoReport

README = (Path(__file__).parents[2] / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every ``samrt ...`` command line, in a block or between backticks, once each."""
    lines = [line.partition("#")[0] for block in code_blocks("bash") for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))
    found = [text.strip() for text in (*lines, *spans) if re.match(r"(\S*/)?samrt\s+[a-z]", text.strip())]
    return list(dict.fromkeys(found))


def known() -> dict[str, Any]:
    """Subcommand -> the command that really is there."""
    group: Any = typer.main.get_command(build_app())
    return dict(group.commands)


def options(command: str) -> Iterator[str]:
    """The option names a command line uses."""
    for word in shlex.split(command):
        if re.match(r"--?[A-Za-z]", word):
            yield word.partition("=")[0]


def unknown_parts(command: str) -> list[str]:
    """What a command line has that its subcommand does not know: the subcommand itself, or options."""
    name = shlex.split(command)[1]
    if name not in known():
        return [name]
    accepted = {opt for parameter in known()[name].params for opt in (*parameter.opts, *parameter.secondary_opts)}
    return [option for option in options(command) if option not in accepted | {"--help"}]


@pytest.fixture
def demo_folder(demo: DemoReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what ``make demo`` leaves."""
    (tmp_path / "demo-out").symlink_to(demo.out)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_runs(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks in their order, as one program: later ones use what earlier ones made."""
    blocks = code_blocks("python")
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    result = names["result"]
    assert isinstance(result, samrt.Result)
    assert result.masks.shape == (1, 1, 512, 512)
    printed = capsys.readouterr().out
    assert "(1, 1, 512, 512)" in printed
    assert printed.count("(1,) (1, 512, 512)") == 10  # frames of the clip
    assert (demo_folder / "object.glb").stat().st_size > 10_000
    assert isinstance(names["masks"], np.ndarray)
    assert names["masks"].shape == (1, 512, 512)


def test_commands_are_found() -> None:
    """A search that finds nothing would let everything pass."""
    assert len(commands()) >= 6
    assert {shlex.split(command)[1] for command in commands()} >= {
        "export",
        "verify",
        "segment",
        "track",
        "bench",
        "info",
    }


@pytest.mark.parametrize("command", commands())
def test_every_command_is_known(command: str) -> None:
    assert unknown_parts(command) == []


def test_an_unknown_command_would_be_noticed() -> None:
    assert unknown_parts("samrt fly bundles/tiny") == ["fly"]
    assert unknown_parts("samrt info bundles/tiny --loud -x") == ["--loud", "-x"]
    assert unknown_parts("samrt segment dog.jpg -b bundles/tiny --point 1,-2 -o dog.png") == []
