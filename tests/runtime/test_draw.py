import numpy as np
import pytest

from samrt import ImageError, PromptError, grid, overlay
from samrt.draw import PALETTE

GREY = np.full((120, 160, 3), 128, np.uint8)


def square(y: int = 30, x: int = 40, side: int = 50) -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_a_mask_is_tinted_and_nothing_else() -> None:
    before = GREY.copy()
    drawn = overlay(GREY, square(), alpha=0.5)
    assert (drawn.shape, drawn.dtype) == (GREY.shape, np.uint8)
    np.testing.assert_array_equal(GREY, before)
    np.testing.assert_allclose(drawn[55, 65], (128 + np.array(PALETTE[0])) / 2, atol=2)
    np.testing.assert_array_equal(drawn[:15], 128)
    np.testing.assert_array_equal(drawn[:, 110:], 128)


def test_alpha() -> None:
    np.testing.assert_array_equal(overlay(GREY, square(), alpha=0)[55, 65], 128)
    np.testing.assert_allclose(overlay(GREY, square(), alpha=1)[55, 65], PALETTE[0], atol=2)


def test_small_masks_lie_on_top_whatever_their_order() -> None:
    masks = np.stack([square(50, 60, 10), square()])
    drawn = overlay(GREY, masks, alpha=1)
    np.testing.assert_allclose(drawn[55, 65], PALETTE[0], atol=2)
    np.testing.assert_allclose(drawn[40, 50], PALETTE[1], atol=2)


def test_colours_are_distinct() -> None:
    colours = np.array(PALETTE, float)
    distances = np.linalg.norm(colours[:, None] - colours, axis=-1) + np.eye(len(colours)) * 999
    assert distances.min() > 55


def test_points_and_boxes() -> None:
    drawn = overlay(GREY, points=[[20, 20], [120, 80], [60, 60]], labels=[1, 0, -1], boxes=[80, 20, 140, 60])
    green, red = drawn[20, 20].astype(int), drawn[82, 120].astype(int)
    assert green[1] > green[0] + 60
    assert np.abs(drawn[58:63, 58:63].astype(int) - 128).max() == 0  # label -1 is no point
    assert (drawn[75:86, 115:126].astype(int) @ [1, -1, 0]).max() > 100, red
    assert (drawn[20, 85:136] == PALETTE[0]).all()


def test_prompts_at_the_edge_and_scores() -> None:
    masks = np.stack([square(), square(0, 0, 3), np.zeros((120, 160), bool)])
    overlay(GREY, masks, points=[[-1, -1], [161, 121]], boxes=[[-1, -1, 161, 121]], scores=[0.97, 0.5, 0.1])
    overlay(GREY[:1, :1], np.ones((1, 1), bool), points=[[0, 0]], boxes=[0, 0, 0, 0], scores=[1.0])


def test_zoom() -> None:
    drawn = overlay(GREY, square(), zoom=3, points=[[20, 20]])
    assert drawn.shape == (360, 480, 3)
    assert drawn[60, 60, 1] > 150


def test_masks_of_a_result() -> None:
    assert overlay(GREY, square()[None, None]).shape == GREY.shape
    np.testing.assert_array_equal(overlay(GREY), GREY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": np.ones((10, 10), bool)}, r"do not lie on the picture .* expected: bool \(M, 120, 160\)"),
        ({"masks": np.ones((120, 160))}, "do not lie on the picture"),
        ({"alpha": 2}, "alpha in 0..1"),
        ({"zoom": 0}, "zoom >= 1"),
    ],
)
def test_what_cannot_be_drawn(arguments: dict, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        overlay(GREY, **arguments)
    with pytest.raises(PromptError, match="scores and masks do not match"):
        overlay(GREY, square(), scores=[1, 2])


def test_grid() -> None:
    sheet = grid([GREY, GREY[:, :60], np.zeros((10, 10), np.uint8)], columns=2, captions=["a", "b\nc", "d" * 500])
    assert sheet.dtype == np.uint8
    gap = 480 // 24
    assert sheet.shape[1] == 2 * 480 + 3 * gap
    cell = sheet[gap : gap + 720, gap : gap + 480]  # as high as the tallest picture may be
    assert (cell == 128).all(axis=-1).sum() == 480 * 360  # aspect kept
    assert grid([GREY], columns=5, cell_px=100).shape == (83, 108, 3)


def test_grid_refuses() -> None:
    for arguments in ([[]], [[GREY], 0], [[GREY], 1, ["a", "b"]]):
        with pytest.raises(ImageError, match="cannot lay out a contact sheet"):
            grid(*arguments)
    with pytest.raises(ImageError, match="too large"):
        grid([GREY], cell_px=100_000)
