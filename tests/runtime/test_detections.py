"""Boxes from files: every form, which picture they are of, and everything that is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samrt import InputError, PromptError
from samrt import detections as detections_module
from samrt.detections import Boxes, read_boxes


@pytest.fixture
def boxes_of(tmp_path: Path) -> Any:
    """Writes a document and reads it as boxes."""

    def read(document: Any) -> Boxes:
        path = tmp_path / "boxes.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return read_boxes(path)

    return read


def test_a_list_of_boxes(boxes_of: Any) -> None:
    boxes = boxes_of([[1, 2, 3.5, 4], [0, 0, 1, 1]])
    assert boxes.match(["dog.jpg"], one=True) == {"dog.jpg": None}
    assert boxes.by_key[None].boxes.tolist() == [[1, 2, 3.5, 4], [0, 0, 1, 1]]
    assert boxes.by_key[None].labels is boxes.by_key[None].scores is None
    with pytest.raises(
        PromptError, match=r"does not say which picture its boxes are of \| got: a list .* for 2 pictures"
    ):
        boxes.match(["dog.jpg", "cat.jpg"])


def test_no_box_at_all(boxes_of: Any) -> None:
    assert len(boxes_of([]).by_key[None]) == 0
    assert boxes_of([]).match(["dog.jpg", "cat.jpg"]) == {}  # detections of a detector that found nothing


def test_boxes_by_file_name(boxes_of: Any) -> None:
    boxes = boxes_of({"dog.jpg": [[1, 2, 3, 4]], "park/cat.jpg": []})
    assert boxes.match(["a.jpg", "dog.jpg", "park/cat.jpg"]) == {"dog.jpg": "dog.jpg", "park/cat.jpg": "park/cat.jpg"}
    assert boxes.by_key["dog.jpg"].boxes.tolist() == [[1, 2, 3, 4]]
    assert len(boxes.of("park/cat.jpg")) == len(boxes.of("unknown")) == 0


def test_labels_that_are_names(boxes_of: Any) -> None:
    boxes = boxes_of(
        {
            "dog.jpg": [{"box": [1, 2, 3, 4], "label": "dog", "score": 0.5}, {"box": [0, 0, 9, 9], "label": "cat"}],
            "cat.jpg": [{"bbox": [1, 2, 3, 4], "label": "cat"}],
        }
    )
    assert boxes.names == {1: "cat", 2: "dog"}
    assert boxes.by_key["dog.jpg"].labels.tolist() == [2, 1]
    np.testing.assert_array_equal(boxes.by_key["dog.jpg"].scores, np.array([0.5, np.nan], np.float32))
    assert boxes.by_key["cat.jpg"].boxes.tolist() == [[1, 2, 4, 6]]  # COCO's corner and size
    assert boxes.of("nothing").labels.tolist() == []


def test_coco_detections(boxes_of: Any) -> None:
    boxes = boxes_of(
        [
            {"image_id": 139, "bbox": [1, 2, 3, 4], "category_id": 18, "score": 0.9, "area": 12},
            {"image_id": 7, "bbox": [5, 6, 1, 1], "category_id": 1, "score": 0.25},
            {"image_id": 139, "bbox": [0, 0, 9, 9], "category_id": 1, "score": 1},
            {"image_id": "dog", "bbox": [0, 0, 2, 2], "category_id": 18, "score": 0},
        ]
    )
    names = ["000000000139.jpg", "7.png", "dog.jpg"]
    assert boxes.match(names) == {"000000000139.jpg": 139, "7.png": 7, "dog.jpg": "dog"}
    assert boxes.by_key[139].boxes.tolist() == [[1, 2, 4, 6], [0, 0, 9, 9]]
    assert boxes.by_key[139].labels.tolist() == [18, 1]
    assert boxes.by_key[139].scores.tolist() == pytest.approx([0.9, 1])
    assert boxes.names == {}


COCO = {
    "images": [{"id": 4, "file_name": "val/dog.jpg"}, {"id": 9, "file_name": "cat.jpg"}],
    "annotations": [{"id": 1, "image_id": 4, "bbox": [1, 2, 3, 4], "category_id": 18, "segmentation": []}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "tree"}],
}


def test_a_coco_file(boxes_of: Any) -> None:
    boxes = boxes_of(COCO)
    assert boxes.match(["dog.jpg", "park/cat.jpg"]) == {"dog.jpg": 4, "park/cat.jpg": 9}
    assert boxes.names == {18: "dog", 2: "tree"}
    assert boxes.by_key[4].labels.tolist() == [18]
    assert boxes.by_key[4].scores is None
    assert len(boxes.by_key[9]) == 0


def test_pictures_by_name(boxes_of: Any) -> None:
    boxes = boxes_of({"a/dog.jpg": [], "b/dog.jpg": [], "cat.jpg": []})
    assert boxes.match(["a/dog.jpg", "b/dog.jpg", "deep/cat.jpg"]) == {
        "a/dog.jpg": "a/dog.jpg",
        "b/dog.jpg": "b/dog.jpg",
        "deep/cat.jpg": "cat.jpg",
    }
    with pytest.raises(
        PromptError, match=r"boxes of several pictures \| got: 'cat.jpg' \| expected: one of 'a/cat.jpg', 'b/"
    ):
        boxes.match(["a/dog.jpg", "b/dog.jpg", "a/cat.jpg", "b/cat.jpg"])
    with pytest.raises(
        PromptError, match=r"boxes of a picture that is not there \| got: 'cat.jpg' \| expected: one of 'a/d"
    ):
        boxes.match(["a/dog.jpg", "b/dog.jpg"])
    with pytest.raises(
        PromptError, match=r"two entries about dog.jpg \| got: 'dog.jpg' and 'x/dog.jpg' \| expected: one"
    ):
        boxes_of({"dog.jpg": [], "x/dog.jpg": []}).match(["dog.jpg"])


def test_one_picture_of_many_entries(boxes_of: Any) -> None:
    boxes = boxes_of({"dog.jpg": [[1, 2, 3, 4]], "cat.jpg": []})
    assert boxes.match(["dog.jpg"], one=True) == {"dog.jpg": "dog.jpg"}
    with pytest.raises(PromptError, match="boxes of a picture that is not there"):
        boxes.match(["cow.jpg"], one=True)
    exact = boxes_of({"park/dog.jpg": [], "dog.jpg": [[1, 2, 3, 4]]})
    assert exact.match(["dog.jpg"], one=True) == {"dog.jpg": "dog.jpg"}


BOX = r"expected: \[x0, y0, x1, y1\], four numbers"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[[1, 2, 3", r"boxes.json is not JSON \| got: .*column"),
        ("", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[" * 100_000, r"is not JSON \| got: nested too deep"),
        ("1" * 5000, "is not JSON"),
        ("3", r"holds no boxes \| got: int"),
        ("null", "holds no boxes"),
        (
            {"dog.jpg": 3},
            r"holds no boxes \| got: int under 'dog.jpg' \| expected: a list of boxes for each file name",
        ),
        ([[1, 2, 3]], rf"boxes.json: \[0\] \| got: \[1, 2, 3\] \| {BOX}"),
        ([[1, 2, 3, 4], "dog"], rf"boxes.json: \[1\] \| got: 'dog' \| {BOX}"),
        ([[1, 2, 3, True]], BOX),
        ([[1, 2, 3, None]], BOX),
        ([1, 2, 3, 4], rf"\[0\] \| got: 1 \| {BOX}"),
        ("[[1, 2, 3, NaN]]", r"\[0\] \| got: \[1, 2, 3, nan\] \| expected: \[x0, y0, x1, y1\], finite and in pixels"),
        ("[[1, 2, 3, 1e999]]", "finite and in pixels"),
        ("[[1, 2, 3, " + "9" * 400 + "]]", "finite and in pixels"),
        ([[3, 2, 1, 4]], r"\[0\]: the corners are crossed \| got: \[3, 2, 1, 4\] \| expected: x0 < x1 and y0 < y1"),
        ([[3, 2, 3, 4]], r"\[0\]: a box without area \| got: \[3, 2, 3, 4\] \| expected: x0 < x1 and y0 < y1"),
        ({"dog.jpg": [[1, 2, 3, 4], [1, 4, 3, 2]]}, r"'dog.jpg'\[1\]: the corners are crossed"),
        (
            [{"image_id": 1, "bbox": [1, 2, -3, 4]}],
            r"\[0\].bbox: the corners are crossed \| .* expected: width and height above 0",
        ),
        ([{"image_id": 1}], r"\[0\]: which box\? \| got: the keys 'image_id' \| expected: \"box\": \[x0"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "box": [1, 2, 3, 4]}], r"which box\? \| got: both"),
        (
            [{"image_id": None, "bbox": [1, 2, 3, 4]}],
            r"\[0\]: no image id \| got: None \| expected: a whole number, or a name",
        ),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3, 4]}], r"\[1\]: no image id"),
        ([{"box": [1, 2, 3, 4], "label": 1.5}], r"\[0\]: no label \| got: 1.5 \| expected: a name, or a whole number"),
        ([{"box": [1, 2, 3, 4], "score": 90}], r"\[0\].score \| got: 90 \| expected: a number from 0 to 1"),
        ('[{"box": [1, 2, 3, 4], "score": NaN}]', r"\[0\].score \| got: nan"),
        (
            {"a": [{"box": [1, 2, 3, 4], "label": "x"}, {"box": [1, 2, 3, 4], "label": 2}]},
            r"labels of two kinds \| got: 'x' and 2",
        ),
        (COCO | {"images": [{"id": 4}]}, r"images\[0\].file_name \| got: None \| expected: a picture's name"),
        (COCO | {"images": COCO["images"] * 2}, r"images\[2\].id \| got: 4 a second time"),
        (COCO | {"images": 3}, r"images \| got: int \| expected: a list of objects"),
        (COCO | {"images": []}, r"annotations\[0\].image_id \| got: 4 \| expected: an id of images"),
        (COCO | {"categories": [{"id": "x"}]}, r"categories\[0\].id \| got: 'x' \| expected: a whole number from 0 on"),
        (COCO | {"annotations": [3]}, r"annotations\[0\] \| got: int \| expected: an object with image_id and bbox"),
    ],
)
def test_what_is_no_file_of_boxes(boxes_of: Any, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        boxes_of(document)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"boxes.json \| got: no such file \| expected: a JSON file of boxes"):
        read_boxes(tmp_path / "boxes.json")
    with pytest.raises(InputError, match="got: a folder"):
        read_boxes(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="got: a device, pipe or socket"):
        read_boxes(tmp_path / "pipe")
    sparse = tmp_path / "large.json"
    with sparse.open("wb") as file:
        file.truncate(2 * 2**30)  # takes no space
    with pytest.raises(
        InputError, match=r"too large \| got: 2048 MiB \| expected: at most 512 MiB \| fix: leave the segm"
    ):
        read_boxes(sparse)
    small = tmp_path / "small.json"
    small.write_text("[[1, 2, 3, 4]]")
    monkeypatch.setattr(detections_module, "MAX_BYTES", small.stat().st_size)
    assert len(read_boxes(small).by_key[None]) == 1
