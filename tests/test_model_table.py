"""README's model table is what the registry and the recorded results make of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from samrt_export.registry import families

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/model_table.py: scripts are no package."""
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "benchmarks" / "model_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(table: str) -> dict[str, list[str]]:
    """Model -> the cells of its row."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {cells[1].strip("`"): cells for cells in lines[2:]}


def check(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["model_table.py", "--check"])
    script.main()


def test_the_readme_is_up_to_date(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails with the command that mends it."""
    check(script, monkeypatch)


def test_a_family_without_a_row_is_noticed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    more = families() | {"new": replace(families()["edgetam"], name="new", models=("new-model",))}
    monkeypatch.setattr(script, "families", lambda: more)
    with pytest.raises(SystemExit, match=r"stale; python benchmarks/model_table\.py rewrites it"):
        check(script, monkeypatch)


def test_every_model_but_the_toys_has_a_row(script: ModuleType) -> None:
    table = rows(script.section(families().values(), {}))
    order = [family.name for family in families().values()]
    assert [cells[0] for cells in table.values()] == sorted((cells[0] for cells in table.values()), key=order.index)
    known = [model for family in families().values() for model in family.models]
    assert list(table) == [model for model in known if not model.endswith("-toy")]
    assert len(table) < len(known)
    assert table["edgetam"][2] == "points, boxes, masks, multimask, video"
    assert all(cells[3:] == ["-"] * 5 for cells in table.values())  # nothing measured, nothing claimed


def test_figures_are_those_of_the_result_files(script: ModuleType, tmp_path: Path) -> None:
    """The worst error of any file counts, and the newest build; an old file alone is enough for a cell."""
    parity: list[dict[str, object]] = [
        {"model": "edgetam", "worst_relative_l2": 2e-6},
        {"model": "sam2-hiera-tiny", "worst_relative_l2": 3e-6},
        {"model": "sam2-hiera-tiny", "precision": "fp16", "worst_relative_l2": 2e-3},
        {"model": "sam2-hiera-tiny", "precision": "bf16", "worst_relative_l2": 2e-2},
    ]
    (tmp_path / "full_size_parity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in parity))
    old = {"precision": "fp16", "sm": "86", "attentions": 5, "may_split": 1}
    builds = [{"model": "edgetam"} | old, {"model": "nano"} | old, {"model": "nano"} | old | {"sm": "89"}]
    (tmp_path / "rtx_builds.json").write_text(json.dumps({"rows": builds}))
    graphs = {"a": {"attentions": 4, "decomposable": 1}, "b": {"attentions": 3, "decomposable": 0}}
    timing = {
        "threads": 1,
        "encoder": [
            {"contender": "pytorch", "cpu_ms": 4000.0, "times_as_fast_cpu": 1.0},
            {"contender": "onnxruntime fp32", "cpu_ms": 1600.0, "times_as_fast_cpu": 2.5},
            {"contender": "openvino fp32", "cpu_ms": 1270.0, "times_as_fast_cpu": 3.21},
            {"contender": "openvino bf16", "cpu_ms": 500.0, "times_as_fast_cpu": 8.0},
        ],
    }
    row = {
        "model": "edgetam",
        "fp32": {"export": {"worst_relative_l2": 1e-6}, "timing": timing, "machine": {"cpu": "EPYC"}},
        "fp16": {"export": {"worst_relative_l2": 1.24e-3}, "rtx": {"graphs": graphs}},
    }
    (tmp_path / "sam_family.json").write_text(json.dumps({"rows": [row]}))
    text = script.section(families().values(), script.read_results(tmp_path))
    table = rows(text)
    assert table["edgetam"][3:] == ["2.0e-6", "1.2e-3", "1.3 s", "3.2, bf16 8.0", "builds, 6 of 7 fused"]
    assert table["sam2-hiera-tiny"][3:] == ["3.0e-6", "2.0e-3", "-", "-", "-"]
    assert table["nano"][3:] == ["-", "-", "-", "-", "builds, 4 of 5 fused"]
    assert "1 thread of an EPYC. At one" in text


def test_several_threads_are_compared_by_the_clock(script: ModuleType) -> None:
    row = {"contender": "openvino fp32", "cpu_ms": 900.0, "median_ms": 480.0, "times_as_fast": 3.0}
    found = script.Measured(encoder=[row | {"times_as_fast_cpu": 2.0}], threads=2)
    assert found.speed() == ("480 ms", "3.0")


def test_a_build_that_fails_is_not_a_build(script: ModuleType) -> None:
    build = script.Build()
    build.add({"attentions": 2, "may_split": 0}, "may_split")
    build.add({"failed": "no kernel"}, "may_split")
    assert build.cell() == "fails"


@pytest.mark.parametrize(
    "text", ["no markers", "<!-- /models --> <!-- models -->", "<!-- models --> <!-- models --> <!-- /models -->"]
)
def test_a_readme_without_the_markers_says_so(script: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match="once each, in this order"):
        script.with_table(text, "table")


def test_only_what_stands_between_the_markers_changes(script: ModuleType) -> None:
    old = "before\n<!-- models -->\nold\n<!-- /models -->\nafter | with a line\n"
    new = script.with_table(old, "table")
    assert new == "before\n<!-- models -->\ntable\n<!-- /models -->\nafter | with a line\n"
    assert script.with_table(new, "table") == new
