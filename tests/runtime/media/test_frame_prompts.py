"""Prompts and the file they are read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from samrt import PromptError
from samrt.media import FramePrompt, encode_mask, read_prompts_file
from samrt.media.frame_prompts import read_mask_file
from samrt.media.objects import davis_palette

from .clips import ColourTracker


def write(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_every_kind_of_entry(tmp_path: Path) -> None:
    inside = np.zeros((6, 8), bool)
    inside[2:4, 1:5] = True
    PIL.Image.fromarray(inside.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    entries = [
        {"points": [[3, 4.5]]},
        {"frame": 2, "obj_id": 7, "points": [[3, 4], [1, 1]], "labels": [1, 0], "box": [0, 1, 2, 3]},
        {"frame": 2, "obj_id": -8, "box": [0, 1, 2, 3]},
        {"frame": 3, "mask": "mask.png"},
        {"frame": 4, "mask": encode_mask(inside)},
        {"frame": 5, "obj_id": 7, "remove": True},
    ]
    prompts = read_prompts_file(write(tmp_path, {"prompts": entries}))
    assert [(prompt.frame, prompt.obj_id) for prompt in prompts] == [(None, 1), (2, 7), (2, -8), (3, 1), (4, 1), (5, 7)]
    for prompt in prompts[3:5]:
        assert prompt.mask is not None
        np.testing.assert_array_equal(prompt.mask, inside)
    tracker = ColourTracker()
    tracker.colours[7] = np.zeros(3)
    for prompt in prompts:
        prompt.apply(tracker)
    assert tracker.calls == [
        (0, "points", 1, [[3, 4.5]], [1], None),
        (0, "points", 7, [[3, 4], [1, 1]], [1, 0], [0, 1, 2, 3]),
        (0, "box", -8, [0, 1, 2, 3]),
        (0, "mask", 1, 8),
        (0, "mask", 1, 8),
        (0, "remove", 7),
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot read"),
        ("[" * 100_000, "cannot read"),
        ([], "cannot read"),
        ({"prompt": []}, "cannot read"),
        ({"prompts": [], "more": 1}, "cannot read"),
        ({"prompts": []}, "there is no prompt in"),
        ({"prompts": [3]}, "prompts.json: prompts[0] | got: int | expected: an object"),
        (
            {"prompts": [{"point": [1, 2]}]},
            "prompts.json: prompts[0] | got: the key 'point' | expected: no others than",
        ),
        (
            {"prompts": [{"box": [1, 2, 3, 4]}, {"points": [1, 2]}]},
            "prompts.json: prompts[1].points | got: [1, 2] | expected: [[x, y], ...]",
        ),
        ({"prompts": [{"points": []}]}, "prompts.json: prompts[0].points | got: []"),
        ({"prompts": [{"points": [[1, True]]}]}, "prompts.json: prompts[0].points"),
        ({"prompts": [{"points": [[1, 2]], "labels": [1, 0]}]}, "prompts.json: prompts[0].labels | got: [1, 0]"),
        ({"prompts": [{"labels": [1]}]}, "prompts.json: prompts[0].labels | got: [1] | expected: 1 or 0 for each"),
        (
            {"prompts": [{"box": [1, 2, 3]}]},
            "prompts.json: prompts[0].box | got: [1, 2, 3] | expected: [x0, y0, x1, y1]",
        ),
        (
            {"prompts": [{"box": [1, 2, 3, 4], "frame": -1}]},
            "prompts.json: prompts[0].frame | got: -1 | expected: a whole",
        ),
        ({"prompts": [{"box": [1, 2, 3, 4], "frame": 1.5}]}, "prompts.json: prompts[0].frame | got: 1.5"),
        ({"prompts": [{"box": [1, 2, 3, 4], "obj_id": "a"}]}, "prompts.json: prompts[0].obj_id | got: 'a'"),
        ({"prompts": [{"mask": "no.png"}]}, "prompts.json: prompts[0]: cannot read the mask"),
        ({"prompts": [{"mask": {"size": [2, 2]}}]}, "prompts.json: prompts[0].mask | got: not an encoded mask"),
        ({"prompts": [{"remove": 1}]}, "prompts.json: prompts[0].remove | got: 1"),
        (
            {"prompts": [{"frame": 3, "obj_id": 2}]},
            "prompts.json: prompts[0]: the prompt for object 2 on frame 3 says too little | got: nothing",
        ),
        (
            {"prompts": [{"box": [1, 2, 3, 4], "remove": True}]},
            "prompts.json: prompts[0]: the prompt for object 1 on the first frame says too much | got: box, remove",
        ),
    ],
)
def test_bad_files_are_refused_by_place(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        read_prompts_file(write(tmp_path, document))
    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"cannot read .*none.json \| got: No such file"):
        read_prompts_file(tmp_path / "none.json")


def test_mask_files(tmp_path: Path) -> None:
    ids = np.zeros((4, 6), np.uint8)
    ids[0, :3], ids[2, 2:] = 5, 20
    indexed = PIL.Image.fromarray(ids)
    indexed.putpalette(davis_palette().tobytes())
    indexed.save(tmp_path / "ids.png")
    PIL.Image.fromarray(ids).save(tmp_path / "grey.png")
    PIL.Image.fromarray(np.dstack([ids] * 3)).save(tmp_path / "colour.png")
    np.save(tmp_path / "ids.npy", ids.astype(np.int64))
    np.save(tmp_path / "bool.npy", ids > 0)
    for name in ("ids.png", "ids.npy"):
        masks = read_mask_file(tmp_path / name)
        assert list(masks) == [5, 20]
        for obj_id, mask in masks.items():
            np.testing.assert_array_equal(mask, ids == obj_id)
    for name in ("grey.png", "colour.png", "bool.npy"):
        (mask,) = read_mask_file(tmp_path / name).values()
        assert list(read_mask_file(tmp_path / name)) == [1]
        np.testing.assert_array_equal(mask, ids > 0)


def test_bad_mask_files(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "black.png")
    np.save(tmp_path / "float.npy", np.zeros((4, 6)))
    np.save(tmp_path / "cube.npy", np.zeros((4, 6, 2), bool))
    np.save(tmp_path / "many.npy", np.arange(600).reshape(20, 30))
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.png").write_text("x")
    for name, message in [
        ("black.png", "there is no mask in .* got: only background"),
        ("float.npy", "there is no mask in .* got: float64 array"),
        ("cube.npy", r"there is no mask in .* got: bool array of shape \(4, 6, 2\)"),
        ("many.npy", "too many objects in .* got: 599 different values"),
        ("object.npy", "cannot read the mask .* allow_pickle=False"),
        ("text.png", "cannot read the mask .* got: not a picture"),
        ("none.png", "cannot read the mask .* got: No such file"),
        ("none.npy", "cannot read the mask .* got: No such file"),
    ]:
        with pytest.raises(PromptError, match=message):
            read_mask_file(tmp_path / name)


def test_a_prompt_says_one_thing() -> None:
    with pytest.raises(PromptError, match=r"object 3 on frame 9 says too much \| got: points, mask"):
        FramePrompt(obj_id=3, frame=9, points=[[1, 1]], mask=np.ones((2, 2), bool))
