"""Video files: every frame, by its number, upright, and what is said of damaged ones."""

from __future__ import annotations

import gc
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from samrt import ImageError, InputError, MissingExtraError
from samrt.media import open_frames
from samrt.media.decoding import Decoder, upright
from samrt.media.video_file import VideoFile
from samrt.resident import resident_mib

from .clips import HW, collect, cut, number, numbers, paint, write_clip

KINDS = [
    ("clip.mp4", "libx264", "yuv420p"),
    ("clip.mkv", "libx264", "yuv420p"),
    ("clip.ts", "libx264", "yuv420p"),
    ("clip.avi", "mpeg4", "yuv420p"),
    ("clip.webm", "libvpx-vp9", "yuv420p"),
    ("odd.mkv", "ffv1", "bgr0"),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), KINDS, ids=[name for name, _, _ in KINDS])
def test_every_frame_in_order_and_by_number(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    hw = (33, 123) if name.startswith("odd") else HW
    with open_frames(write_clip(tmp_path / name, 30, codec=codec, pix_fmt=pix_fmt, hw=hw)) as frames:
        assert frames.size_hw == hw
        assert frames.fps == pytest.approx(10)
        assert numbers(frames) == list(range(30))
        assert numbers(frames) == list(range(30))  # again, from the start
        assert len(frames) == 30
        order = [17, 3, 29, 0, 16, 15, 14, 13, 22, 23, 24, 1, 2, 28]
        assert [number(frames[index]) for index in order] == order
        assert number(frames[-1]) == 29
        in_order = list(frames)
        for index in (9, 8, 7):
            np.testing.assert_array_equal(frames[index], in_order[index])
        with pytest.raises(IndexError, match=r"has no frame 30 \| got: 30 frames"):
            frames[30]


def test_colours_and_form(tmp_path: Path) -> None:
    (image,) = open_frames(write_clip(tmp_path / "clip.mp4", 1, options={"crf": "1"}))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    difference = np.abs(image.astype(int) - paint(0))
    assert (
        np.delete(difference, [6, 7, 8, 9], axis=0).max() < 4
    )  # chroma is coarser: it is mixed where the colours meet


@pytest.mark.parametrize(("start", "stop", "every"), [(0, None, 1), (5, None, 1), (13, 14, 1), (4, 25, 3), (0, 99, 7)])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_spans_are_those_of_a_range(tmp_path: Path, name: str, start: int, stop: int | None, every: int) -> None:
    path = write_clip(tmp_path / name, 30, codec="mpeg4" if name.endswith("avi") else "libx264")
    frames = open_frames(path, start=start, stop=stop, every=every)
    wanted = list(range(30)[start:stop:every])
    timed = list(frames.timed())
    assert [frame.index for frame in timed] == wanted == numbers(frame.image for frame in timed)
    assert [frame.time_s for frame in timed] == pytest.approx([index / 10 for index in wanted])
    assert len(frames) == len(wanted)
    assert [number(frames[position]) for position in range(len(wanted))] == wanted


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_variable_rate_keeps_its_times(tmp_path: Path, name: str) -> None:
    times = [index * index / 100 for index in range(20)]
    frames = open_frames(write_clip(tmp_path / name, 20, times=times))
    timed = list(frames.timed())
    assert numbers(frame.image for frame in timed) == list(range(20))
    assert [frame.time_s for frame in timed] == pytest.approx(times, abs=2e-3)
    assert number(frames[11]) == 11
    assert [frame.time_s for frame in open_frames(frames.name, start=12).timed()] == pytest.approx(times[12:], abs=2e-3)


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_rotation_is_undone(tmp_path: Path, rotation: int, turns: int) -> None:
    """The metadata says how far to turn counterclockwise."""
    plain = open_frames(write_clip(tmp_path / "plain.mp4", 2))[1]
    frames = open_frames(write_clip(tmp_path / "turned.mp4", 2, rotation=rotation))
    expected = np.rot90(plain, turns)
    assert frames.size_hw == expected.shape[:2]
    np.testing.assert_array_equal(frames[1], expected)
    np.testing.assert_array_equal(list(frames)[1], expected)


def test_display_matrices_move_pixels_as_they_say() -> None:
    """Against the definition: the pixel at (x, y) goes to (a x + c y, b x + d y), moved into view."""
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
    for a, b, c, d in [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)] + [
        (0, b, c, 0) for b in (1, -1) for c in (1, -1)
    ]:
        places = {(a * x + c * y, b * x + d * y): image[y, x] for y in range(2) for x in range(3)}
        left, top = min(x for x, _ in places), min(y for _, y in places)
        turned = upright(image, (a, b, c, d))
        for (x, y), value in places.items():
            assert (turned[y - top, x - left] == value).all(), (a, b, c, d)
    assert upright(image, (1, 1, 1, 1)) is image
    assert upright(image, None) is image


def test_few_pictures_are_kept_and_backwards_is_not_quadratic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samrt.media.video_file.CACHE_BYTES", 10 * 3 * HW[0] * HW[1])
    frames = open_frames(write_clip(tmp_path / "clip.mp4", 60, gop=60))
    assert isinstance(frames, VideoFile)
    seeks: list[int] = []
    real = Decoder.seek
    monkeypatch.setattr(
        Decoder,
        "seek",
        lambda self, timestamp, shown_from: (seeks.append(timestamp), real(self, timestamp, shown_from)),
    )
    assert [number(frames[index]) for index in reversed(range(60))] == list(reversed(range(60)))
    assert len(frames._kept) <= 10
    assert len(seeks) <= 8  # every tenth frame, not every frame


