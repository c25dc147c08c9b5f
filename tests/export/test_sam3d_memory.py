"""The memory of the decoders on ONNX Runtime's CPU grows with the voxels and not faster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sam3d_toy import toy_spec

from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.precision.narrow import choose

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sam3d_memory.py"
RECORD = SCRIPT.parent / "results" / "sam3d_memory.json"
MIB = 2**20


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    for name in ("slat_gs", "slat_mesh_trunk", "slat_mesh_up", "slat_mesh_attr"):
        spec = toy_spec(name)
        model = onnx_from_spec(spec, choose(spec, "onnxruntime-cpu").module)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return folder


def peak_mib(graphs: Path, decoder: str, voxels: int) -> float:
    """Measured by a process of its own, as the benchmark does."""
    task = {"graphs": str(graphs), "grid": 64, "decoder": decoder, "voxels": voxels}
    command = [sys.executable, str(SCRIPT), "--child", json.dumps(task)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(made.stdout)["peak_mib"])


def test_the_peak_of_the_mesh_decoder_is_a_few_times_its_result(graphs: Path) -> None:
    voxels = 8000
    result = 64 * voxels * 32 * 4 / MIB  # cube_features
    peak = peak_mib(graphs, "mesh", voxels)
    assert result < peak < 8 * result  # 27 taps of it would be 27 times


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["gaussians", "mesh"])
def test_the_peak_is_linear_in_the_voxels(graphs: Path, decoder: str) -> None:
    few, some, many = (peak_mib(graphs, decoder, voxels) for voxels in (5000, 10000, 20000))
    assert (many - some) / (some - few) == pytest.approx(2, rel=0.25)


def test_the_recorded_peaks_at_full_size_are_within_their_bars() -> None:
    rows = json.loads(RECORD.read_text())["rows"]
    full = {
        row["decoder"]: row["peak_mib"] for row in rows if row["model"] == "sam3d-objects" and row["voxels"] == 27000
    }
    assert full["gaussians"] * MIB <= 2e9
    assert full["mesh"] * MIB <= 5e9
