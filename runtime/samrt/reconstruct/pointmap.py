"""A pointmap to the views that the model sees of it, and the scale and shift that bring poses back.

A pointmap says where the surface behind each pixel is, in the camera's frame as PyTorch3D has it: x left, y up, z into the
picture (OpenCV's x right, y down, z forward times (-1, -1, 1): `from_opencv`). Where nothing is known any of the three
numbers may be NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.reconstruct.preprocess import BoolArray, Float32Array, Window, full_window, nearest, take_window
from samrt_engines.errors import InputError

AXES = "PyTorch3D axes: x left, y up, z into the picture"


@dataclass(frozen=True, eq=False)
class PointViews:
    """What the model sees of a pointmap.

    points: float32 (2, px, px, 3): crop and whole picture, (p - shift) / scale; 0 where nothing is known
    valid: float32 (2, px, px), 1 where something is known
    scale, shift: float, float32 (3,): of the scene, in the pointmap's unit
    """

    points: Float32Array
    valid: Float32Array
    scale: float
    shift: Float32Array


def from_opencv(pointmap: NDArray[np.floating[Any]]) -> Float32Array:
    """Points (..., 3) of OpenCV's camera (x right, y down, z forward) in PyTorch3D's (x left, y up, z forward)."""
    return np.asarray(pointmap, np.float32) * np.array([-1, -1, 1], np.float32)


def check_pointmap(pointmap: Any, image_hw: tuple[int, int]) -> Float32Array:
    """Check a caller's pointmap.

    returns: float32 (H, W, 3), a copy; all three numbers NaN where any is NaN or infinite
    Raises InputError for another shape or kind, and where nothing is known at all.
    """
    array = np.asarray(pointmap)
    if array.shape != (*image_hw, 3) or array.dtype.kind != "f":
        raise InputError(
            "the pointmap does not fit the picture",
            got=f"{array.dtype} {array.shape}",
            expected=f"float32 ({image_hw[0]}, {image_hw[1]}, 3), {AXES}",
            fix="resize it by nearest neighbour; a depth map is not a pointmap: x and y are needed too",
        )
    points = array.astype(np.float32)
    points[~np.isfinite(points).all(axis=2)] = np.nan
    if np.isnan(points[..., 0]).all():
        raise InputError("the pointmap is empty", got="NaN or infinity everywhere", expected=f"finite points, {AXES}")
    return points


def lower_median(values: Float32Array, repeated: tuple[float, int] = (0.0, 0)) -> float:
    """The median as torch has it: of an even count the lower of the two in the middle. NaN are left out.

    values: any shape
    repeated: a value and how many times it occurs beside `values`
    returns: NaN where there is nothing
    """
    known = values[~np.isnan(values)]
    value, times = repeated
    if len(known) + times == 0:
        return float("nan")
    rank = (len(known) + times - 1) // 2
    below = int(np.count_nonzero(known < value)) if times else 0
    if times and below <= rank < below + times:
        return float(np.float32(value))
    if times and rank >= below:
        rank -= times
    return float(np.partition(known, rank)[rank])


def normalise_scene(pointmap: Float32Array, mask: BoolArray, crop: Window) -> tuple[float, Float32Array]:
    """Scale and shift of the crop: shift is where the object is, scale how far the scene spreads around it.

    pointmap: float32 (H, W, 3), NaN where unknown
    returns: scale, shift float32 (3,)
    Raises InputError where no point of the object is known, or all lie in one place.

    The crop's part outside of the picture counts as points at the origin, as in the official code.
    """
    rows, columns = crop.inside(mask.shape)
    points = pointmap[rows, columns]
    on_object = points[mask[rows, columns]]
    shift = np.array([lower_median(on_object[:, axis]) for axis in range(3)], np.float32)
    if np.isnan(shift).any():
        raise InputError(
            "the pointmap says nothing about the object",
            got=f"NaN or infinity at all {len(on_object)} pixels of the mask",
            expected="finite points on the object",
            fix="take a mask whose depth is known, or another source of depth",
        )
    spread = np.abs(points - shift).max(axis=2)
    outside = crop.side**2 - spread.size
    scale = lower_median(spread, (float(np.abs(shift).max()), outside))
    if not scale > 0:
        raise InputError(
            "the pointmap is flat", got="half of its points or more in one place", expected="a pointmap of a scene"
        )
    return scale, shift


def make_point_views(pointmap: Float32Array, mask: BoolArray, crop: Window, view_px: int, point_px: int) -> PointViews:
    """Both views of a pointmap: by nearest neighbour to the size of the picture's views, from there to their own.

    pointmap: float32 (H, W, 3) from `check_pointmap`; mask: bool (H, W)
    Raises InputError: see `normalise_scene`.
    """
    scale, shift = normalise_scene(pointmap, mask, crop)
    full = full_window(mask.shape)
    views = []
    for window, fill in ((crop, 0.0), (full, np.nan)):  # a crop's outside is known to be at the origin; padding is not
        index = nearest(window.side, view_px)[nearest(view_px, point_px)]
        views.append((take_window(pointmap, window, index, fill) - shift) / np.float32(scale))
    points: Float32Array = np.stack(views)
    valid: BoolArray = np.asarray(np.isfinite(points).all(axis=3))
    return PointViews(np.where(valid[..., None], points, np.float32(0)), valid.astype(np.float32), scale, shift)
