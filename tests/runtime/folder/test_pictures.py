"""The pictures of a job, and the names of their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from samrt import InputError
from samrt.folder.pictures import find_pictures
from samrt.media import open_frames


def test_names_do_not_collide(tmp_path: Path) -> None:
    files = [
        "a.jpg",
        "a.png",
        "A.webp",
        "b.png",
        "b/0000.png",
        "job.png",
        "annotations.jpg",
        "c.json.png",
        "c.png",
        "d.jpg",
        "d.png",
        "d_png.jpg",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures(tmp_path, tmp_path / "out")
    names = {picture.file_name: picture.name for picture in found.pictures}
    assert set(names) == set(files)
    assert names["a.jpg"] == "a"
    assert names["a.png"] == "a_png"
    assert names["A.webp"] == "A_webp"
    assert names["b.png"] == "b_png"  # its masks would lie in the folder b
    assert names["job.png"] == "job_png"
    places = [place.casefold() for name in names.values() for place in (name, f"{name}.json", f"{name}.png")]
    assert len(set(places)) == len(places)


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"got: no such file or folder \| expected: a picture, or a folder of pictures"
    ):
        find_pictures(tmp_path / "none", tmp_path / "out")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        InputError, match=r"there is no picture in .* \| got: 1 other files \| expected: files .jpg, .jpeg"
    ):
        find_pictures(tmp_path, tmp_path / "out")


def test_gifs_are_pictures_but_no_frames(folder: Path) -> None:
    (folder / "3.GIF").touch()
    found = find_pictures(folder, folder.parent / "out")
    assert [picture.file_name for picture in found.pictures] == ["2.png", "3.GIF", "10.png", "sub/a.jpg"]
    with open_frames(folder) as frames:
        assert len(frames) == 2


def test_links_to_folders_are_not_followed(folder: Path) -> None:
    (folder / "sub" / "loop").symlink_to(folder)
    assert len(find_pictures(folder, folder.parent / "out").pictures) == 3
