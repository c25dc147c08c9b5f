"""benchmarks/sam_family.py goes on where it stopped, and measures nothing twice unless it is told to."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sam_family.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Scripts are no package."""
    spec = importlib.util.spec_from_file_location("sam_family", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Steps:
    """Takes the place of the steps, each of which would take minutes; counts them, and fails where it is told to."""

    def __init__(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.fails: str | None = None
        self._error = script.StepError
        monkeypatch.setattr(script, "export", lambda model, precision, bundle, options: self.export(precision, bundle))
        for name in ("timing", "memory", "rtx_build"):
            monkeypatch.setattr(script, name, lambda bundle, _, name=name: self.step(name))

    def export(self, precision: str, bundle: Path) -> str:
        bundle.mkdir(parents=True)
        return self.step(f"export {precision}")

    def step(self, name: str) -> str:
        if name == self.fails:
            raise self._error(f"{name}: exit code 1")
        self.done.append(name)
        return f"{name} {len(self.done)}"


@pytest.fixture
def steps(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(script, monkeypatch)


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the script on one model; its row."""
    options = [*arguments, "--work", str(folder / "work"), "--out", str(folder / "out.json")]
    monkeypatch.setattr(sys, "argv", ["sam_family.py", *options])
    script.main()
    assert list((folder / "work").glob("*/*")) == []  # nothing is left on the disk
    rows = json.loads((folder / "out.json").read_text())["rows"]
    return {row["model"]: row for row in rows}[arguments[0]]


def test_a_run_that_failed_is_taken_up(
    script: ModuleType, steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both = ("edgetam", "--precisions", "fp32", "fp16")
    steps.fails = "memory"
    row = run(script, monkeypatch, tmp_path, *both)
    assert row["failed"] == ["memory: exit code 1"]
    assert row["fp32"].keys() == {"export", "timing", "machine"}
    steps.fails = None
    row = run(script, monkeypatch, tmp_path, *both)
    assert "failed" not in row
    assert steps.done == ["export fp32", "timing", "export fp32", "memory", "export fp16", "rtx_build"]
    assert row["fp32"]["export"] == "export fp32 1"  # as it was recorded with the times
    run(script, monkeypatch, tmp_path, *both)
    assert len(steps.done) == 6


def test_again_replaces_what_it_measures_and_nothing_else(
    script: ModuleType, steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(script, monkeypatch, tmp_path, "nano")
    old = run(script, monkeypatch, tmp_path, "edgetam", "--precisions", "fp32", "fp16")
    new = run(script, monkeypatch, tmp_path, "edgetam", "--precisions", "fp16", "--again")
    assert new["fp32"] == old["fp32"]
    assert new["fp16"]["rtx"] != old["fp16"]["rtx"]
    assert [row["model"] for row in script.read_rows(tmp_path / "out.json")] == ["nano", "edgetam"]


def test_a_step_that_fails_says_why(script: ModuleType) -> None:
    with pytest.raises(script.StepError, match=r"exit code 2.*it was full"):
        script.run(["-c", "print('it was full'); raise SystemExit(2)"])
    peak_mib, printed = script.run(["-c", "block = bytearray(64 << 20); print(len(block))"])
    assert printed == f"{64 << 20}\n"
    assert (
        peak_mib > 64
    )  # and what this process had when it forked, which Linux counts in: nothing in the script itself
