"""Views of a picture against torch and torchvision's arithmetic, written out here."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from samrt.reconstruct.preprocess import (
    Window,
    check_picture,
    crop_window,
    full_window,
    make_views,
    nearest,
    view_mask,
    view_object,
    view_rgb,
)
from samrt_engines.errors import ImageError, PromptError

from .doubles import NUMBERS


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _mask(height: int, width: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """True from row top to row bottom, both in."""
    mask = np.zeros((height, width), bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def _torch_window(planes: torch.Tensor, window: Window) -> torch.Tensor:
    """planes: (C, H, W), zeros outside: built whole, as the official code does."""
    height, width = planes.shape[1:]
    out = torch.zeros((planes.shape[0], window.side, window.side), dtype=planes.dtype)
    for row in range(window.side):
        y = row + window.top
        if not 0 <= y < height:
            continue
        for column in range(window.side):
            x = column + window.left
            if 0 <= x < width:
                out[:, row, column] = planes[:, y, x]
    return out


# Wide, tall and square; a crop inside, past one edge, past two, reducing and enlarging.
CASES = {
    "reduced": (90, 70, (20, 79, 5, 60), 28),
    "enlarged": (40, 60, (10, 22, 30, 41), 56),
    "past the corner": (50, 45, (0, 30, 20, 44), 42),
    "wide": (20, 130, (3, 15, 10, 110), 28),
    "as large": (80, 80, (10, 60, 10, 60), 60),
}


@pytest.mark.parametrize("case", CASES)
def test_colours_are_torchs_antialiased_resize_of_the_padded_window(case: str) -> None:
    height, width, box, px = CASES[case]
    picture, mask = _picture(height, width), _mask(height, width, *box)
    planes = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    for window in (crop_window(mask, 1.2), full_window((height, width))):
        whole = _torch_window(planes, window)
        expected = functional.interpolate(whole[None], (px, px), mode="bilinear", align_corners=False, antialias=True)[
            0
        ].permute(1, 2, 0)
        if window.side == px:
            expected = whole.permute(1, 2, 0)
        np.testing.assert_allclose(view_rgb(picture, window, px), expected.numpy(), atol=5e-6)


@pytest.mark.parametrize("case", CASES)
def test_masks_are_torchs_nearest(case: str) -> None:
    height, width, box, px = CASES[case]
    mask = _mask(height, width, *box) & (np.random.default_rng(1).random((height, width)) > 0.2)
    mask[box[0], box[2] : box[3] + 1] = mask[box[1], box[2] : box[3] + 1] = True
    mask[box[0] : box[1] + 1, box[2]] = mask[box[0] : box[1] + 1, box[3]] = True
    for window in (crop_window(mask, 1.2), full_window((height, width))):
        whole = _torch_window(torch.from_numpy(mask)[None].float(), window)
        expected = functional.interpolate(whole[None], (px, px), mode="nearest")[0, 0].numpy()
        view = view_mask(mask, window, px)
        assert view.dtype == np.float32
        for channel in range(3):
            np.testing.assert_array_equal(view[..., channel], expected)


@pytest.mark.parametrize(("source", "target"), [(518, 256), (7, 518), (259, 518), (777, 518), (1, 5), (16384, 518)])
def test_nearest_takes_torchs_samples(source: int, target: int) -> None:
    line = torch.arange(source, dtype=torch.float64)[None, None, None]
    expected = functional.interpolate(line, (1, target), mode="nearest")[0, 0, 0].long().numpy()
    np.testing.assert_array_equal(nearest(source, target), expected)


def test_a_crop_is_a_square_of_the_longer_side_with_margin() -> None:
    # 30 rows and 50 columns between first and last: side int(50 * 1.2) = 60 around (25, 45)
    assert crop_window(_mask(100, 100, 10, 40, 20, 70), 1.2) == Window(-5, 15, 60)
    # Truncated towards zero, also left of the picture: 8.5 - 12.5 = -4, 3.5 - 12.5 = -9; 21 * 1.2 = 25.2
    assert crop_window(_mask(30, 30, 0, 17, 0, 7), 1.2) == Window(-1, -6, 20)
    assert crop_window(_mask(40, 40, 2, 23, 6, 20), 1.2) == Window(0, 0, 25)
    assert crop_window(_mask(40, 40, 2, 4, 2, 5), 1.2) == Window(1, 2, 3)


def test_a_full_view_has_the_picture_in_its_middle() -> None:
    assert full_window((5, 10)) == Window(-2, 0, 10)
    assert full_window((10, 5)) == Window(0, -2, 10)


def test_views_come_in_the_models_order() -> None:
    picture, mask = _picture(40, 30), _mask(40, 30, 5, 25, 4, 20)
    views = make_views(picture, mask, NUMBERS)
    crop, full = crop_window(mask, NUMBERS.crop_scale), full_window((40, 30))
    px = NUMBERS.view_px
    expected = [
        view_rgb(picture, crop, px),
        view_rgb(picture, full, px),
        view_mask(mask, crop, px),
        view_mask(mask, full, px),
    ]
    np.testing.assert_array_equal(views, np.stack(expected))
    assert views.dtype == np.float32


def test_the_object_on_black_is_what_trellis_makes_of_a_picture_with_alpha() -> None:
    picture, mask = _picture(60, 50), _mask(60, 50, 8, 50, 10, 33)
    mask[20:30, 15:20] = False
    view = view_object(picture, mask, 1.2, 56)
    # microsoft/TRELLIS, in its own words: the box of alpha > 0.8 * 255, size int(42 * 1.2) = 50, centre (21.5, 29)
    rgba = Image.fromarray(np.dstack([picture, mask * np.uint8(255)]))
    square = np.asarray(rgba.crop((21.5 - 25, 29 - 25, 21.5 + 25, 29 + 25)).resize((56, 56), Image.Resampling.LANCZOS))
    colours = square.astype(np.float32) / 255
    expected = ((colours[..., :3] * colours[..., 3:]) * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.rint(view * 255), expected)
    assert (view[:2] == 0).all()
    assert view[28, 40:].any()


def test_a_wide_picture_does_not_cost_its_square() -> None:
    wide = np.zeros((2, 16000, 3), np.uint8)
    wide[:, 8000:] = 255
    view = view_rgb(wide, full_window((2, 16000)), 28)
    assert view[:13].max() == view[15:].max() == 0
    assert view[13:15, 20].min() > 0


def test_what_is_no_picture_with_a_mask_is_refused() -> None:
    picture = _picture(20, 30)
    with pytest.raises(PromptError, match="the mask is empty"):
        check_picture(picture, np.zeros((20, 30), bool))
    with pytest.raises(PromptError, match=r"of another size.*got: mask of shape \(30, 20\).*expected: \(20, 30\)"):
        check_picture(picture, np.ones((30, 20), bool))
    with pytest.raises(PromptError, match=r"not a bool array.*got: uint8.*fix: mask > 127"):
        check_picture(picture, np.ones((20, 30), np.uint8))
    with pytest.raises(ImageError, match=r"too large.*got: 20000 x 1 pixels.*fix: scale picture"):
        check_picture(np.zeros((1, 20000, 3), np.uint8), np.ones((1, 20000), bool))
    one = np.zeros((20, 30), bool)
    one[4, 5] = True
    with pytest.raises(PromptError, match=r"too small.*got: 1 x 1 pixels.*expected: at least 3 x 3"):
        crop_window(one, 1.2)
    with pytest.raises(PromptError, match="got: 12 x 2 pixels"):
        crop_window(_mask(20, 30, 3, 4, 3, 14), 1.2)
