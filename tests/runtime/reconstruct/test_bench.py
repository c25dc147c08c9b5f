"""What is measured of a model that makes 3D."""

from pathlib import Path

import numpy as np
import pytest

from samrt.bench import reconstruct as bench
from samrt.bundle import open_bundle
from samrt.sparse import SparseMaps
from samrt.surface import CubeField
from samrt_engines.errors import BackendError, BundleError, InputError

from .doubles import GRID, NUMBERS


def test_a_shell_has_as_many_voxels_as_asked_around_its_sphere() -> None:
    coords = bench.shell(32, 3000)
    assert (coords.shape, coords.dtype) == ((3000, 3), np.int32)
    assert coords.tolist() == sorted(coords.tolist())
    distance = np.abs(np.linalg.norm(coords + 0.5 - 16, axis=1) - bench.SPHERE * 32)
    everywhere = np.abs(np.linalg.norm(np.indices((32,) * 3).reshape(3, -1).T + 0.5 - 16, axis=1) - bench.SPHERE * 32)
    assert distance.max() <= np.sort(everywhere)[2999] + 1e-9
    with pytest.raises(InputError, match=r"no such number of voxels.*got: 40000.*expected: 1 to 16384"):
        bench.shell(32, 40000)


def test_the_shells_field_is_its_sphere() -> None:
    coords = bench.shell(GRID, 700)
    field = CubeField(coords, bench.sphere_sdf(coords, NUMBERS), resolution=NUMBERS.mesh.resolution)
    count = len(field.rows)
    mesh = field.extract(*(np.zeros((count, *shape), np.float32) for shape in ((8, 3), (21,), (8, 6))))
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert np.median(np.abs(radius - bench.SPHERE)) < 1e-3


def test_a_flow_runs_as_often_as_its_schedule_says() -> None:
    assert bench.schedule_runs(NUMBERS, "ss_flow") == (6, 5)
    assert bench.schedule_runs(NUMBERS, "slat_flow") == (4, 3)
    assert bench.schedule_runs(NUMBERS, "slat_gs") == (1, 0)


def test_stages_are_fed_the_maps_of_one_object(ball: Path) -> None:
    graph = open_bundle(ball).manifest.graphs["slat_flow"]
    coords = bench.shell(GRID, 300)
    feeds = bench.made_up_feeds(graph, NUMBERS, coords)
    maps = SparseMaps.from_coords(coords, grid=GRID)
    assert list(feeds) == [spec.name for spec in graph.inputs]
    for name in ("neighbours", "coarse_neighbours", "children", "children_inverse", "parents", "coarse_coords"):
        np.testing.assert_array_equal(feeds[name], getattr(maps, name))
    assert feeds["slat"].shape == (300, 8)
    assert feeds["slat_condition"].shape == (1, 4, 3)
    assert feeds["slat"].std() > 0
    free = bench.unconditioned(feeds)
    assert free["slat_condition"].shape == (1, 1, 3)
    assert not free["slat_condition"].any()
    assert free["slat"] is feeds["slat"]


def test_every_stage_is_measured_in_a_process_of_its_own(ball: Path) -> None:
    told = []
    report = bench.bench_reconstruction(
        ball,
        voxels=600,
        runs=1,
        device="cpu",
        threads=1,
        graphs=["slat_flow", "slat_mesh_up"],
        progress=lambda *step: told.append(step),
    )
    costs = {cost.name: cost for cost in report.stages}
    assert list(costs) == ["slat_flow", "slat_mesh_up", "index maps", "surface"]
    assert told[0] == ("slat_flow", 0, 4)
    assert told[-1] == ("done", 4, 4)
    maps = SparseMaps.from_coords(bench.shell(GRID, 600), grid=GRID)
    assert (report.voxels, report.coarse) == (600, len(maps.coarse_coords))
    flow, up = costs["slat_flow"], costs["slat_mesh_up"]
    assert flow.runs == 7
    assert flow.total_s == pytest.approx(4 * flow.run_s + 3 * flow.free_run_s)
    assert flow.weights_mib == pytest.approx((ball / "slat_flow.onnx").stat().st_size / 2**20)
    assert up.index_maps_mib == pytest.approx(maps.neighbours.nbytes / 2**20)
    assert up.provider == "CPUExecutionProvider"
    if up.peak_mib is not None:
        outputs = 600 * 64 * (8 + 4) * 4 / 2**20
        assert outputs < up.activations_mib < 100
        assert report.staged_peak_mib == max(cost.peak_mib for cost in report.stages)
    assert report.total_s == pytest.approx(sum(cost.total_s + cost.load_s for cost in report.stages))
    page = bench.to_text(report)
    assert "# ball" in page
    assert "| slat_flow | 7 | " in page
    assert page.count("\n| ") == 2 + len(report.stages)
    document = report.to_json()
    assert document["stages"][1]["peak_mib"] == up.peak_mib


def test_what_cannot_be_measured_is_refused(ball: Path, bundle_path: Path) -> None:
    with pytest.raises(BundleError, match="makes no 3D"):
        bench.bench_reconstruction(bundle_path)
    with pytest.raises(InputError, match="no such number of voxels"):
        bench.bench_reconstruction(ball, voxels=0)
    request = {"bundle": str(ball), "stage": "slat_flow", "voxels": 5, "runs": 1, "backend": "auto", "device": "cpu"}
    with pytest.raises(BackendError, match=r"slat_flow does not run in a fresh process.*got: TensorError.*8 to 2500"):
        bench.measure_stage({**request, "threads": 1})
