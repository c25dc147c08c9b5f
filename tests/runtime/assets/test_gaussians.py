from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from samrt.assets import Gaussians
from samrt.assets.gaussians import quaternion_from_rotation, rotation_from_quaternion
from samrt_engines.errors import InputError


def covariances(gaussians: Gaussians) -> np.ndarray:
    """R S S^T R^T of each, by scipy's rotations."""
    turns = Rotation.from_quat(gaussians.rotations, scalar_first=True).as_matrix()
    shapes = turns * gaussians.scales[:, None, :]
    return shapes @ shapes.transpose(0, 2, 1)


STRETCHED = np.array([[1.5, 0.2, 0, 1], [0, 0.7, -0.3, 2], [0.1, 0, 2, 3], [0, 0, 0, 1]])
TURNED = np.eye(4)
TURNED[:3, :3] = 3 * Rotation.from_rotvec([0.4, -1.1, 2.0]).as_matrix()
TURNED[:3, 3] = -1, 0.5, 2


@pytest.mark.parametrize("matrix", [STRETCHED, TURNED], ids=["stretched", "turned"])
def test_moving_carries_covariances(gaussians: Gaussians, matrix: np.ndarray) -> None:
    moved = gaussians.moved(matrix)
    expected = matrix[:3, :3] @ covariances(gaussians) @ matrix[:3, :3].T
    np.testing.assert_allclose(covariances(moved), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(moved.positions, gaussians.positions @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-5)
    np.testing.assert_array_equal(moved.opacities, gaussians.opacities)


@pytest.mark.parametrize("mirrored", [False, True])
def test_stretching_along_the_axes(gaussians: Gaussians, mirrored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the decomposition gives a rotation or one mirrored, which LAPACK may."""
    decompose = np.linalg.svd
    sign = np.array([-1 if mirrored else 1, 1, 1])
    monkeypatch.setattr("numpy.linalg.svd", lambda m: (decompose(m)[0] * sign, *decompose(m)[1:]))
    straight = replace(gaussians, rotations=np.tile([1, 0, 0, 0], (300, 1)), scales=np.tile([1, 3, 2], (300, 1)))
    moved = straight.moved(np.diag([1, 1.5, 1, 1]))
    np.testing.assert_allclose(covariances(moved), [np.diag([1, 20.25, 4])] * 300, atol=1e-4)


def test_quaternions_agree_with_scipy_at_every_angle() -> None:
    turns = Rotation.random(200, rng=np.random.default_rng(0)).as_matrix()
    half = Rotation.from_rotvec(np.pi * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, 0.8]])).as_matrix()
    turns = np.concatenate([turns, half, np.eye(3)[None]])
    quaternions = quaternion_from_rotation(turns)
    assert (quaternions[:, 0] >= 0).all()
    np.testing.assert_allclose(Rotation.from_quat(quaternions, scalar_first=True).as_matrix(), turns, atol=1e-12)
    np.testing.assert_allclose(rotation_from_quaternion(quaternions.astype(np.float32) * 7), turns, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("opacities", np.full(300, 2.5), r"opacities out of range \| got: 2.5..2.5 \| expected: 0..1, not logits"),
        ("scales", np.full((300, 3), -4.0), r"negative scales \| got: -4 \| expected: standard deviations, not logs"),
        ("rotations", np.zeros((300, 4)), r"rotations of length 0"),
        ("rotations", np.ones((300, 3)), r"rotations have the wrong shape \| got: \(300, 3\) \| expected: \(300, 4\)"),
        ("opacities", np.ones(299), r"opacities have the wrong shape \| got: \(299,\) \| expected: \(300,\)"),
        ("positions", np.full((300, 3), np.inf), "positions are not finite"),
    ],
)
def test_what_are_no_gaussians(gaussians: Gaussians, name: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(gaussians, **{name: values})


def test_display_colours() -> None:
    one = Gaussians(np.zeros((1, 3)), np.array([[0, 1, -9]]), np.ones(1), np.ones((1, 3)), np.ones((1, 4)))
    np.testing.assert_allclose(one.rgb, [[0.5, 0.78209479, 0]], atol=1e-7)
