from pathlib import Path

import numpy as np
import pytest

from samrt.assets import Gaussians, Mesh, join, place, read_glb, write_scene
from samrt_engines.errors import InputError

POSE = np.array([[0, -0.5, 0, 0.3], [0.5, 0, 0, -0.2], [0, 0, 0.5, 2], [0, 0, 0, 1]])
FURTHER = np.diag([1, 1, 1, 1.0])
FURTHER[:3, 3] = -1, 0.5, 3


def test_objects_are_placed_where_the_camera_sees_them(ball: Mesh) -> None:
    """The camera's x is left, y up, z away; the scene's x is right, y away, z up."""
    scene = place([ball, ball], [POSE, FURTHER])
    assert len(scene) == 2 * len(ball)
    x, y, z = (ball.vertices @ POSE[:3, :3].T + POSE[:3, 3]).T
    np.testing.assert_allclose(scene.vertices[: len(ball)], np.stack([-x, z, y], axis=1), atol=1e-6)
    np.testing.assert_allclose(scene.vertices[len(ball) :].mean(axis=0), [1, 3.05, 0.5], atol=1e-6)
    np.testing.assert_array_equal(scene.faces[len(ball.faces) :], ball.faces + len(ball))
    np.testing.assert_array_equal(
        place([ball], [POSE], world_from_camera=np.eye(4)).vertices, ball.moved(POSE).vertices
    )


def test_a_scene_file_is_the_joined_scene_in_parts(ball: Mesh, tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.glb", [ball, ball], [POSE, FURTHER], names=["a ball", "another"])
    again, joined = read_glb(tmp_path / "scene.glb"), place([ball, ball], [POSE, FURTHER])
    np.testing.assert_allclose(again.vertices, joined.vertices, atol=1e-6)
    np.testing.assert_array_equal(again.faces, joined.faces)
    assert b'"name":"another"' in (tmp_path / "scene.glb").read_bytes()


def test_a_glb_looks_as_the_picture_does(ball: Mesh, tmp_path: Path) -> None:
    """glTF's camera looks along -z with x right and y up: what is left, above and ahead here must be so there."""
    trimesh = pytest.importorskip("trimesh")
    left_above_ahead = np.eye(4)
    left_above_ahead[:3, 3] = 1, 2, 7
    write_scene(tmp_path / "scene.glb", [ball], [left_above_ahead])
    centre = trimesh.load_scene(tmp_path / "scene.glb").bounds.mean(axis=0)
    np.testing.assert_allclose(centre, [-1, 2, -7], atol=0.06)


def test_gaussians(gaussians: Gaussians) -> None:
    scene = place([gaussians, gaussians], [POSE, FURTHER])
    np.testing.assert_allclose(scene.scales[:300], gaussians.scales / 2, rtol=1e-6)
    np.testing.assert_array_equal(scene.scales[300:], gaussians.scales)
    np.testing.assert_array_equal(scene.colors_dc[300:], gaussians.colors_dc)


def test_colours_beside_none(ball: Mesh) -> None:
    plain = Mesh(ball.vertices, ball.faces)
    joined = join([plain, ball])
    np.testing.assert_allclose(joined.colors[: len(ball)], 0.7)
    np.testing.assert_array_equal(joined.colors[len(ball) :], ball.colors)
    assert join([plain, plain]).colors is None


def test_what_cannot_be_placed(ball: Mesh, gaussians: Gaussians, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to place \| got: no assets"):
        join([])
    with pytest.raises(InputError, match=r"matrices do not match the assets \| got: 1 \| expected: 2"):
        place([ball, ball], [POSE])
    with pytest.raises(InputError, match=r"assets of two kinds \| got: Gaussians and Mesh"):
        place([ball, gaussians], [POSE, POSE])
    with pytest.raises(InputError, match="mirrors or flattens"):
        place([ball], [np.diag([1, 1, -1, 1])])
    with pytest.raises(InputError, match=r"names do not match the meshes \| got: 1 \| expected: 2"):
        write_scene(tmp_path / "scene.glb", [ball, ball], [POSE, POSE], names=["one"])
    assert list(tmp_path.iterdir()) == []
