"""The benchmark: what it measures, compares and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import samrt.bench
from samrt import BackendError
from samrt.bench import bench
from samrt.cli import build_app


class Slow:
    """A reference that is the bundle itself, off by a thousandth and after a nap."""

    def __init__(self, bundle: Path) -> None:
        self.model = samrt.load(bundle, threads=1)

    def run_graph(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import time

        time.sleep(0.01)
        return {key: value * np.float32(1.001) for key, value in self.model.executors[name].run(feeds).items()}

    def close(self) -> None:
        self.model.close()


def test_rows_times_and_memory(bundle_path: Path, picture: np.ndarray) -> None:
    report = bench(bundle_path, image=picture, runs=6, threads=1)
    assert [row.task for row in report.rows][:3] == ["image_encoder", "prompt_encoder", "mask_decoder"]
    for row in report.rows:
        assert row.runs == 6
        assert 0 < row.min_ms <= row.p50_ms <= row.p95_ms <= row.p99_ms
        assert row.ran_on == "CPUExecutionProvider"
    assert report.memory["peak_rss_mib"] > 10
    assert report.memory["first_mask_s"] >= report.memory["load_s"] > 0
    assert report.image_hw == (48, 64)


def test_a_reference_is_compared_and_timed(
    bundle_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrt.bench, "_open_reference", lambda name, bundle, checkpoint, threads: Slow(bundle))
    report = bench(bundle_path, image=picture, against=["slow"], runs=6, threads=1)
    rows = [row for row in report.rows if row.contender == "slow"]
    assert len(rows) == 3
    for row in rows:
        assert row.p50_ms >= 10
        assert row.ratio is not None
        assert row.ratio > 1
        assert row.relative_l2 == pytest.approx(1e-3, rel=0.05)
    assert "slow, fp32 on cpu" in report.to_markdown()


def test_an_unknown_reference_is_refused(bundle_path: Path) -> None:
    with pytest.raises(BackendError, match="unknown reference"):
        bench(bundle_path, against=["abacus"])


def test_the_command_writes_its_report(bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    result = CliRunner().invoke(build_app(), ["bench", str(bundle_path), "--runs", "5", "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(out.read_text())
    assert json.loads(out.read_text())["machine"]["cores"] >= 1
