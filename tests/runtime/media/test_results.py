"""Writers: what they write is read back, whole whatever ends them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from samrt import BackendError, ImageError, InputError, MissingExtraError
from samrt.media import TimedFrame, decode_mask, open_frames, open_results
from samrt.media.objects import davis_palette, draw_objects
from samrt.media.overlay_video import CODECS, OverlayVideo, choose_codec

from .clips import Found, number, numbers, paint


def found(image: np.ndarray, obj_ids: tuple[int, ...] = (1, 2)) -> Found:
    """Objects: the red stripe; a lower one that overlaps it by a row; further ones are empty."""
    masks = np.zeros((len(obj_ids), *image.shape[:2]), bool)
    masks[:1, : image.shape[0] // 4] = True
    if len(obj_ids) > 1:
        masks[1, image.shape[0] // 4 - 1 : image.shape[0] // 2, :5] = True
    return Found(obj_ids, masks, np.linspace(2, -2, len(obj_ids)).astype(np.float32))


def timed(count: int, hw: tuple[int, int] = (32, 128), step_s: float | None = 0.1) -> Iterator[TimedFrame]:
    for index in range(count):
        yield TimedFrame(paint(index, hw), index, None if step_s is None else index * step_s)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("hw", [(32, 128), (33, 127), (2, 16)])
def test_an_overlay_video_is_read_back(tmp_path: Path, suffix: str, hw: tuple[int, int]) -> None:
    out = tmp_path / f"out{suffix}"
    with open_results(out, fps=10) as results:
        for frame in timed(20, hw):
            results.write(frame, found(frame.image, ()) if hw[0] == 2 else found(frame.image))
            assert not out.exists()
    assert hidden(tmp_path) == []
    frames = open_frames(out)
    assert frames.fps == pytest.approx(10)
    assert frames.size_hw == (hw[0] + hw[0] % 2, hw[1] + hw[1] % 2)  # odd sizes are padded
    assert [frame.time_s for frame in frames.timed()] == pytest.approx([index / 10 for index in range(20)], abs=1e-3)
    if hw[0] > 2:
        assert numbers(frames) == list(range(20))
        drawn = draw_objects(paint(7, hw), found(paint(7, hw)).masks, (1, 2))
        assert np.abs(frames[7][: hw[0], : hw[1]].astype(int) - drawn).mean() < 6


def test_a_video_says_its_colours(tmp_path: Path) -> None:
    with open_results(tmp_path / "out.mp4") as results:
        for frame in timed(2):
            results.write(frame, found(frame.image, ()))
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.colorspace, stream.codec_context.color_range, stream.pix_fmt) == (1, 1, "yuv420p")
        assert stream.codec_context.name == "h264"


def test_times_are_kept_and_always_rise(tmp_path: Path) -> None:
    times = [5.0, 5.04, 5.5, 5.5, 5.2, 7.0, None, 8.0]
    with open_results(tmp_path / "out.mp4", fps=20) as results:
        for index, time_s in enumerate(times):
            results.write(TimedFrame(paint(index), index, time_s), found(paint(index)))
    written = [frame.time_s for frame in open_frames(tmp_path / "out.mp4").timed()]
    assert written == pytest.approx([0, 0.04, 0.5, 0.5, 0.5, 2.0, 2.05, 3.0], abs=1e-3)
    assert all(a < b for a, b in pairwise(written))  # type: ignore[operator]
    assert numbers(open_frames(tmp_path / "out.mp4")) == list(range(8))


@pytest.mark.parametrize(("fps", "expected"), [(None, 25), (12.5, 12.5), (30000 / 1001, 29.97)])
def test_frames_without_times_get_the_rate(tmp_path: Path, fps: float | None, expected: float) -> None:
    with open_results(tmp_path / "out.mp4", fps=fps) as results:
        for frame in timed(30, step_s=None):
            results.write(frame, found(frame.image))
    assert open_frames(tmp_path / "out.mp4").fps == pytest.approx(expected, rel=1e-3)


def test_codecs_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_codec() == next(name for name in CODECS if name in av.codecs_available)
    monkeypatch.setattr("samrt.media.overlay_video.CODECS", ("no_such_codec", "mpeg4"))
    with open_results(tmp_path / "out.mp4") as results:
        assert isinstance(results, OverlayVideo)
        assert results.codec == "mpeg4"
        for frame in timed(5):
            results.write(frame, found(frame.image))
    assert numbers(open_frames(tmp_path / "out.mp4")) == list(range(5))
    with pytest.raises(BackendError, match=r"no codec to write a video with \| got: no_such_codec: .*no_such_codec"):
        open_results(tmp_path / "x.mp4", codec="no_such_codec")


def test_mask_pictures(tmp_path: Path) -> None:
    with open_results(tmp_path / "masks") as results:
        for frame in timed(12):
            if frame.index != 5:
                results.write(frame, found(frame.image, (4, 9)))
    assert hidden(tmp_path) == []
    names = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert names == [f"{index:05d}.png" for index in range(12) if index != 5] + ["masks.jsonl"]
    with PIL.Image.open(tmp_path / "masks" / "00003.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette() == davis_palette().reshape(-1).tolist()
        ids = np.asarray(picture)
    expected = np.zeros((32, 128), np.uint8)
    expected[:16, :5], expected[:8] = 9, 4
    np.testing.assert_array_equal(ids, expected)
    lines = [json.loads(line) for line in (tmp_path / "masks" / "masks.jsonl").read_text().splitlines()]
    assert len(lines) == 22
    assert decode_mask(lines[1]["segmentation"])[7, :5].all()  # lines keep overlaps


def test_lines(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_results(out) as results:
        for frame in timed(3):
            results.write(frame, found(frame.image, (1, 300, -4)))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["frame"], line["obj_id"]) for line in lines] == [(f, o) for f in range(3) for o in (1, 300, -4)]
    first, second, third = lines[3:6]
    masks = found(paint(1)).masks
    np.testing.assert_array_equal(decode_mask(second["segmentation"]), masks[1])
    assert second == {
        "frame": 1,
        "time_s": 0.1,
        "obj_id": 300,
        "score": 0.5,
        "bbox": [0, 7, 5, 9],
        "area": 45,
        "segmentation": second["segmentation"],
    }
    assert first["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert (third["area"], third["bbox"]) == (0, [0, 0, 0, 0])


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.jsonl", "masks"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_written_before_an_end_is_whole(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    out = tmp_path / name

    def write_until_the_end() -> None:
        with open_results(out, fps=10) as results:
            for frame in timed(17):
                results.write(frame, found(frame.image))
            raise error

    with pytest.raises(error):
        write_until_the_end()
    assert hidden(tmp_path) == []
    if name.endswith("jsonl"):
        assert len(out.read_text().splitlines()) == 34
    elif name == "masks":
        assert len(list(out.glob("*.png"))) == 17
    else:
        assert numbers(open_frames(out)) == list(range(17))


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl", "masks"])
def test_without_a_frame_nothing_is_left(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError), open_results(tmp_path / name):
        raise RuntimeError
    with open_results(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.gif", "unknown kind of output | got: 'out.gif' | expected: a name ending in .mp4, .mkv, .mov, .jsonl"),
        ("no/folder/out.mp4", "cannot write"),
        ("full", "cannot write to"),
        ("folder.mp4", "cannot write"),
        ("file", "cannot write to"),
    ],
)
def test_places_that_cannot_be_written_to(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "00000.png").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        open_results(tmp_path / name)
    assert str(caught.value).startswith(message)


def test_an_empty_folder_and_an_old_file_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "out.jsonl").write_text("old")
    for name in ("masks", "out.jsonl"):
        with open_results(tmp_path / name) as results:
            for frame in timed(2):
                results.write(frame, found(frame.image))
    assert len(list((tmp_path / "masks").iterdir())) == 3
    assert "old" not in (tmp_path / "out.jsonl").read_text()


def test_a_change_of_size_ends_a_video(tmp_path: Path) -> None:
    with open_results(tmp_path / "out.mp4") as results:
        results.write(TimedFrame(paint(0), 0, 0.0), found(paint(0)))
        with pytest.raises(ImageError, match=r"frame 1 has another size .* got: 64 x 16 .* expected: 128 x 32"):
            results.write(TimedFrame(paint(1, (16, 64)), 1, 0.1), found(paint(1, (16, 64))))
    assert numbers(open_frames(tmp_path / "out.mp4")) == [0]


def test_a_video_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'av is needed to write out.mp4 .* pip install "samrt\[video\]"'):
        open_results(tmp_path / "out.mp4")
    open_results(tmp_path / "masks").close()


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from samrt import InputError
from samrt.media import TimedFrame, open_results

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # a disk that is full after so many bytes, as files see it
class Found: obj_ids, object_scores = (1,), np.ones(1, np.float32)
rng, written = np.random.default_rng(0), 0
try:
    with open_results(Path(sys.argv[1]), fps=5) as results:
        for index in range(400):
            Found.masks = rng.random((1, 48, 64)) > 0.5
            results.write(TimedFrame(rng.integers(0, 255, (48, 64, 3), np.uint8), index, index / 5), Found)
            written += 1
except InputError as error:
    print(written, error, sep="|")
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.jsonl", "masks"])
def test_a_full_disk(tmp_path: Path, name: str) -> None:
    """A clear error at the frame that fills it; the frames before are there, playable."""
    out = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, _, message = done.stdout.partition("|")
    assert f"cannot write frame {count} to {out}|got: File too large".replace("|", " | ") in message
    assert f"the {count} frames before are in {out}" in message
    assert hidden(tmp_path) == []
    assert 5 < int(count) < 400
    if name.endswith("jsonl"):
        assert [json.loads(line)["frame"] for line in out.read_text().splitlines()] == list(range(int(count)))
    elif name == "masks":
        assert len(list(out.glob("*.png"))) == int(count)
        assert len((out / "masks.jsonl").read_text().splitlines()) == int(count)
    else:
        played = sum(1 for _ in open_frames(out, damaged="skip"))
        assert played > int(count) // 2  # the encoder holds some back


def test_a_killed_process_leaves_a_file_that_plays(tmp_path: Path) -> None:
    """Under the hidden name: MP4 is written in fragments."""
    with open_results(tmp_path / "out.mp4", fps=5) as results:
        for frame in timed(120, step_s=0.2):
            results.write(frame, found(frame.image))
        (partial,) = tmp_path.glob(".out.*.mp4")
        left = tmp_path / "left.mp4"
        left.write_bytes(partial.read_bytes())
    played = numbers(open_frames(left, damaged="skip"))
    assert played == list(range(len(played)))
    assert len(played) > 50
    assert number(open_frames(left, damaged="skip")[10]) == 10
