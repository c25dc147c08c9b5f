"""Crops and grids: numbers worked out by hand from the published rules."""

import numpy as np
import pytest

from samrt.automatic.crops import Crop, crop_boxes, cut_off
from samrt.automatic.grids import layer_grids, point_grid


def test_one_layer() -> None:
    """overlap = int(0.25 * 100) = 25; crops of ceil((25 + 200) / 2) = 113 by ceil((25 + 100) / 2) = 63."""
    whole, *crops = crop_boxes((100, 200), 1, 0.25)
    assert whole == Crop(0, 0, 200, 100, 0)
    assert [tuple(crop) for crop in crops] == [
        (0, 0, 113, 63, 1),
        (0, 38, 113, 100, 1),
        (88, 0, 200, 63, 1),
        (88, 38, 200, 100, 1),
    ]


def test_layers_have_four_times_as_many_each() -> None:
    crops = crop_boxes((1080, 1920), 3, 512 / 1500)
    assert np.bincount([crop.layer for crop in crops]).tolist() == [1, 4, 16, 64]
    for layer in (1, 2, 3):
        covered = np.zeros((1080, 1920), np.bool_)
        for crop in crops:
            if crop.layer == layer:
                covered[crop.y0 : crop.y1, crop.x0 : crop.x1] = True
        assert covered.all()


@pytest.mark.parametrize("hw", [(1, 1), (5, 3000), (3, 2), (1, 4)])
def test_no_crop_is_empty(hw: tuple[int, int]) -> None:
    crops = crop_boxes(hw, 2, 512 / 1500)
    assert min(crop.area for crop in crops) > 0
    assert all(crop.x1 <= hw[1] and crop.y1 <= hw[0] for crop in crops)


def test_boxes_at_crop_edges_are_cut_off_and_those_at_image_edges_are_not() -> None:
    crop = Crop(100, 0, 300, 200, 1)
    boxes = np.array(
        [
            [150, 50, 250, 150],
            [120, 50, 250, 150],  # 20 px from the crop's left edge
            [121, 50, 250, 150],
            [150, 0, 250, 150],  # at the picture's top
            [150, 50, 279, 150],
            [150, 50, 280, 150],
            [150, 50, 250, 199],  # at the picture's bottom
        ]
    )
    assert cut_off(boxes, crop, (200, 400)).tolist() == [False, True, False, False, False, True, False]
    assert not cut_off(boxes, Crop(0, 0, 400, 200, 0), (200, 400)).any()


def test_grid() -> None:
    np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert [len(grid) for grid in layer_grids(32, 2, 2)] == [1024, 256, 64]
    assert [len(grid) for grid in layer_grids(7, 1, 2)] == [49, 9]
