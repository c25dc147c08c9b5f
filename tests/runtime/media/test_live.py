"""Streams over a local connection: read, cut, silent. And what cameras are called."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from samrt import ImageError, InputError
from samrt.media import Prefetched, open_frames
from samrt.media.live import CAMERA, URL, camera_address

from .clips import collect, numbers, write_clip


@contextmanager
def served(content: bytes, *, hold: bool = False) -> Iterator[str]:
    """A URL that answers one request with bytes; then the connection is closed, or held open in silence."""
    release = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                length = b"" if hold else b"Content-Length: %d\r\n" % len(content)
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + content)
                if hold:
                    release.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/clip.ts"
        finally:
            release.set()
            server.close()
            thread.join(30)


def test_a_stream_is_read_once(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.ts", 30).read_bytes()
    with served(content) as url, open_frames(url, start=2, every=3) as frames:
        assert frames.live
        assert frames.count is None
        timed = list(frames.timed())
        assert [frame.index for frame in timed] == numbers(frame.image for frame in timed) == list(range(2, 30, 3))
        assert [frame.time_s for frame in timed] == pytest.approx([index / 10 for index in range(2, 30, 3)])
        with pytest.raises(InputError, match="was read before"):
            list(frames)
        with pytest.raises(InputError, match="no random access"):
            frames._read_at(0)


def test_a_file_elsewhere_is_not_live(tmp_path: Path) -> None:
    """It is read whole: nothing of it is lost where nobody takes it in time."""
    content = write_clip(tmp_path / "clip.mp4", 30, movflags="+faststart").read_bytes()
    with served(content) as url, open_frames(url) as frames:
        assert not frames.live
        assert frames.count == 30
        assert numbers(Prefetched(frames)) == list(range(30))


def test_the_wanted_frames_end_a_stream(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.ts", 60).read_bytes()
    with served(content, hold=True) as url, open_frames(url, stop=5) as frames:
        assert numbers(frames) == [0, 1, 2, 3, 4]


def test_a_stream_that_falls_silent_is_an_error(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.ts", 200).read_bytes()
    with served(content, hold=True) as url, open_frames(url, timeout_s=0.7) as frames:
        seen: list[int] = []
        with pytest.raises(ImageError, match=r"stopped delivering \| got: .*, after \d+ frames"):
            collect(Prefetched(frames, drop=None), seen)
        assert seen == list(range(len(seen)))
        assert len(seen) > 100


def test_a_stream_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ImageError, match=r"cannot open http://127.0.0.1:\d+/x \| got: .*refused"):
        open_frames(f"http://127.0.0.1:{port}/x")


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(ImageError, match=r"cannot open camera:97 \| got: .* \| expected: a camera that is connected"):
        open_frames("camera:97")


def test_cameras_by_platform() -> None:
    assert camera_address("camera:0", "linux") == ("/dev/video0", "v4l2")
    assert camera_address("/dev/video2", "linux") == ("/dev/video2", "v4l2")
    assert camera_address("camera:0", "darwin") == ("0", "avfoundation")
    assert camera_address("camera:Integrated Webcam", "win32") == ("video=Integrated Webcam", "dshow")
    with pytest.raises(InputError, match="platform plan9"):
        camera_address("camera:0", "plan9")


@pytest.mark.parametrize("name", ["rtsp://host/stream", "RTSPS://h", "http://h/x.mp4", "udp://239.0.0.1:5000"])
def test_what_is_a_url(name: str) -> None:
    assert URL.fullmatch(name)


@pytest.mark.parametrize("name", ["clip.mp4", "a:b.mp4", "/dev/video", "C:\\clip.mp4", "file:///x", "concat:a|b"])
def test_what_is_a_file(name: str) -> None:
    assert not URL.fullmatch(name)
    assert not CAMERA.fullmatch(name)
