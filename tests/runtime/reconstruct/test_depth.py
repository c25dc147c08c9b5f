"""Depth: the solve for focal length and shift, sizes, positions, and the way to a pointmap."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch.nn import functional

from samrt.manifest import Profile
from samrt.reconstruct import moge
from samrt.reconstruct.depth import (
    finish,
    open_depth,
    recover_focal_shift,
    resize_floats,
    resized,
    solve_focal_shift,
    view_plane,
)
from samrt.reconstruct.moge import network_sizes, position_weights
from samrt_engines.errors import BundleError, InputError
from samrt_engines.tensors import TensorSpec


def _camera_points(height: int, width: int, focal: float, seed: int = 0) -> np.ndarray:
    """Points of a bumpy wall, OpenCV's axes, that project exactly onto their pixels."""
    rng = np.random.default_rng(seed)
    depth = (
        6 + np.sin(np.arange(height) / 7)[:, None] + np.cos(np.arange(width) / 9) + rng.uniform(0, 0.2, (height, width))
    )
    uv = view_plane(height, width).astype(np.float64)
    return np.concatenate([uv * depth[..., None] / focal, depth[..., None]], axis=-1).astype(np.float32)


def test_the_view_plane_is_moges() -> None:
    height, width = 21, 34
    aspect = width / height
    span_x, span_y = aspect / (1 + aspect**2) ** 0.5, 1 / (1 + aspect**2) ** 0.5
    plane = view_plane(height, width)
    u = torch.linspace(-span_x * (width - 1) / width, span_x * (width - 1) / width, width)
    v = torch.linspace(-span_y * (height - 1) / height, span_y * (height - 1) / height, height)
    np.testing.assert_allclose(plane[0, :, 0], u.numpy(), atol=1e-6)
    np.testing.assert_allclose(plane[:, 0, 1], v.numpy(), atol=1e-6)