def test_equal_times_are_counted_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packets do not tell frames apart, frames are found by counting."""
    frames = open_frames(write_clip(tmp_path / "clip.mp4", 20))
    monkeypatch.setattr(VideoFile, "_list_packets", lambda self: None)
    assert [number(frames[index]) for index in (12, 3, 4, 19)] == [12, 3, 4, 19]
    assert len(frames) == 20
    assert numbers(open_frames(frames.name, start=15)) == [15, 16, 17, 18, 19]


def test_packets_that_promise_wrong_times_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = VideoFile._list_packets

    def shifted(self: VideoFile) -> object:
        listing = real(self)
        assert listing is not None
        listing.times[:] = [time + 1 if index % 2 else time for index, time in enumerate(listing.times)]
        return listing

    monkeypatch.setattr(VideoFile, "_list_packets", shifted)
    frames = open_frames(write_clip(tmp_path / "clip.mp4", 20))
    assert [number(frames[index]) for index in (13, 2, 19)] == [13, 2, 19]


@pytest.mark.parametrize(
    ("name", "codec", "movflags"),
    [("clip.mp4", "libx264", "+faststart"), ("clip.mkv", "libx264", None), ("clip.avi", "mpeg4", None)],
)
def test_a_file_cut_short_gives_its_frames_and_then_an_error(
    tmp_path: Path, name: str, codec: str, movflags: str | None
) -> None:
    whole = write_clip(tmp_path / name, 60, codec=codec, movflags=movflags)
    frames = open_frames(cut(whole, 0.6))
    seen: list[int] = []
    with pytest.raises(ImageError, match=r"cannot read frame \d+ of|ends early") as caught:
        collect(frames, seen)
    assert seen == list(range(len(seen)))
    assert 5 <= len(seen) < 60
    assert str(len(seen)) in str(caught.value)
    assert "damaged='skip'" in str(caught.value)
    assert len(numbers(open_frames(frames.name, damaged="skip"))) >= len(seen)


def test_damage_in_the_middle_is_named_or_left_out(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", 60, codec="mpeg4", options={"qscale": "2"})
    content = bytearray(path.read_bytes())
    begin = content.index(b"00dc", len(content) // 2) + 8  # the data of a packet
    content[begin + 20 : begin + 220] = b"\x55" * 200
    path.write_bytes(content)
    seen: list[int] = []
    with pytest.raises(ImageError, match=r"cannot read frame \d+ of .*clip.avi") as caught:
        collect(open_frames(path), seen)
    assert seen == list(range(len(seen)))
    assert f"cannot read frame {len(seen)} of" in str(caught.value)
    assert len(numbers(open_frames(path, damaged="skip"))) > len(seen)


def test_no_contents_no_video_no_frame(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "clip.mp4", 20)
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("not a video")
    for path, message in [
        (cut(whole, 0.5), r"cannot read .*cut.mp4 \| got: Invalid data.*table of contents"),
        (empty, r"cannot read .*empty.mp4 \| got: an empty file"),
        (text, r"cannot read .*text.mp4 \| got: Invalid data"),
        (tmp_path / "none.mp4", r"cannot read .*none.mp4 \| got: no file of that name"),
    ]:
        with pytest.raises(ImageError, match=message):
            open_frames(path)
    with pytest.raises(ImageError, match=r"has no frame 20 \| got: 20 frames"):
        list(open_frames(whole, start=20))


def test_a_file_without_a_picture(tmp_path: Path) -> None:
    import av

    sound, bare = tmp_path / "sound.mka", tmp_path / "bare.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match=r"there is no video in .*sound.mka \| got: audio"):
        open_frames(sound)
    with av.open(str(bare), "w") as container:
        silent = container.add_stream("mpeg4", rate=10)
        silent.width, silent.height, silent.pix_fmt = 64, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(ImageError, match=r"there is no frame in .*bare.mkv|cannot read .*bare.mkv"):
        open_frames(bare)


def test_a_playlist_cannot_make_us_fetch(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = tmp_path / "list.m3u8"
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(ImageError, match=r"cannot read|no video|no frame"):
            open_frames(path)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody connected
            server.accept()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "start is not usable | got: -1"),
        ({"start": 5, "stop": 5}, "no frame is wanted | got: start=5, stop=5"),
        ({"every": 0}, "every is not usable"),
        ({"start": 1.5}, "start is not usable | got: 1.5"),
        ({"fps": 0.0}, "fps is not usable"),
    ],
)
def test_spans_that_make_no_sense(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_frames([paint(0)], **arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingExtraError, match=r'package av is needed to read clip.mp4 .* pip install "samrt\[video\]"'
    ):
        open_frames(path)


def test_frames_do_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    if resident_mib() is None:
        pytest.skip("no /proc")
    path = write_clip(tmp_path / "clip.mp4", 600, hw=(240, 320), gop=60, options={"preset": "ultrafast"})
    rss: list[float] = []
    gc.disable()
    try:
        for _ in open_frames(path):
            rss.append(resident_mib() or 0.0)
    finally:
        gc.enable()
    assert len(rss) == 600
    assert max(rss[100:]) - rss[99] < 15  # 500 frames of 0.11 MB as decoded, 0.23 MB as pictures
