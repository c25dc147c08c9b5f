"""The demo leaves what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image

from samrt.assets import read_glb
from samrt_export.demo import run_demo


def test_the_demo_leaves_pictures_and_a_report(tmp_path: Path) -> None:
    report = run_demo(tmp_path)
    assert report.verify.ok
    assert {shot.name for shot in report.shots} == {"click", "box", "many", "corrected", "mask", "points"}
    for shot in report.shots:
        assert shot.iou > 0.75, shot.caption
        with PIL.Image.open(tmp_path / f"{shot.name}.png") as picture:
            assert picture.size == (512, 512)
    with PIL.Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 1000
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["verify"]["ok"]
    assert [shot["name"] for shot in written["shots"]] == [shot.name for shot in report.shots]
    assert "demo.png" in (tmp_path / "report.md").read_text()
    assert "demo.png" in report.summary()
    assert report.export_3d.path == tmp_path / "bundle-3d"
    assert [row["kind"] for row in written["objects"]] == [solid.kind for solid in report.solids]
    for solid in report.solids:
        assert solid.silhouette_iou > 0.85, solid
        assert solid.mesh.chamfer < 0.4, solid
        assert solid.mesh.colour < 0.12, solid
        mesh = read_glb(tmp_path / solid.mesh_file)
        assert len(mesh.faces) == solid.faces
        assert (tmp_path / solid.gaussians_file).stat().st_size > 68 * solid.gaussians
    with PIL.Image.open(tmp_path / "reconstruct.png") as sheet:
        assert sheet.width > 1000
