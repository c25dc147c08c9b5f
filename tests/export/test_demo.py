"""The demo leaves what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image

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
