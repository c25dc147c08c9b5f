"""The house rules that no single module can see: who imports whom, what an import costs, what the metadata promises."""

import json
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(path for floor in ("engines", "runtime", "export") for path in (ROOT / floor).rglob("*.py"))

LOADED = """
import json, sys, time
before = set(sys.modules)
start = time.process_time()
import {module}
seconds = time.process_time() - start
print(json.dumps({{"seconds": seconds, "modules": sorted(set(sys.modules) - before)}}))
"""


def import_fresh(module: str) -> dict[str, Any]:
    """What a fresh process loads to import a module, and the processor time that takes."""
    command = [sys.executable, "-c", LOADED.format(module=module)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def packages(modules: list[str]) -> set[str]:
    """Top-level names, without the standard library and what editable installs leave in sys.modules."""
    names = {module.partition(".")[0] for module in modules}
    return {name for name in names - sys.stdlib_module_names if not name.startswith("__editable__")}


def test_imports_go_down_only() -> None:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", script, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", result.stdout)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("samrt_engines", {"samrt_engines", "numpy"}),
        ("samrt", {"samrt", "samrt_engines", "numpy", "PIL"}),
    ],
)
def test_an_import_loads_nothing_heavy(module: str, allowed: set[str]) -> None:
    """Neither torch, onnx, transformers nor onnxruntime, and no typer or rich: those belong to the command line."""
    numpy_loads = packages(import_fresh("numpy")["modules"])
    assert packages(import_fresh(module)["modules"]) - numpy_loads <= allowed


def test_an_import_costs_little_more_than_numpys() -> None:
    """The bar is 0.3 s on a quiet machine, where numpy takes about 0.1 s and samrt, numpy included, twice that.

    A ratio of processor times, so that a busy machine passes too; and the part that most never need is not loaded.
    """
    pairs = [(import_fresh("samrt"), import_fresh("numpy")) for _ in range(5)]
    assert statistics.median(ours["seconds"] / numpys["seconds"] for ours, numpys in pairs) < 3.5
    assert not {"samrt.video", "samrt.media"} & set(pairs[0][0]["modules"])


def test_video_is_imported_when_it_is_first_named() -> None:
    import samrt

    for name in samrt.__all__:
        assert getattr(samrt, name) is not None
    assert samrt.VideoTracker is samrt.video.VideoTracker
    assert set(samrt.__all__) <= set(dir(samrt))
    with pytest.raises(AttributeError, match="VideoTracer"):
        samrt.VideoTracer  # noqa: B018


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pip_lines_name_extras_that_exist(path: Path) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    source = path.read_text()
    named = re.findall(r"samrt\[([a-z,]+)\]", source) + re.findall(r"extra=\"(\w+)\"|pip_line\(\"(\w+)\"\)", source)
    flat = {
        extra for group in named for part in ([group] if isinstance(group, str) else group) for extra in part.split(",")
    }
    assert flat - {""} <= extras.keys()


def test_every_floor_is_typed_and_installed() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for floor in PROJECT["tool"]["setuptools"]["packages"]["find"]["where"]:
        (package,) = (path for path in (ROOT / floor).iterdir() if path.is_dir() and path.name.startswith("samrt"))
        assert (package / "__init__.py").is_file()
        assert (package / "py.typed").is_file()
        assert "py.typed" in data[package.name]
        assert package.name in PROJECT["tool"]["mypy"]["packages"]


def test_one_version() -> None:
    import samrt

    assert samrt.__version__ == PROJECT["project"]["version"]
    assert f"## [{samrt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_pin_keeps_its_promise() -> None:
    """constraints.txt pins each package of the extras that `make` installs, and PyTorch to one exact version."""
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    project = PROJECT["project"]
    extras = [project["optional-dependencies"][extra] for extra in ("cpu", "export", "bench", "dev")]
    wanted = {
        re.split(r"[>=<\[ ]", requirement)[0].lower().replace("_", "-")
        for requirement in sum(extras, project["dependencies"])
    }
    assert wanted <= pins.keys()
    assert pins["torch"] == "2.13.0"


def test_the_exporters_commands_come_through_an_entry_point() -> None:
    """Installed or not, the metadata and the module agree."""
    declared = PROJECT["project"]["entry-points"]["samrt.commands"]
    assert declared == {"export": "samrt_export.cli:register"}
    assert {entry.name: entry.value for entry in entry_points(group="samrt.commands")} in (declared, {})
