"""A detector's boxes into masks, for whole folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import samrt
from samrt import InputError, PromptError
from samrt.detections import read_boxes
from samrt.folder import boxes as boxes_module
from samrt.folder import segment_boxes
from samrt.folder.boxes import clip_boxes
from samrt.folder.job import ANNOTATIONS
from samrt.rle import decode_mask


@pytest.fixture
def model(bundle_path: Path) -> Any:
    with samrt.load(bundle_path, backend="onnxruntime") as model:
        yield model


def write_boxes(folder: Path, document: Any) -> Path:
    path = folder.parent / "boxes.json"
    path.write_text(json.dumps(document))
    return path


def test_boxes_become_masks(folder: Path, model: samrt.Model) -> None:
    """All of a picture in one decode, with labels, scores and ids of the detector's file."""
    corners = [[2, 2, 20, 20], [-3.5, 4, 12, 30]]
    document = {
        "images": [{"id": 40, "file_name": "2.png"}, {"id": 7, "file_name": "sub/a.jpg"}],
        "annotations": [
            {"image_id": 40, "bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": 18, "score": 0.5}
            for x0, y0, x1, y1 in corners
        ],
        "categories": [{"id": 18, "name": "dog"}],
    }
    out = folder.parent / "out"
    report = segment_boxes(model, folder, write_boxes(folder, document), out, batch=3)
    assert (report.done, report.masks) == (3, 2)
    merged = json.loads((out / ANNOTATIONS).read_text())
    assert {image["file_name"]: image["id"] for image in merged["images"]} == {"2.png": 40, "10.png": 1, "sub/a.jpg": 7}
    assert merged["categories"] == [{"id": 18, "name": "dog"}]
    picture = np.asarray(PIL.Image.open(folder / "2.png"))
    clipped = [[2, 2, 20, 20], [0, 4, 12, 24]]
    expected = model.decode(model.encode(picture), samrt.Prompts(boxes=clipped), multimask=False)
    for row, mask, score, box in zip(
        merged["annotations"], expected.masks[:, 0], expected.scores[:, 0], clipped, strict=True
    ):
        np.testing.assert_array_equal(decode_mask(row["segmentation"]), mask)
        assert (row["image_id"], row["category_id"], row["score"]) == (40, 18, 0.5)
        assert row["predicted_iou"] == pytest.approx(float(score), abs=1e-6)
        assert row["prompt_box"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_many_boxes_are_asked_in_parts(folder: Path, model: samrt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = write_boxes(folder, [[x, 2, x + 9, 20] for x in range(5)])
    segment_boxes(model, folder / "2.png", boxes, folder.parent / "once")
    monkeypatch.setattr(boxes_module, "_BOXES_AT_ONCE", 2)
    segment_boxes(model, folder / "2.png", boxes, folder.parent / "parts")
    written = [(folder.parent / name / "2.json").read_bytes() for name in ("once", "parts")]
    assert written[0] == written[1]
    rows = json.loads(written[0])["annotations"]
    assert len({row["predicted_iou"] for row in rows}) == 5


def test_changed_boxes_are_done_again(folder: Path, model: samrt.Model) -> None:
    out = folder.parent / "out"
    boxes = {"2.png": [[1, 1, 9, 9]], "10.png": [[1, 1, 9, 9]]}
    assert segment_boxes(model, folder, write_boxes(folder, boxes), out).done == 3
    report = segment_boxes(model, folder, write_boxes(folder, boxes | {"2.png": [[1, 1, 9, 10]]}), out)
    assert (report.done, report.kept) == (1, 2)
    with pytest.raises(InputError, match=r"another job was begun .* got: multimask true \| expected: multimask false"):
        segment_boxes(model, folder, write_boxes(folder, boxes), out, multimask=True)


def test_pictures_without_boxes_are_not_encoded(
    folder: Path, model: samrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda images: encoded.append(len(images)) or encode(images))
    boxes = read_boxes(write_boxes(folder, {"10.png": [[1, 1, 9, 9]]}))
    assert segment_boxes(model, folder, boxes, folder.parent / "out").done == 3
    assert encoded == [1]
    segment_boxes(model, folder, boxes, folder.parent / "out")
    assert encoded == [1]


def test_a_box_outside_its_picture_fails_that_picture(folder: Path, model: samrt.Model) -> None:
    boxes = write_boxes(folder, {"10.png": [[1, 1, 9, 9]], "2.png": [[1, 1, 9, 9], [32, 0, 40, 9]]})
    report = segment_boxes(model, folder, boxes, folder.parent / "out", batch=2)
    assert report.done == 2
    assert report.failures == {
        "2.png": "box 1 lies outside the picture | got: 32, 0, 40, 9 | expected: within 0, 0, 32, 24"
    }
    with pytest.raises(PromptError, match=r"boxes of a picture that is not there \| got: '3.png'"):
        segment_boxes(model, folder, write_boxes(folder, {"3.png": []}), folder.parent / "other")
    assert not (folder.parent / "other").exists()


def test_boxes_made_on_another_size_fail_that_picture(folder: Path, model: samrt.Model) -> None:
    """The usual sign of a detector that was given a smaller copy."""
    name = "10.png"
    height, width = samrt.read_image(folder / name).shape[:2]
    for factor, failed in ((1, 0), (2, 1)):
        images = [{"id": 0, "file_name": name, "width": width * factor, "height": height * factor}]
        rows = [{"id": 1, "image_id": 0, "bbox": [0, 0, 5, 5], "category_id": 1}]
        boxes = write_boxes(folder, {"images": images, "annotations": rows})
        report = segment_boxes(model, folder / name, boxes, folder.parent / f"out{factor}")
        assert len(report.failures) == failed
    error = report.failures[name]
    assert f"another size | got: {2 * width} x {2 * height} in its table" in error
    assert f"expected: {width} x {height}, the picture's" in error


def test_clipped_boxes() -> None:
    assert clip_boxes([[-5, 2, 50, 9]], (10, 20)).tolist() == [[0, 2, 20, 9]]
    with pytest.raises(PromptError, match="box 0 lies outside the picture"):
        clip_boxes([[-5, 2, 0, 9]], (10, 20))
