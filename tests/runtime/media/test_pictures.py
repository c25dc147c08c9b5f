"""Folders, lists and iterators of pictures. None of them needs PyAV."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from samrt import ImageError, InputError
from samrt.media import Frames, open_frames
from samrt.media.pictures import natural_key

from .clips import collect, number, numbers, paint


@pytest.fixture(autouse=True)
def _no_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)


def folder(path: Path, names: list[str]) -> Path:
    path.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        PIL.Image.fromarray(paint(index)).save(path / name)
    return path


def test_a_folder_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    """Also numbers without leading zeros, and of more digits than others, as upstream's int(name) sorts them."""
    path = folder(tmp_path / "frames", ["0.png", "1.jpg", "2.JPEG", "9.png", "10.png", "00011.webp", "100.png"])
    (path / "notes.txt").write_text("not a frame")
    (path / ".hidden.png").write_bytes(b"not a frame")
    (path / "5").mkdir()
    frames = open_frames(path)
    assert numbers(frames) == list(range(7))
    assert len(frames) == frames.count == 7
    assert [number(frames[index]) for index in (6, 0, 3, -1)] == [6, 0, 3, 6]
    assert frames.size_hw == (32, 128)
    assert [frame.time_s for frame in frames.timed()] == [None] * 7
    assert [frame.time_s for frame in open_frames(path, fps=4, start=2, every=3).timed()] == [0.5, 1.25]


def test_natural_order() -> None:
    names = ["a2.png", "a10.png", "B1.png", "a1.png", "1.png", "01.png", "b1b.png", "b1a.png"]
    ordered = ["01.png", "1.png", "a1.png", "a2.png", "a10.png", "B1.png", "b1a.png", "b1b.png"]
    assert sorted(names, key=natural_key) == ordered
    assert sorted(["33.jpg", "1000.jpg", "2.jpg", "10.jpg"], key=natural_key) == [
        f"{index}.jpg" for index in (2, 10, 33, 1000)
    ]


def test_what_is_no_folder_of_frames(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no frame in .*frames \| got: no picture"):
        open_frames(folder(tmp_path / "frames", []))
    path = folder(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    (path / "1.png").write_bytes((path / "0.png").read_bytes()[:60])
    seen: list[int] = []
    with pytest.raises(ImageError, match=r"frame 1 of .*: cannot read .*1.png \| got: a damaged file"):
        collect(open_frames(path), seen)
    assert seen == [0]


def sources() -> list[tuple[str, Frames]]:
    pictures = [paint(index) for index in range(9)]
    return [
        ("list", open_frames(pictures, start=1, every=2)),
        ("tuple of PIL images", open_frames(tuple(map(PIL.Image.fromarray, pictures)), start=1, every=2)),
        ("array", open_frames(np.stack(pictures), start=1, every=2)),
        ("iterator", open_frames(iter(pictures), start=1, every=2)),
        ("generator", open_frames((one for one in pictures), start=1, every=2)),
    ]


@pytest.mark.parametrize("index", range(5))
def test_lists_and_iterators(index: int) -> None:
    name, frames = sources()[index]
    timed = list(frames.timed())
    assert [frame.index for frame in timed] == numbers(frame.image for frame in timed) == [1, 3, 5, 7], name
    assert frames.size_hw == (32, 128)
    if name in ("iterator", "generator"):
        assert frames.count is None
        with pytest.raises(TypeError, match="number of frames of the iterator of frames is not known"):
            len(frames)
        with pytest.raises(InputError, match="was read before"):
            list(frames)
    else:
        assert len(frames) == frames.count == 4
        assert number(frames[2]) == 5


def test_a_list_of_files(tmp_path: Path) -> None:
    path = folder(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    assert numbers(open_frames([path / "2.png", str(path / "0.png")])) == [2, 0]


def test_an_iterator_is_read_no_further_than_wanted() -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        for index in range(10**9):
            taken.append(index)
            yield paint(index % 256)

    assert numbers(open_frames(endless(), start=3, stop=10, every=4)) == [3, 7]
    assert taken == list(range(8))


def test_errors_of_the_iterator_are_its_own() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield paint(0)
        raise OSError("the tape broke")

    with pytest.raises(OSError, match="the tape broke"):
        list(open_frames(broken()))


@pytest.mark.parametrize("kind", [list, iter])
def test_a_change_of_size_is_an_error_at_its_frame(kind: type) -> None:
    pictures = [paint(0), paint(1), paint(2, (16, 64)), paint(3)]
    seen: list[int] = []
    with pytest.raises(ImageError, match=r"frame 2 of .* \| got: 64 x 16 \| expected: 128 x 32.*start=2"):
        collect(open_frames(kind(pictures)), seen)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "there is no frame in the list of frames | got: an empty list"),
        (np.zeros((4, 5)), "not a list of frames | got: an array of shape (4, 5)"),
        (5, "not a source of frames | got: int | expected: a video file, a folder"),
        (b"abc", "not a source of frames | got: bytes"),
        ([paint(0), "x"], "frame 1 of the list of frames: not a picture | got: str"),
        ([np.zeros((4, 4, 3), np.int64)], "frame 0 of the list of frames: a picture of this type is not understood"),
        (iter([]), "there is no frame in the iterator of frames"),
    ],
)
def test_what_is_no_source(source: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        list(open_frames(source))  # type: ignore[call-overload]
    assert str(caught.value).startswith(message)


def test_open_frames_of_frames_is_the_same() -> None:
    frames = open_frames([paint(0)])
    assert open_frames(frames) is frames
    with pytest.raises(InputError, match="open already"):
        open_frames(frames, start=1)
