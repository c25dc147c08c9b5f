"""Gaussians and poses from raw numbers, against torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from samrt.assets.frames import Y_UP_FROM_Z_UP
from samrt.assets.gaussians import rotation_from_quaternion
from samrt.numbers import GaussianNumbers, PoseNumbers
from samrt.reconstruct.gaussian_decoding import decode_gaussians
from samrt.reconstruct.pose import decode_pose, rotation_from_6d
from samrt_engines.errors import InputError

GAUSSIANS = GaussianNumbers(scale_bias=0.004, min_kernel=0.0009, rotation_gain=0.1, opacity_bias=0.1)
POSE = PoseNumbers((0.1, -0.2, 0.0, 0.3, 0.0, 0.5), (0.6, 0.7, 0.3, 0.4, 0.4, 0.6))


def test_raw_channels_become_gaussians() -> None:
    rng = np.random.default_rng(0)
    raw = {
        name: rng.normal(0, 3, (5, 4, width)).astype(np.float32)
        for name, width in (("offsets", 3), ("colors", 3), ("scales", 3), ("rotations", 4), ("opacities", 1))
    }
    raw["scales"][0, 0] = (200, -200, 0)
    raw["opacities"][0, 0] = 200
    before = {name: array.copy() for name, array in raw.items()}
    coords = rng.integers(0, 64, (5, 3)).astype(np.int32)
    made = decode_gaussians(raw, coords, 64, GAUSSIANS)

    t = {name: torch.from_numpy(array).double() for name, array in raw.items()}
    bias = torch.log(torch.expm1(torch.tensor(0.004, dtype=torch.float64)))
    scales = torch.sqrt(functional.softplus(t["scales"] + bias, threshold=100) ** 2 + 0.0009**2)
    middles = (torch.from_numpy(coords).double() + 0.5) / 64 - 0.5
    expected = {
        "positions": t["offsets"] + middles[:, None],
        "colors_dc": t["colors"],
        "scales": scales,
        "rotations": 0.1 * t["rotations"] + torch.tensor([1.0, 0, 0, 0]),
        "opacities": torch.sigmoid(t["opacities"] + np.log(0.1 / 0.9)),
    }
    for name, value in expected.items():
        flat = value.reshape(20, -1).squeeze(-1).numpy()
        np.testing.assert_allclose(getattr(made, name), flat, rtol=2e-5, atol=1e-7, err_msg=name)
    for name, array in before.items():
        np.testing.assert_array_equal(raw[name], array)


def test_a_zero_channel_has_the_biases_of_the_manifest() -> None:
    zero = {
        n: np.zeros((1, 1, w), np.float32) for n, w in (("offsets", 3), ("colors", 3), ("scales", 3), ("rotations", 4))
    }
    made = decode_gaussians(
        {**zero, "opacities": np.zeros((1, 1, 1), np.float32)}, np.zeros((1, 3), np.int32), 32, GAUSSIANS
    )
    np.testing.assert_allclose(made.opacities, 0.1, rtol=1e-6)
    np.testing.assert_allclose(made.scales, np.hypot(0.004, 0.0009), rtol=1e-5)
    np.testing.assert_array_equal(made.rotations, [[1, 0, 0, 0]])
    np.testing.assert_allclose(made.positions, 0.5 / 32 - 0.5)


def _tokens(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    widths = {"rotation_6d": 6, "translation": 3, "scale": 3, "translation_scale": 1}
    return {name: rng.normal(size=(1, 1, width)).astype(np.float32) for name, width in widths.items()}


def test_rotations_have_the_two_vectors_as_columns() -> None:
    values = np.random.default_rng(3).normal(size=6)
    rotation = rotation_from_6d(values)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation[:, 0], values[:3] / np.linalg.norm(values[:3]))
    assert rotation[:, 1] @ values[3:] > 0
    assert np.cross(rotation[:, 0], values[3:]) @ rotation[:, 2] > 0


@pytest.mark.parametrize("shrunk", [1, 2])
def test_a_pose_moves_points_as_the_rows_of_the_official_convention(shrunk: int) -> None:
    tokens, shift = _tokens(), np.array([0.5, -1.0, 6.0], np.float32)
    pose = decode_pose(tokens, POSE, scene_scale=2.5, scene_shift=shift, shrunk=shrunk)
    raw = tokens["rotation_6d"].reshape(6) * np.array(POSE.rotation_std) + np.array(POSE.rotation_mean)
    rotation = rotation_from_quaternion(pose.rotation[None])[0]
    np.testing.assert_allclose(rotation, rotation_from_6d(raw), atol=1e-6)
    size = np.exp(tokens["scale"].astype(np.float64)).mean() * 2.5 * shrunk
    np.testing.assert_allclose(pose.scale, size, rtol=1e-6)
    np.testing.assert_allclose(pose.translation, tokens["translation"].reshape(3) * 2.5 + shift, rtol=1e-6)

    points = np.random.default_rng(1).uniform(-0.5, 0.5, (10, 3))
    expected = (size * points) @ rotation + pose.translation  # points as rows
    z_up = np.c_[points, np.ones(10)]
    np.testing.assert_allclose((z_up @ pose.matrix_z_up.T)[:, :3], expected, atol=1e-5)
    y_up = z_up @ Y_UP_FROM_Z_UP.T  # as they stand in a GLB file
    np.testing.assert_allclose(y_up[:, :3], np.c_[points[:, 0], points[:, 2], -points[:, 1]])
    np.testing.assert_allclose((y_up @ pose.matrix_y_up.T)[:, :3], expected, atol=1e-5)


def test_two_directions_that_are_one_are_refused() -> None:
    flat = replace(POSE, rotation_mean=(1.0, 0.0, 0.0, 2.0, 0.0, 0.0))
    tokens = {**_tokens(), "rotation_6d": np.zeros((1, 1, 6), np.float32)}
    with pytest.raises(InputError, match=r"the sampled rotation is none.*expected: two directions"):
        decode_pose(tokens, flat, scene_scale=1, scene_shift=np.zeros(3, np.float32), shrunk=1)
