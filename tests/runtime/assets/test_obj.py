from pathlib import Path

import numpy as np
import pytest

from samrt.assets import Mesh, write_obj
from samrt_engines.errors import InputError


def test_lines(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [1, 0.25, 0], [0, 1, -2]])
    write_obj(tmp_path / "one.obj", Mesh(corners, np.array([[0, 1, 2]]), np.array([[1, 0, 0], [0, 0.5, 0], [0, 0, 1]])))
    assert (tmp_path / "one.obj").read_text().splitlines() == [
        "# made by samrt",
        "v 0 0 0 1 0 0",
        "v 1 0 -0.25 0 0.5 0",
        "v 0 -2 -1 0 0 1",
        "f 1 2 3",
    ]
    write_obj(tmp_path / "one.obj", Mesh(corners, np.array([[0, 1, 2]])), y_up=False)
    assert (tmp_path / "one.obj").read_text().splitlines()[1:] == ["v 0 0 0", "v 1 0.25 0", "v 0 1 -2", "f 1 2 3"]


def test_trimesh_reads_it(ball: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh = pytest.importorskip("trimesh")
    monkeypatch.setattr("samrt.assets.obj._LINES", 100)  # more than one block
    write_obj(tmp_path / "ball.obj", ball)
    mesh = trimesh.load_mesh(tmp_path / "ball.obj", process=False)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.vertices, ball.vertices[:, (0, 2, 1)] * (1, 1, -1), atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, ball.faces)
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3], ball.colors * 255, atol=1)


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got: an empty mesh"):
        write_obj(tmp_path / "none.obj", Mesh.points(np.empty((0, 3))))
    assert list(tmp_path.iterdir()) == []
