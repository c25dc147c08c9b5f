"""Pointmaps: torch's lower median, what counts as known, and both views."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from samrt.reconstruct.pointmap import (
    check_pointmap,
    from_opencv,
    lower_median,
    make_point_views,
    normalise_scene,
)
from samrt.reconstruct.preprocess import Window, crop_window, full_window
from samrt_engines.errors import InputError


def _scene(height: int = 40, width: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A pointmap with holes of all kinds, and a mask that crosses an edge once cropped."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 1, (height, width, 3)).astype(np.float32) + np.array([0, 0, 4], np.float32)
    points[3:6, 10:20] = np.inf
    points[20, 3, 1] = np.nan
    points[22:24, 8:12, 0] = -np.inf
    mask = np.zeros((height, width), bool)
    mask[15:35, 0:20] = True
    return points, mask


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_the_median_is_the_lower_one_also_of_repeated_values(count: int, times: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        values = rng.integers(0, 6, count).astype(np.float32)
        repeated = float(rng.integers(0, 6))
        whole = torch.from_numpy(np.append(values, np.full(times, repeated, np.float32)))
        holes = np.append(values, np.float32("nan"))
        assert lower_median(holes, (repeated, times)) == torch.nanmedian(whole).item()
    assert np.isnan(lower_median(np.array([np.nan], np.float32)))


def _torch_crop(points: torch.Tensor, window: Window) -> torch.Tensor:
    """(H, W, 3) -> (side, side, 3), zeros outside."""
    side = window.side
    out = torch.zeros((side, side, 3))
    rows, columns = window.inside((points.shape[0], points.shape[1]))
    out[rows.start - window.top : rows.stop - window.top, columns.start - window.left : columns.stop - window.left] = (
        points[rows, columns]
    )
    return out


def test_the_views_are_those_of_the_official_arithmetic() -> None:
    points, mask = _scene()
    crop = crop_window(mask, 1.2)
    assert crop.left < 0  # part of the crop lies outside
    views = make_point_views(check_pointmap(points, mask.shape), mask, crop, 28, 16)

    # The same in torch, with everything built whole.
    tensor = torch.from_numpy(points.copy())
    tensor[~torch.isfinite(tensor).all(-1)] = torch.nan
    cropped = _torch_crop(tensor, crop)
    inside = _torch_crop(torch.from_numpy(mask)[..., None].expand(-1, -1, 3).float(), crop)[..., 0] > 0
    shift = torch.nanmedian(cropped[inside], dim=0).values
    scale = torch.nanmedian((cropped - shift).abs().max(dim=-1).values)
    padded = torch.full((50, 50, 3), torch.nan)
    window = full_window(mask.shape)
    padded[-window.top : -window.top + 40] = tensor
    expected = []
    for view in (cropped, padded):
        planes = ((view - shift) / scale).permute(2, 0, 1)[None]
        small = functional.interpolate(
            functional.interpolate(planes, (28, 28), mode="nearest"), (16, 16), mode="nearest"
        )
        expected.append(small[0].permute(1, 2, 0))
    both = torch.stack(expected)
    known = torch.isfinite(both).all(-1)

    assert views.scale == pytest.approx(scale.item(), abs=0)
    np.testing.assert_array_equal(views.shift, shift.numpy())
    np.testing.assert_array_equal(views.valid, known.float().numpy())
    np.testing.assert_allclose(views.points, torch.where(known[..., None], both, 0).numpy(), rtol=0, atol=1e-6)
    assert 0 < views.valid[1].mean() < 1
    assert (views.points[views.valid == 0] == 0).all()


def test_what_lies_outside_of_the_picture_counts_as_points_at_the_origin() -> None:
    points = np.full((10, 10, 3), 5, np.float32)
    points[..., 0] += np.arange(10, dtype=np.float32)[:, None]
    mask = np.zeros((10, 10), bool)
    mask[0:9, 0:9] = True
    inside, _ = normalise_scene(points, mask, Window(0, 0, 10))
    outside, shift = normalise_scene(points, mask, Window(-10, -10, 20))
    assert inside == 2
    assert outside == np.abs(shift).max() == 9


def test_numbers_that_are_not_finite_are_unknown_and_the_callers_array_stays() -> None:
    points, mask = _scene()
    before = points.copy()
    checked = check_pointmap(points, mask.shape)
    np.testing.assert_array_equal(points, before)
    assert np.isnan(checked[20, 3]).all()
    assert np.isnan(checked[4, 12]).all()
    assert not np.isinf(checked).any()


def test_axes_turn_from_opencv() -> None:
    np.testing.assert_array_equal(from_opencv(np.array([[1.0, 2.0, 3.0]])), [[-1, -2, 3]])


def test_pointmaps_that_say_nothing_are_refused() -> None:
    points, mask = _scene()
    with pytest.raises(
        InputError, match=r"does not fit the picture.*got: float32 \(40, 50, 3\).*PyTorch3D axes: x left"
    ):
        check_pointmap(points, (50, 40))
    with pytest.raises(InputError, match=r"does not fit.*a depth map is not a pointmap"):
        check_pointmap(points[..., 2], mask.shape)
    with pytest.raises(InputError, match=r"does not fit.*got: int64"):
        check_pointmap(np.ones((40, 50, 3), np.int64), mask.shape)
    with pytest.raises(InputError, match="the pointmap is empty"):
        check_pointmap(np.full_like(points, np.inf), mask.shape)
    points[mask] = np.nan
    with pytest.raises(InputError, match=r"nothing about the object.*got: NaN or infinity at all 400 pixels"):
        normalise_scene(check_pointmap(points, mask.shape), mask, crop_window(mask, 1.2))
    flat = np.ones((40, 50, 3), np.float32)
    with pytest.raises(InputError, match="the pointmap is flat"):
        normalise_scene(flat, mask, Window(0, 0, 40))
