"""The demo leaves what it promises."""

from __future__ import annotations

import json

import PIL.Image

from samrt.assets import read_glb
from samrt_export.demo import DemoReport


def test_the_demo_leaves_pictures_and_a_report(demo: DemoReport) -> None:
    report, out = demo, demo.out
    assert report.verify.ok
    assert {shot.name for shot in report.shots} == {"click", "box", "many", "corrected", "mask", "points"}
    for shot in report.shots:
        assert shot.iou > 0.75, shot.caption
        with PIL.Image.open(out / f"{shot.name}.png") as picture:
            assert picture.size == (512, 512)
    with PIL.Image.open(out / "demo.png") as sheet:
        assert sheet.width > 1000
    written = json.loads((out / "report.json").read_text())
    assert written["verify"]["ok"]
    assert [shot["name"] for shot in written["shots"]] == [shot.name for shot in report.shots]
    assert "demo.png" in (out / "report.md").read_text()
    assert "demo.png" in report.summary()
    assert report.everything.iou > 0.9
    assert report.everything.masks < 2 * report.everything.things
    assert len(json.loads((out / "everything.json").read_text())["annotations"]) > 3
    with PIL.Image.open(out / "everything.png") as sheet:
        assert sheet.width > 1000
    assert report.export_3d.path == out / "bundle-3d"
    assert [row["kind"] for row in written["objects"]] == [solid.kind for solid in report.solids]
    for solid in report.solids:
        assert solid.silhouette_iou > 0.85, solid
        assert solid.mesh.chamfer < 0.4, solid
        assert solid.mesh.colour < 0.12, solid
        mesh = read_glb(out / solid.mesh_file)
        assert len(mesh.faces) == solid.faces
        assert (out / solid.gaussians_file).stat().st_size > 68 * solid.gaussians
    with PIL.Image.open(out / "reconstruct.png") as sheet:
        assert sheet.width > 1000
