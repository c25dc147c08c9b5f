import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samrt import ImageError, as_rgb_uint8, read_image
from samrt.media import open_frames

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def encoded(picture: PIL.Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = PIL.Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats(kind: str) -> None:
    np.testing.assert_array_equal(read_image(encoded(RGB, kind, **({"lossless": True} if kind == "WEBP" else {}))), RGB)


def test_paths_files_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "picture.txt"  # the name does not matter
    path.write_bytes(encoded(RGB))
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            np.testing.assert_array_equal(read_image(source), RGB)


def test_jpeg_is_near() -> None:
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(read_image(encoded(smooth, "JPEG")).astype(int), smooth, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    upright = read_image(encoded(RGB, "PNG", exif=exif))
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }
    np.testing.assert_array_equal(upright, turned[orientation])
    assert upright.flags.c_contiguous


def test_other_modes() -> None:
    grey = RGB[..., 0]
    np.testing.assert_array_equal(read_image(encoded(grey)), np.stack([grey] * 3, -1))
    rgba = np.dstack([RGB, RNG.integers(0, 256, (6, 9), np.uint8)])
    np.testing.assert_array_equal(read_image(encoded(rgba)), RGB)  # dropped, not composited
    palette = PIL.Image.fromarray(RGB).quantize(54)
    np.testing.assert_array_equal(read_image(encoded(palette)), np.asarray(palette.convert("RGB")))
    cmyk = PIL.Image.fromarray(RGB).convert("CMYK")
    np.testing.assert_array_equal(read_image(encoded(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))
    deep = RNG.integers(0, 65536, (6, 9), np.uint16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read_image(encoded(deep, kind))[..., 0], deep >> 8)
    bits = PIL.Image.fromarray(grey > 128)
    np.testing.assert_array_equal(read_image(encoded(bits))[..., 1], np.where(grey > 128, 255, 0))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", r"cannot read the picture \| got: an empty file"),
        (b"not a picture at all", r"not a picture of a known format \| expected: JPEG, PNG, WEBP, BMP, TIFF, GIF"),
        (encoded(RGB)[:60], "a damaged file"),
        (encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8), "JPEG")[:900], "a damaged file"),
        (encoded(RGB, "PPM"), r"not a picture of a known format \| expected: JPEG, PNG, WEBP, BMP, TIFF, GIF"),
    ],
)
def test_what_is_not_a_picture(source: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_a_still_gif() -> None:
    palette = PIL.Image.fromarray(RGB).quantize(54)
    np.testing.assert_array_equal(read_image(encoded(palette, "GIF")), np.asarray(palette.convert("RGB")))
    assert len(np.unique(read_image(encoded(palette, "GIF")))) > 50


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    frames = [PIL.Image.fromarray(np.roll(RGB, shift, axis=1)) for shift in range(3)]
    path = tmp_path / "dance.png"
    path.write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100))
    with pytest.raises(
        ImageError,
        match=r"dance.png is an animation \| got: a GIF of several frames \| expected: one picture \| "
        r"fix: as a video: samrt track, samrt.media.open_frames; as a picture: save one of its frames as PNG",
    ):
        read_image(path)
    with open_frames(path) as video:  # as the error says
        assert [frame.shape for frame in video] == [RGB.shape] * 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="got: "):
        read_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty.png \| got: an empty file"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="a device, pipe or socket"):
        read_image("/dev/null")
    with pytest.raises(ImageError, match=r"the path 'a\\x00b'"):
        read_image("a\0b")


@pytest.mark.parametrize("size", [(16_385, 1), (8_000, 8_000), (100_000, 100_000)])
def test_a_bomb_is_refused_from_its_header(size: tuple[int, int]) -> None:
    bomb = png_claiming(*size)
    read_image(encoded(RGB))  # so that Pillow's own modules are loaded
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"is too large \| got: .*pixels.* \| expected: at most 50000000 pixels"):
            read_image(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_caps_can_be_set() -> None:
    with pytest.raises(ImageError, match="too large"):
        read_image(encoded(RGB), max_pixels=53)
    with pytest.raises(ImageError, match="too large"):
        read_image(encoded(RGB), max_side=8)
    assert read_image(encoded(RGB), max_pixels=54, max_side=9).shape == (6, 9, 3)


def test_arrays() -> None:
    grey = RGB[..., 0]
    assert as_rgb_uint8(RGB) is RGB
    for array in (grey, grey[..., None], grey.astype(np.uint16) * 256, grey.astype(np.float64) / 255):
        np.testing.assert_array_equal(as_rgb_uint8(array), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(as_rgb_uint8(np.dstack([RGB, grey])), RGB)
    np.testing.assert_array_equal(as_rgb_uint8(grey > 128)[..., 0], np.where(grey > 128, 255, 0))
    np.testing.assert_array_equal(as_rgb_uint8(RGB.astype(np.float16) / 255), RGB)
    np.testing.assert_array_equal(as_rgb_uint8(RGB.astype(">u2") << 8), RGB)
    assert as_rgb_uint8(RGB.transpose(1, 0, 2)).flags.c_contiguous


def test_pil_images() -> None:
    np.testing.assert_array_equal(as_rgb_uint8(PIL.Image.fromarray(RGB)), RGB)
    deep = RNG.integers(0, 65536, (6, 9), np.uint16)
    np.testing.assert_array_equal(as_rgb_uint8(PIL.Image.fromarray(deep))[..., 2], deep >> 8)
    np.testing.assert_array_equal(as_rgb_uint8(PIL.Image.fromarray(deep.astype(np.int32)))[..., 0], deep >> 8)
    unit = RGB[..., 0].astype(np.float32) / 255
    np.testing.assert_array_equal(as_rgb_uint8(PIL.Image.fromarray(unit))[..., 0], RGB[..., 0])
    with pytest.raises(ImageError, match="empty"):
        as_rgb_uint8(PIL.Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="expected: 0 to 65535"):
        as_rgb_uint8(PIL.Image.fromarray(np.full((2, 2), 70_000, np.int32)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "the picture is empty"),
        (np.zeros((0, 5), np.uint8), "the picture is empty"),
        (np.zeros(5, np.uint8), "not a picture"),
        (np.zeros((5, 5, 2), np.uint8), "not a picture"),
        (np.zeros((3, 5, 7), np.uint8), r"transpose\(1, 2, 0\), where the channels come first"),
        (np.zeros((2, 5, 7, 3), np.uint8), "a list of pictures"),
        (np.zeros((5, 5), np.int64), r"fix: image.astype\(numpy.uint8\) for values 0..255"),
        (np.zeros((5, 5), np.complex64), "not understood"),
        (np.full((5, 5), 200.0), r"values from 200 to 200 .* fix: image.astype\(numpy.uint8\)"),
        (np.full((5, 5), -0.5), r"fix: numpy.clip\(image, 0, 1\)"),
        (np.full((5, 5), np.nan), "NaN among the values"),
        (np.full((5, 5), np.inf), "values from inf to inf"),
        (None, "not a picture"),
        ("picture.png", r"not a picture .* fix: samrt.read_image"),
        ([[1, 2], [3]], "not a picture"),
    ],
)
def test_arrays_that_are_no_pictures(array: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_rgb_uint8(array)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]))
def test_any_damage_is_a_picture_or_one_clear_error(data: st.DataObject, kind: str) -> None:
    content = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    try:
        image = read_image(bytes(content), max_pixels=100_000)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_one_clear_error(content: bytes) -> None:
    with pytest.raises(ImageError):
        read_image(content)
