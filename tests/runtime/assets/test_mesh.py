import numpy as np
import pytest

from samrt.assets import Mesh
from samrt.assets.mesh import face_normals, vertex_normals
from samrt_engines.errors import InputError

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("vertices", "faces", "colors", "message"),
    [
        (CORNERS[:, :2], [[0, 1, 2]], None, r"vertices have the wrong shape \| got: \(3, 2\) \| expected: \(N, 3\)"),
        (CORNERS * np.nan, [[0, 1, 2]], None, r"vertices are not finite \| got: NaN or infinity in 3 of 3 rows"),
        (CORNERS.astype(str), [[0, 1, 2]], None, "vertices are not numbers"),
        (CORNERS, [[0, 1, 3]], None, r"faces name vertices that are not there \| got: 0..3 \| expected: 0..2"),
        (CORNERS, [[0, -1, 2]], None, r"got: -1..2"),
        (CORNERS, [[0, 1, 2, 0]], None, r"faces are not triangles \| got: int64 \(1, 4\)"),
        (CORNERS, [[0.0, 1.0, 2.0]], None, r"faces are not triangles \| got: float64"),
        (CORNERS, [[0, 1, 2]], CORNERS[:2], r"colors have the wrong shape \| got: \(2, 3\) \| expected: \(3, 3\)"),
        (CORNERS, [[0, 1, 2]], CORNERS * 255, r"colors out of range \| got: 0..255 \| expected: 0..1"),
    ],
)
def test_what_is_no_mesh(vertices: np.ndarray, faces: list, colors: np.ndarray | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mesh(vertices, np.array(faces), colors)


def test_arrays_are_brought_to_one_form() -> None:
    mesh = Mesh(CORNERS, np.array([[0, 1, 2]], np.uint32), CORNERS * 1.0005)
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float32, np.int32)
    assert mesh.colors is not None
    np.testing.assert_array_equal(mesh.colors, CORNERS)  # rounding past 1 is clipped


def test_normals(ball: Mesh) -> None:
    outward = (ball.vertices - (0, 0, 0.05)) / 0.4
    assert (np.einsum("ij,ij->i", vertex_normals(ball), outward) > 0.98).all()
    areas = np.linalg.norm(face_normals(ball.vertices, ball.faces), axis=1) / 2
    assert 0.93 < areas.sum() / (4 * np.pi * 0.4**2) < 1


def test_vertices_without_a_face_look_up() -> None:
    np.testing.assert_array_equal(vertex_normals(Mesh.points(CORNERS)), [[0, 0, 1]] * 3)


def test_moving_applies_the_matrix_to_columns(ball: Mesh) -> None:
    matrix = np.array([[0, -2, 0, 1], [2, 0, 0, 0], [0, 0, 2, 5], [0, 0, 0, 1]])
    x, y, z = ball.vertices.T
    np.testing.assert_allclose(ball.moved(matrix).vertices, np.stack([1 - 2 * y, 2 * x, 2 * z + 5], axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([-1, 1, 1, 1]), r"matrix mirrors or flattens what it moves \| got: determinant -1"),
        (np.diag([1, 1, 0, 1]), "got: determinant 0"),
        (np.eye(3), r"matrix is not a 4x4 matrix \| got: shape \(3, 3\)"),
        (np.diag([1, 1, 1, 2]), "matrix is not affine"),
        (np.diag([np.nan, 1, 1, 1]), "matrix is not affine"),
    ],
)
def test_matrices_that_move_nothing(ball: Mesh, matrix: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ball.moved(matrix)
