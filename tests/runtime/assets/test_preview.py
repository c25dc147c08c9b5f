"""Previews: what is where, what hides what, which colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from samrt.assets import Gaussians, Mesh, render_preview, write_preview
from samrt.assets.colors import dc_from_rgb
from samrt_engines.errors import InputError

PAPER = (250, 250, 248)
RED, GREEN = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1)


def covered(view: np.ndarray) -> np.ndarray:
    return (view != PAPER).any(axis=2)


def redder(view: np.ndarray) -> np.ndarray:
    return covered(view) & (view[..., 0] > view[..., 1])


def cube(colors: bool = True) -> Mesh:
    """[-0.5, 0.5]^3 of eight vertices; those at y < 0 are red, the others green."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [[a, b, c] for a, b, c, d in quads] + [[a, c, d] for a, b, c, d in quads]
    return Mesh(corners - 0.5, np.array(faces), np.where(corners[:, 1:2] == 0, RED, GREEN) if colors else None)


def front_and_back(count: int) -> np.ndarray:
    """Points on the two sides y = -0.5 and y = 0.5 of the cube, the first half in front."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (count, 3))
    points[:, 1] = np.where(np.arange(count) < count // 2, -0.5, 0.5)
    return points


def side_colors(count: int) -> np.ndarray:
    return np.where(np.arange(count)[:, None] < count // 2, RED, GREEN)


def as_gaussians(points: np.ndarray, colors: np.ndarray) -> Gaussians:
    count = len(points)
    return Gaussians(
        points, dc_from_rgb(colors), np.full(count, 0.8), np.full((count, 3), 0.02), np.tile([1, 0, 0, 0], (count, 1))
    )


ASSETS = {
    "mesh": cube(),
    "points": Mesh.points(front_and_back(4000), side_colors(4000)),
    "gaussians": as_gaussians(front_and_back(4000), side_colors(4000)),
}


@pytest.mark.parametrize("kind", ASSETS)
def test_what_is_in_front_hides_what_is_behind(kind: str) -> None:
    picture = render_preview(ASSETS[kind], size_px=128, azimuths=(0, 180), elevation=0)
    assert (picture.shape, picture.dtype) == ((128, 256, 3), np.uint8)
    front, back = picture[:, :128], picture[:, 128:]
    side = 0.94 * 128 / np.sqrt(3)  # of the cube: its corners touch the circle that fills 0.94 of the view
    for view in (front, back):
        assert side**2 * 0.95 < covered(view).sum() < (side + 6) ** 2  # splats stand out by their radius
        assert covered(view)[32:96, 32:96].mean() > 0.99
        assert not covered(view)[:12].any()
    assert redder(front)[32:96, 32:96].mean() > 0.98
    assert redder(back)[32:96, 32:96].mean() < 0.02


def test_left_is_left_and_up_is_up() -> None:
    """From -y the camera sees +x on the right; from +x, +y on the right."""
    blobs = np.random.default_rng(0).normal(scale=0.02, size=(600, 3))
    blobs[:300] += (0.4, 0, 0.2)
    blobs[300:] += (0, 0.4, -0.2)
    colors = np.where(np.arange(600)[:, None] < 300, RED, GREEN)
    picture = render_preview(Mesh.points(blobs, colors), size_px=128, azimuths=(0, 90), elevation=0)
    for view, red_right in ((picture[:, :128], True), (picture[:, 128:], False)):
        red, green = redder(view), covered(view) & ~redder(view)
        assert np.argwhere(red)[:, 0].mean() < 55 < 72 < np.argwhere(green)[:, 0].mean()
        assert (np.argwhere(red)[:, 1].mean() > np.argwhere(green)[:, 1].mean()) == red_right


def test_from_above_the_top_is_bright() -> None:
    mesh = cube(colors=False)
    flat = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(36).reshape(12, 3))  # no shared, rounded normals
    view = render_preview(flat, size_px=128, azimuths=(45,), elevation=30).astype(int)
    top, left, right = view[40, 64].sum(), view[85, 40].sum(), view[85, 88].sum()
    assert top > 380
    assert left > right + 60  # the light comes from the left
    assert len({top, left, right}) == 3


@pytest.mark.parametrize("inside_out", [False, True])
def test_a_ball_is_a_round_gradient(ball: Mesh, inside_out: bool) -> None:
    faces = ball.faces[:, ::-1] if inside_out else ball.faces
    view = render_preview(Mesh(ball.vertices, faces), size_px=128, azimuths=(0,), elevation=0)
    assert covered(view).sum() == pytest.approx(np.pi * (0.94 * 64) ** 2, rel=0.04)
    down, right = np.argwhere(covered(view)).T
    np.testing.assert_allclose([down.mean(), right.mean()], 63.5, atol=0.7)
    assert view[45, 50].sum() > view[64, 64].sum() > view[90, 90].sum()


def test_small_and_large_triangles_cover_the_same() -> None:
    """A square of 2 triangles, and of 20,000."""
    grid = np.linspace(-0.5, 0.5, 101)
    x, z = (axis.ravel() for axis in np.meshgrid(grid, grid))
    rows = np.arange(101 * 101).reshape(101, 101)
    a, b, c, d = (part.ravel() for part in (rows[:-1, :-1], rows[:-1, 1:], rows[1:, 1:], rows[1:, :-1]))
    fine = Mesh(np.stack([x, 0 * x, z], axis=1), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]))
    coarse = Mesh(fine.vertices[[0, 100, 10200, 10100]], np.array([[0, 1, 2], [0, 2, 3]]))
    views = [render_preview(mesh, size_px=200, azimuths=(25,), elevation=15) for mesh in (fine, coarse)]
    assert covered(views[0]).mean() > 0.3
    assert np.abs(views[0].astype(int) - views[1]).mean() < 0.05


def test_a_stray_point_does_not_shrink_the_picture() -> None:
    points = np.concatenate([front_and_back(5000), [[40, 0, 0]]])
    drawn = as_gaussians(points, side_colors(5001))
    with_stray = covered(render_preview(drawn, size_px=64, azimuths=(45,)))
    without = covered(render_preview(drawn.take(np.arange(5000)), size_px=64, azimuths=(45,)))
    assert without.mean() > 0.3
    assert (with_stray != without).mean() < 0.03


def test_more_splats_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = render_preview(ASSETS["gaussians"], size_px=64, azimuths=(0,))
    monkeypatch.setattr("samrt.assets.splatting._BUDGET", 30_000)
    part = render_preview(ASSETS["gaussians"], size_px=64, azimuths=(0,))
    assert 0.7 < covered(part).sum() / covered(whole).sum() < 1
    monkeypatch.undo()
    np.testing.assert_array_equal(render_preview(ASSETS["gaussians"], size_px=64, azimuths=(0,)), whole)


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.zeros((5, 3)), [[0, 0, -1], [0, 0, 1]]])
def test_one_place_or_two_can_be_drawn(points: np.ndarray) -> None:
    assert covered(render_preview(Mesh.points(points), size_px=64)).any()


def test_a_face_without_an_area_is_not_drawn() -> None:
    flat = Mesh(np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0.5]]), np.array([[0, 1, 2]]))
    assert not covered(render_preview(flat, size_px=64)).any()


def test_the_file_is_the_picture(ball: Mesh, tmp_path: Path) -> None:
    write_preview(tmp_path / "ball.png", ball, size_px=64)
    with PIL.Image.open(tmp_path / "ball.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (256, 64))
        np.testing.assert_array_equal(np.asarray(picture), render_preview(ball, size_px=64))


def test_what_cannot_be_drawn(ball: Mesh) -> None:
    with pytest.raises(InputError, match=r"nothing to draw \| got: an empty asset"):
        render_preview(Mesh.points(np.empty((0, 3))))
    with pytest.raises(InputError, match=r"no such preview \| got: 0 views of 320 px"):
        render_preview(ball, azimuths=())
    with pytest.raises(InputError, match=r"got: 4 views of 8 px \| expected: at least one view of 16..2048 px"):
        render_preview(ball, size_px=8)