@pytest.mark.parametrize(("focal", "shift"), [(1.0, 0.6), (2.2, -0.9), (0.7, 3.0)])
def test_a_known_shift_is_found(focal: float, shift: float) -> None:
    points = _camera_points(90, 120, focal)
    points[..., 2] -= shift
    known = np.ones((90, 120), bool)
    known[:20] = False
    points[:20] = 1e6  # what is not known does not count
    found_focal, found = recover_focal_shift(points, known)
    assert found == pytest.approx(shift, abs=1e-4)
    assert found_focal == pytest.approx(focal, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_solve_reaches_scipys_minimum(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    xyz = _camera_points(64, 64, 1.3, seed).reshape(-1, 3).astype(np.float64)
    xyz[:, 2] -= rng.uniform(-1, 1)
    xyz += rng.normal(0, 0.05, xyz.shape)
    uv = view_plane(64, 64).reshape(-1, 2).astype(np.float64)

    def errors(shift: np.ndarray) -> np.ndarray:
        projected = xyz[:, :2] / (xyz[:, 2:] + shift)
        focal = (projected * uv).sum() / (projected * projected).sum()
        return (focal * projected - uv).ravel()

    best = optimize.least_squares(errors, x0=0, ftol=1e-14, xtol=1e-14, gtol=1e-14, method="lm").x[0]
    _, shift = solve_focal_shift(uv, xyz)
    assert shift == pytest.approx(best, abs=1e-6)


def test_too_few_points_leave_depth_as_it_is() -> None:
    assert recover_focal_shift(np.ones((8, 8, 3), np.float32), np.zeros((8, 8), bool)) == (1.0, 0.0)


def test_points_are_enlarged_before_the_exponential_and_turned_to_pytorch3d() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 0.1, (12, 16, 3)).astype(np.float32)
    raw[..., :2] += view_plane(12, 16) * 0.8
    mask = rng.normal(0.8, 0.4, (12, 16)).astype(np.float32)
    remapped = np.concatenate([raw[..., :2] * np.exp(raw[..., 2:]), np.exp(raw[..., 2:])], axis=-1)
    made = finish(remapped, mask, (30, 41), remap="exp", threshold=0.5, unit=2.0)

    def enlarge(planes: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(planes).permute(2, 0, 1)[None]
        return functional.interpolate(tensor, (30, 41), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)

    xy, z = enlarge(raw).split([2, 1], dim=-1)
    points = torch.cat([xy * z.exp(), z.exp()], dim=-1).numpy()
    known = enlarge(mask[..., None])[..., 0].numpy() > 0.5
    _, shift = recover_focal_shift(points, known)
    known &= points[..., 2] + shift > 0
    expected = (points + np.array([0, 0, shift])) * 2 * np.array([-1, -1, 1])
    assert 0 < known.mean() < 1
    np.testing.assert_array_equal(np.isfinite(made).all(axis=2), known)
    np.testing.assert_allclose(made[known], expected[known], rtol=1e-4, atol=1e-5)
    assert np.isnan(made[~known]).all()


def test_an_unknown_remapping_is_refused() -> None:
    with pytest.raises(BundleError, match=r"unknown remapping of points.*got: 'cosh'.*expected: linear, exp"):
        finish(np.ones((4, 4, 3), np.float32), np.ones((4, 4), np.float32), (4, 4), remap="cosh", threshold=0.5)


@pytest.mark.parametrize("cubic", [False, True])
def test_pictures_are_resized_as_torch_does(cubic: bool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    mode = "bicubic" if cubic else "bilinear"
    expected = functional.interpolate(planes, (28, 42), mode=mode, align_corners=False, antialias=True)[0].permute(
        1, 2, 0
    )
    np.testing.assert_allclose(resized(picture, (28, 42), cubic=cubic), expected.numpy(), atol=5e-6)


def test_the_network_sees_whole_patches_of_about_as_many_tokens() -> None:
    assert network_sizes((1000, 1500), 2551, 14, (1, 100)) == ((577, 866), (574, 854))
    assert network_sizes((1000, 1000), 4, 14, (1, 100)) == ((28, 28), (28, 28))
    assert network_sizes((10, 16000), 100, 14, (2, 50)) == ((28, 713), (28, 700))


def test_a_moge2_file_gives_metric_points(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]> moge2 (float[1,3,h,w] image, int64 num_tokens)
        => (float[1,h,w,3] points, float[1,h,w] mask, float[1] metric_scale)
        <float[3] gain = {0.2, 0.2, 2.0}, float[3] base = {-0.1, -0.1, 1.0}, int64[1] channel = {1},
        float[1] most = {1800.0}, int64[1] one = {1}> {
        colours = Transpose <perm=[0,2,3,1]> (image)
        gained = Mul (colours, gain)
        points = Add (gained, base)
        mask = ReduceMean <keepdims=0> (image, channel)
        tokens = Cast <to=1> (num_tokens)
        scaled = Div (tokens, most)
        metric_scale = Reshape (scaled, one)
    }"""
    path = tmp_path / "moge2.onnx"
    onnx.save(parser.parse_model(text), path)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    made = open_depth(path, backend="auto", device="cpu", threads=1).estimate(picture)
    colours = picture.astype(np.float32) / 255
    points = colours * np.float32([0.2, 0.2, 2]) + np.float32([-0.1, -0.1, 1])
    known = colours.mean(axis=2) > 0.5
    _, shift = recover_focal_shift(points, known)
    expected = (points + np.array([0, 0, shift])) * 2 * [-1, -1, 1]  # 3600 tokens over 1800
    known &= points[..., 2] + shift > 0
    np.testing.assert_array_equal(np.isfinite(made[..., 0]), known)
    np.testing.assert_allclose(made[known], expected[known], rtol=1e-4, atol=1e-4)

    other = tmp_path / "other.onnx"
    onnx.save(parser.parse_model(text.replace("num_tokens", "tokens_wanted")), other)
    with pytest.raises(InputError, match=r"no MoGe-2 file.*got: inputs image, tokens_wanted; outputs points, mask"):
        open_depth(other, backend="auto", device="cpu", threads=1).estimate(picture)


@dataclass(frozen=True)
class _MogeNumbers:
    patch_px: int = 14
    tokens: tuple[int, int] = (4, 25)
    remap: str = "exp"
    mask_threshold: float = 0.5
    position_grid: int = 5
    position_offset: float = 0.1


class _Moge:
    """A graph that sees a bumpy wall and keeps what it is fed."""

    inputs = tuple(
        TensorSpec(name, "float32", shape)
        for name, shape in (
            ("image", (1, "height", "width", 3)),
            ("row_weights", ("rows", 5)),
            ("column_weights", ("columns", 5)),
        )
    )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.closed = True

    def run(self, feeds):
        self.feeds = feeds
        _, height, width, _ = feeds["image"].shape
        points = _camera_points(height, width, 1.2)[None]
        points[..., 2] -= 0.7
        return {"pointmap": points, "pointmap_mask": np.ones((1, height, width), np.float32)}


def test_a_moge_bundle_is_fed_a_resized_picture_and_weights_for_its_positions(monkeypatch) -> None:
    executor, profiles = _Moge(), {"height": Profile(28, 56, 140), "width": Profile(28, 56, 140)}
    graph = SimpleNamespace(inputs=executor.inputs, profiles=profiles)
    bundle = SimpleNamespace(manifest=SimpleNamespace(depth=_MogeNumbers(), graphs={"moge": graph}))
    monkeypatch.setattr(moge, "open_graph", lambda *_, **__: SimpleNamespace(executor=executor))
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    made = moge.MogeBundle(bundle, backend="auto", device="cpu", threads=1).estimate(picture)

    # 25 tokens of 14 px at 2 : 3 are 57.2 x 85.7 pixels, of which 56 x 84 are whole patches
    small = resize_floats(resized(picture, (57, 85), cubic=True), (56, 84))
    np.testing.assert_array_equal(executor.feeds["image"], small[None])
    rows, columns = position_weights(5, (4, 6), 0.1)
    np.testing.assert_array_equal(executor.feeds["row_weights"], rows)
    np.testing.assert_array_equal(executor.feeds["column_weights"], columns)
    assert executor.closed
    assert made.shape == (60, 90, 3)
    depth = _camera_points(56, 84, 1.2)[..., 2]  # the shift is found again
    assert np.median(made[..., 2]) == pytest.approx(np.median(depth), rel=0.02)
    assert made[0, 0, 0] > 0 > made[0, -1, 0]  # x points left
    assert made[0, 0, 1] > 0 > made[-1, 0, 1]  # y points up


@pytest.mark.parametrize("patches", [(5, 5), (4, 7), (9, 3), (5, 6)])
def test_positions_are_dinov2s(patches: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(size=(5, 5, 8)).astype(np.float32)
    rows, columns = position_weights(5, patches, 0.1)
    made = np.einsum("yi,xj,ijc->yxc", rows, columns, table)
    if patches == (5, 5):
        np.testing.assert_array_equal(made, table)
        return
    planes = torch.from_numpy(table).permute(2, 0, 1)[None]
    factors = tuple((count + 0.1) / 5 for count in patches)
    scaled = functional.interpolate(planes, scale_factor=factors, mode="bicubic")
    assert scaled.shape[2:] == patches
    np.testing.assert_allclose(made, scaled[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_what_is_no_source_of_depth_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no such source of depth.*fix: samrt export moge-vitl"):
        open_depth(tmp_path / "nothing", backend="auto", device="cpu", threads=1)
