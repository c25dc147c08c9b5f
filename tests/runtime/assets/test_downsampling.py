"""Against slow loops over the points."""

from collections import defaultdict

import numpy as np
import pytest

from samrt.assets import Gaussians, Mesh, downsample_random, downsample_uniform, downsample_voxel
from samrt_engines.errors import InputError


def voxels(points: np.ndarray, size: float) -> dict[tuple[int, ...], list[int]]:
    """Rows of each voxel, voxels in order."""
    rows = defaultdict(list)
    for row, point in enumerate(points.astype(float)):
        rows[tuple(int(np.floor(x / size)) for x in point)].append(row)
    return dict(sorted(rows.items()))


def test_points_become_the_mean_of_their_voxel(ball: Mesh) -> None:
    small = downsample_voxel(ball, 0.15)
    groups = list(voxels(ball.vertices, 0.15).values())
    assert 40 < len(groups) < len(ball)
    assert len(small.faces) == 0
    np.testing.assert_allclose(small.vertices, [ball.vertices[rows].mean(axis=0) for rows in groups], atol=1e-6)
    np.testing.assert_allclose(small.colors, [ball.colors[rows].mean(axis=0) for rows in groups], atol=1e-6)
    assert downsample_voxel(Mesh.points(ball.vertices), 0.15).colors is None


def test_the_most_opaque_gaussian_of_a_voxel_stays_as_it_is(gaussians: Gaussians) -> None:
    small = downsample_voxel(gaussians, 0.25)
    groups = voxels(gaussians.positions, 0.25).values()
    kept = [max(rows, key=lambda row: gaussians.opacities[row]) for rows in groups]
    assert 50 < len(kept) < 70
    for name in ("positions", "colors_dc", "opacities", "scales", "rotations"):
        np.testing.assert_array_equal(getattr(small, name), getattr(gaussians, name)[kept])


def test_of_equally_opaque_gaussians_the_first_stays(gaussians: Gaussians) -> None:
    same = Gaussians(
        np.abs(gaussians.positions), gaussians.colors_dc, np.full(300, 0.5), gaussians.scales, gaussians.rotations
    )
    np.testing.assert_array_equal(downsample_voxel(same, 1).positions, same.positions[:1])


def test_a_voxel_begins_at_multiples_of_its_size() -> None:
    points = Mesh.points([[-0.01, 0, 0], [0.01, 0, 0], [0.09, 0, 0], [0.11, 0, 0]])
    np.testing.assert_allclose(downsample_voxel(points, 0.1).vertices[:, 0], [-0.01, 0.05, 0.11], atol=1e-7)


def test_every_kth(ball: Mesh, gaussians: Gaussians) -> None:
    np.testing.assert_array_equal(downsample_uniform(ball, 5).vertices, ball.vertices[::5])
    np.testing.assert_array_equal(downsample_uniform(ball, 5).colors, ball.colors[::5])
    np.testing.assert_array_equal(downsample_uniform(gaussians, 7).rotations, gaussians.rotations[::7])
    assert len(downsample_uniform(gaussians, 10**9)) == 1


def test_a_random_part_follows_the_seed(gaussians: Gaussians) -> None:
    small = downsample_random(gaussians, 0.3, seed=1)
    assert len(small) == 90
    rows = [int(np.flatnonzero((gaussians.positions == position).all(axis=1))[0]) for position in small.positions]
    assert rows == sorted(set(rows))
    np.testing.assert_array_equal(small.opacities, gaussians.opacities[rows])
    np.testing.assert_array_equal(downsample_random(gaussians, 0.3, seed=1).positions, small.positions)
    assert (downsample_random(gaussians, 0.3, seed=2).positions != small.positions).any()
    np.testing.assert_array_equal(downsample_random(gaussians, 1).positions, gaussians.positions)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (downsample_voxel, 0, r"the voxel size is out of range \| got: 0 \| expected: above 0"),
        (downsample_voxel, -0.1, "got: -0.1"),
        (downsample_voxel, float("nan"), "got: nan"),
        (downsample_voxel, float("inf"), "got: inf"),
        (downsample_voxel, 1e-20, "the voxel size is too small for these points"),
        (downsample_uniform, 0, r"the step is out of range \| got: 0"),
        (downsample_random, 0, r"the part to keep is out of range \| got: 0"),
        (downsample_random, 1.1, "got: 1.1"),
        (downsample_random, 0.001, r"no point would be left \| got: 0.001 of 162"),
    ],
)
def test_out_of_range(ball: Mesh, function: object, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        function(ball, value)


def test_a_seed_below_0(ball: Mesh) -> None:
    with pytest.raises(InputError, match=r"the seed is out of range \| got: -1"):
        downsample_random(ball, 0.5, seed=-1)


def test_nothing_to_downsample() -> None:
    with pytest.raises(InputError, match="nothing to downsample"):
        downsample_uniform(Mesh.points(np.empty((0, 3))), 2)
