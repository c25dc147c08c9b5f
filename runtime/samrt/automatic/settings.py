"""The parameters of automatic masks, checked once."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.automatic.grids import Float64Array, layer_grids
from samrt.segments import OUTPUT_MODES, OutputMode
from samrt_engines.errors import InputError, PromptError

_MOST_LAYERS = 8  # 87,381 crops


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """What `AutomaticMaskGenerator` was asked for; the names are the official ones."""

    grids: tuple[Float64Array, ...]
    """For each layer of crops, the points asked at: (N, 2) xy, shares of the crop's width and height."""
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    min_mask_region_area: float
    output_mode: OutputMode

    def __post_init__(self) -> None:
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            _check_number(name, getattr(self, name), 0, 1)
        _check_number("stability_score_offset", self.stability_score_offset, 0, math.inf)
        _check_number("crop_overlap_ratio", self.crop_overlap_ratio, 0, 1)
        _check_number("min_mask_region_area", self.min_mask_region_area, 0, math.inf)
        if self.output_mode not in OUTPUT_MODES:
            raise InputError("unknown output_mode", got=repr(self.output_mode), expected=", ".join(OUTPUT_MODES))


def read_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number in its range. Raises InputError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        expected = f"a whole number, {least} or more" if most is None else f"a whole number, {least} to {most}"
        raise InputError(f"{name} cannot be used", got=f"{value!r:.80}", expected=expected)
    return number


def read_grids(
    points_per_side: Any, point_grids: Sequence[ArrayLike] | None, crop_n_layers: Any, downscale: Any
) -> tuple[Float64Array, ...]:
    """The points asked at, one array for each layer of crops.

    Raises InputError for numbers out of range, and for both or neither of points_per_side and point_grids; PromptError for
    points that are not in the picture.
    """
    layers = read_count("crop_n_layers", crop_n_layers, 0, _MOST_LAYERS)
    downscale = read_count("crop_n_points_downscale_factor", downscale, 1)
    if (points_per_side is None) == (point_grids is None):
        raise InputError(
            "points_per_side and point_grids say the same thing",
            got="both" if point_grids is not None else "neither",
            expected="exactly one of them",
            fix="AutomaticMaskGenerator(model, points_per_side=None, point_grids=[...])",
        )
    if point_grids is not None:
        grids = tuple(_read_grid(grid) for grid in point_grids)
        if len(grids) <= layers:
            raise InputError(
                "a grid is missing", got=f"{len(grids)} point_grids", expected=f"{layers + 1}, one for each layer"
            )
        return grids
    per_side = read_count("points_per_side", points_per_side, 1, 4096)
    if per_side < downscale**layers:
        raise InputError(
            "the last layer of crops has no points left",
            got=f"points_per_side {per_side}, divided {layers} times by {downscale}",
            expected="1 or more",
            fix="crop_n_points_downscale_factor=1",
        )
    return layer_grids(per_side, layers, downscale)


def _read_grid(points: ArrayLike) -> NDArray[np.float64]:
    expected = "numbers (N, 2), x and y from 0 to 1"
    try:
        grid = np.array(points, np.float64)
    except (ValueError, TypeError):
        raise PromptError("not a point grid", got=f"{points!r:.80}", expected=expected) from None
    if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
        raise PromptError("not a point grid", got=f"an array of shape {grid.shape}", expected=expected)
    inside = (grid >= 0) & (grid <= 1)
    if not inside.all():
        raise PromptError("a point grid leaves the picture", got=f"{grid[~inside].flat[0]:g}", expected=expected)
    return grid


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or math.isinf(value):
        expected = f"a number, {least} or more" if math.isinf(most) else f"a number, {least} to {most}"
        raise InputError(f"{name} cannot be used", got=f"{value!r:.80}", expected=expected)
