"""Voxels from logits: order, interior, and the cap."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from samrt.reconstruct.occupancy import cap_voxels, occupied_voxels, prune_interior
from samrt_engines.errors import InputError


def _ball(grid: int, radius: float) -> np.ndarray:
    place = np.indices((grid,) * 3) - (grid - 1) / 2
    return (radius - np.sqrt((place**2).sum(axis=0))).astype(np.float32)


def test_occupied_voxels_come_in_lexicographic_order() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 1, 9, 9, 9)).astype(np.float32)
    logits[0, 0, 0, 0, 0] = 0  # zero is not occupied
    coords = occupied_voxels(logits)
    expected = torch.argwhere(torch.from_numpy(logits) > 0)[:, 2:].numpy()
    assert coords.dtype == np.int32
    np.testing.assert_array_equal(coords, expected)


def test_no_occupied_voxel_is_a_clear_error() -> None:
    with pytest.raises(InputError, match=r"no voxel is occupied.*got: a largest logit of -0.25.*fix: try another seed"):
        occupied_voxels(np.full((1, 1, 4, 4, 4), -0.25, np.float32))


@pytest.mark.parametrize("grid", [12, 17])
def test_a_voxel_is_interior_where_all_of_its_neighbourhood_is_occupied(grid: int) -> None:
    logits = _ball(grid, grid * 0.7)  # reaches past the grid, so that some touch its edge
    coords = occupied_voxels(logits)
    full = functional.conv3d(torch.from_numpy(logits > 0).float()[None, None], torch.ones((1, 1, 3, 3, 3)), padding=1)[
        0, 0
    ].numpy()
    expected = coords[full[tuple(coords.T)] < 27]
    kept = prune_interior(coords, grid)
    np.testing.assert_array_equal(kept, expected)
    assert 0 < len(kept) < len(coords)


def test_few_enough_voxels_stay_as_they_are() -> None:
    coords = occupied_voxels(_ball(10, 4))
    kept, shrunk = cap_voxels(coords, len(coords), np.random.default_rng(0))
    assert kept is coords
    assert shrunk == 1


def test_too_many_voxels_are_halved_around_the_middle_of_their_box() -> None:
    coords = prune_interior(occupied_voxels(_ball(24, 9.2)), 24) + np.array([0, 3, -1], np.int32)
    kept, shrunk = cap_voxels(coords, len(coords) - 1, np.random.default_rng(0))
    tensor = torch.from_numpy(coords).float()
    middle = (tensor.min(0).values + tensor.max(0).values) / 2
    expected = torch.unique(torch.round((tensor - middle) / 2 + middle).int(), dim=0).numpy()
    assert shrunk == 2
    np.testing.assert_array_equal(kept, expected)
    assert kept.dtype == np.int32
    assert len(kept) < len(coords) / 3


def test_still_too_many_are_thinned_at_random_in_order() -> None:
    coords = occupied_voxels(_ball(24, 11))
    kept, shrunk = cap_voxels(coords, 50, np.random.default_rng(0))
    again, _ = cap_voxels(coords, 50, np.random.default_rng(0))
    other, _ = cap_voxels(coords, 50, np.random.default_rng(1))
    halved, _ = cap_voxels(coords, len(coords) - 1, np.random.default_rng(0))
    assert (len(kept), shrunk) == (50, 2)
    assert {tuple(row) for row in kept.tolist()} <= {tuple(row) for row in halved.tolist()}
    assert kept.tolist() == sorted(kept.tolist())
    np.testing.assert_array_equal(kept, again)
    assert kept.tolist() != other.tolist()
