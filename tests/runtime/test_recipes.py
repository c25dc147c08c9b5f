"""The code of docs/recipes.md runs; packages that it shows and we do not need are stood in for."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import typer.main

import samrt
from samrt.cli import build_app

RECIPES = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", RECIPES, re.MULTILINE | re.DOTALL)


class Tensor:
    """As much of a torch tensor as is asked of it."""

    def __init__(self, values: Any):
        self.values = np.array(values, np.float32)

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.values


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


class Proposer:
    """A model that proposes the left half and all of a picture."""

    def __init__(self, path: str) -> None:
        assert path == "bundles/fast"

    def __enter__(self) -> Proposer:
        return self

    def __exit__(self, *error: object) -> None: ...

    def propose(self, image: np.ndarray) -> samrt.Segments:
        masks = np.ones((2, *image.shape[:2]), np.bool_)
        masks[0, :, image.shape[1] // 2 :] = False
        return samrt.Segments.from_masks(masks, [0.9, 0.8])


@pytest.fixture
def desk(tmp_path: Path, bundle_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the bundle and the pictures that the recipes speak of."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "nano").symlink_to(bundle_path)
    for name in ("dog.jpg", "park/cat.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(path, quality=95)
    boxes = SimpleNamespace(xyxy=Tensor([[1, 2, 30, 40]]), conf=Tensor([0.5]), cls=Tensor([16]))
    found = [SimpleNamespace(boxes=boxes, names={16: "dog"})]
    stand_in(monkeypatch, "ultralytics", YOLO=lambda weights: lambda path: found)
    box = {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}
    answer = [{"score": 0.5, "label": "dog", "box": box}, {"score": 0.25, "label": "cat", "box": box}]
    stand_in(monkeypatch, "transformers", pipeline=lambda task, model: lambda path: answer)
    stand_in(monkeypatch, "supervision", Detections=lambda **columns: SimpleNamespace(**columns))
    monkeypatch.setattr(samrt, "ProposalModel", Proposer, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks in their order, as one program; the first once more with each detector's boxes."""
    names: dict[str, Any] = {}
    first, ultralytics, transformers, *others = blocks("python")
    exec(compile(first, "recipes.md, first block", "exec"), names)
    assert names["detections"].class_id.tolist() == [16, 0]
    assert names["detections"].data["class_name"].tolist() == ["dog", "person"]
    again = re.sub(r"^boxes, labels, .*$", "", first, flags=re.MULTILINE)
    for detector, ids in ((ultralytics, [16]), (transformers, [2, 1])):
        exec(compile(detector, "recipes.md, a detector", "exec"), names)
        exec(compile(again, "recipes.md, first block", "exec"), names)
        assert names["detections"].class_id.tolist() == ids
        assert set(names["detections"].data["class_name"].tolist()) <= {"dog", "cat"}
    for block in others:
        exec(compile(block, "recipes.md", "exec"), names)
    assert isinstance(names["report"], samrt.JobReport)
    assert (names["report"].done, names["report"].masks, names["everything"].done) == (2, 1, 2)
    assert names["under"].all()  # both masks are under the point
    assert len(names["fitting"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 1 {}"
    rows = json.loads((desk / "out" / "annotations.json").read_text())["annotations"]
    assert printed[1] == f"dog.jpg 1 0.9 {rows[0]['predicted_iou']} {rows[0]['area']}"
    assert rows[0]["area"] > 0


def test_the_commands_are_known() -> None:
    group: Any = typer.main.get_command(build_app())
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 2
    for program, name, *words in lines:
        accepted = {opt for parameter in group.commands[name].params for opt in parameter.opts}
        assert program == "samrt"
        assert {word for word in words if word.startswith("-")} <= accepted
