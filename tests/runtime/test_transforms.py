import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional

from samrt import ImageError
from samrt.numbers import ImageNumbers
from samrt.transforms import Frame, image_to_input

STRETCH = ImageNumbers((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "stretch", True)
LONGEST = dataclasses.replace(STRETCH, resize="longest_side")
PICTURES = [(1, 1), (17, 2000), (2000, 17), (64, 64), (3, 5), (48, 64), (480, 640), (65, 63), (700, 600)]
RNG = np.random.default_rng(0)


def official(image: np.ndarray, hw: tuple[int, int], antialias: bool = True) -> np.ndarray:
    """ToTensor and Resize of the official predictor, on the 0..255 scale again."""
    unit = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    resized = functional.interpolate(unit, size=hw, mode="bilinear", antialias=antialias, align_corners=False)
    return (resized[0] * 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("hw", PICTURES)
def test_stretch_is_the_official_preprocessing(hw: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*hw, 3), np.uint8)
    result = image_to_input(image, STRETCH)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, official(image, (64, 64)), atol=1e-4, rtol=0)


def test_values_are_not_rounded() -> None:
    image = RNG.integers(0, 256, (50, 70, 3), np.uint8)
    exact, rounded = image_to_input(image, STRETCH), image_to_input(image, STRETCH, "uint8")
    assert rounded.dtype == np.uint8
    np.testing.assert_array_equal(rounded, np.rint(exact))
    assert (exact != rounded).mean() > 0.9


def test_without_antialias() -> None:
    image = RNG.integers(0, 256, (150, 70, 3), np.uint8)
    result = image_to_input(image, dataclasses.replace(STRETCH, antialias=False))
    np.testing.assert_allclose(result, official(image, (64, 64), antialias=False), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("hw", "content"), [((480, 640), (48, 64)), ((640, 480), (64, 48)), ((1, 1), (64, 64)), ((2000, 60), (64, 2))]
)
def test_longest_side_pads_with_the_mean_colour(hw: tuple[int, int], content: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*hw, 3), np.uint8)
    result = image_to_input(image, LONGEST)
    assert Frame(hw, LONGEST).content_hw == content
    np.testing.assert_allclose(result[: content[0], : content[1]], official(image, content), atol=1e-4, rtol=0)
    padding = np.ones((64, 64), bool)
    padding[: content[0], : content[1]] = False
    normalised = (result[padding] / 255 - np.array(LONGEST.mean)) / np.array(LONGEST.std)
    np.testing.assert_allclose(normalised, 0, atol=1e-5)


@pytest.mark.parametrize("hw", PICTURES)
def test_a_picture_resized_in_bytes_is_pillows(hw: tuple[int, int]) -> None:
    """The official ``ResizeLongestSide``: Pillow, bilinear, whole levels; then zeros after normalising."""
    image = RNG.integers(0, 256, (*hw, 3), np.uint8)
    numbers = dataclasses.replace(LONGEST, resize_dtype="uint8")
    height, width = Frame(hw, numbers).content_hw
    result = image_to_input(image, numbers)
    assert result.dtype == np.float32
    expected = np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(result[:height, :width], expected)
    padding = np.float32(np.array(numbers.mean, np.float32) * np.float32(255))
    assert (result[height:] == padding).all()
    assert (result[:, width:] == padding).all()
    if max(hw) > 700:
        assert (
            expected != np.rint(image_to_input(image, LONGEST)[:height, :width])
        ).any()  # rounding once is another thing


def test_a_thin_picture_keeps_a_column() -> None:
    """Not compared with torch 2.13, whose antialiased resize to width 1 repeats the first row."""
    image = np.repeat(np.arange(2000, dtype=np.uint8)[:, None], 3, axis=1)[..., None].repeat(3, axis=2) // 2
    frame = Frame((2000, 3), LONGEST)
    assert frame.content_hw == (64, 1)
    column = image_to_input(image, LONGEST)[:, 0]
    wide = image_to_input(np.repeat(image, 20, axis=1), LONGEST)[:, 0]
    np.testing.assert_allclose(column, wide, atol=1e-4)


def test_points_move_with_the_picture() -> None:
    corners = np.array([[0, 0], [640, 480], [320, 120]], np.float32)
    np.testing.assert_allclose(Frame((480, 640), STRETCH).input_from_image(corners), [[0, 0], [64, 64], [32, 16]])
    np.testing.assert_allclose(Frame((480, 640), LONGEST).input_from_image(corners), [[0, 0], [64, 48], [32, 12]])
    boxes = np.zeros((5, 2, 2), np.float32)
    assert Frame((480, 640), STRETCH).input_from_image(boxes).shape == (5, 2, 2)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected: uint8 \(H, W, 3\) RGB \| fix: samrt.as_rgb_uint8"):
        image_to_input(image, STRETCH)
