import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial import cKDTree

from samrt.assets import Mesh
from samrt.surface import CubeField
from samrt_engines.errors import InputError

from .fields import (
    all_voxels,
    boxes,
    corner_positions,
    directed_edges,
    euler_characteristic,
    extract,
    is_closed,
    plain_rows,
    random_rows,
    sphere,
    torus,
    volume,
)
from .reference import CORNERS, Reference, Rows, cubes_of

Array = np.ndarray


def some_voxels(grid: int, share: float, seed: int, border: bool) -> Array:
    coords = all_voxels(grid)
    if not border:
        coords = coords[((coords > 0) & (coords < grid - 1)).all(axis=1)]
    generator = np.random.default_rng(seed)
    return generator.permutation(coords[generator.random(len(coords)) < share])


def canonical(faces: Array) -> list[tuple[int, ...]]:
    """Faces in any order, each from its lowest vertex on."""
    turned = [np.roll(face, -int(np.argmin(face))) for face in np.asarray(faces)]
    return sorted(tuple(face.tolist()) for face in turned)


def assert_same(mesh: Mesh, coords: Array, rows: Rows, resolution: int, bias: float = 0.0) -> None:
    """The mesh is the reference's, but for the order of vertices and faces."""
    expected = Reference(coords, rows, resolution, bias)
    vertices = np.array(expected.vertices)
    assert mesh.vertices.shape == vertices.shape
    distance, match = cKDTree(vertices).query(mesh.vertices)
    assert sorted(match.tolist()) == list(range(len(vertices)))
    assert distance.max() < 1e-6
    assert mesh.colors is not None
    np.testing.assert_allclose(mesh.colors, np.array(expected.colors)[match], atol=2e-6)
    assert canonical(match[mesh.faces]) == canonical(np.array(expected.faces))


@pytest.mark.parametrize(("share", "bias"), [(1.0, 0.0), (0.7, -0.6), (0.7, 0.6), (0.4, -1 / 256)])
@pytest.mark.parametrize("border", [False, True])
def test_noise_gives_the_mesh_of_the_reference(share: float, bias: float, border: bool) -> None:
    coords = some_voxels(4, share, seed=int(10 * share), border=border)
    rows = random_rows(coords, seed=3)
    mesh = extract(coords, rows, 16, bias)
    assert len(mesh.faces) > 500
    assert_same(mesh, coords, rows, 16, bias)


@pytest.mark.parametrize("shape", [sphere, torus, boxes])
@pytest.mark.parametrize("weighted", [False, True])
def test_shapes_give_the_mesh_of_the_reference(shape: Callable[[Array], Array], weighted: bool) -> None:
    coords = all_voxels(5)
    rows = plain_rows(coords, 20, shape)
    if weighted:
        rows = random_rows(coords, 4, rows.sdf)
    assert_same(extract(coords, rows, 20), coords, rows, 20)


@pytest.mark.parametrize("seed", range(6))
def test_noise_within_the_border_is_closed(seed: int) -> None:
    """Every case and every ambiguity occurs; the mesh stays a closed manifold."""
    coords = some_voxels(8, 0.7, seed, border=False)
    mesh = extract(coords, random_rows(coords, seed), 32, bias=(-0.2, 0.0, 0.2)[seed % 3])
    assert len(mesh.faces) > 10_000
    assert is_closed(mesh)
    assert volume(mesh) > 0


@pytest.mark.parametrize(
    ("shape", "characteristic", "expected_volume"),
    [
        (sphere, 2, 4 / 3 * np.pi * 0.31**3),
        (torus, 0, 2 * np.pi**2 * 0.273 * 0.131**2),
        (boxes, 4, 0.34 * 0.34 * 0.6 + 0.33 * 0.33 * 0.58),
    ],
)
def test_shapes_are_met(shape: Callable[[Array], Array], characteristic: int, expected_volume: float) -> None:
    """Closed, of the right genus and size, faces outwards, vertices on the surface."""
    coords = all_voxels(12)
    mesh = extract(coords, plain_rows(coords, 48, shape), 48)
    assert is_closed(mesh)
    assert euler_characteristic(mesh) == characteristic
    assert volume(mesh) == pytest.approx(expected_volume, rel=0.02)
    off = np.abs(shape(mesh.vertices.astype(np.float64)))
    assert off.max() < (0.6 if shape is boxes else 0.15) / 48  # corners of boxes are cut, within a cube
    a, b, c = mesh.vertices[mesh.faces].astype(np.float64).transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    area = np.linalg.norm(normals, axis=1)
    outside = (a + b + c) / 3 + normals / area[:, None] / 48
    assert (shape(outside[area > 1e-7]) > 0).mean() > 0.99


def test_voxels_missing_inside_leave_a_cavity() -> None:
    """Where there is no voxel, there is outside: a shell of voxels has a surface on either side."""
    coords = all_voxels(16)
    centres = (coords + 0.5) / 16 - 0.5
    shell = coords[np.abs(sphere(centres)) < 1.5 / 16]
    mesh = extract(shell, plain_rows(shell, 64, sphere), 64)
    assert is_closed(mesh)
    assert euler_characteristic(mesh) == 4
    radius = np.linalg.norm(mesh.vertices - [0.02, -0.01, 0.03], axis=1)
    assert np.count_nonzero(np.abs(radius - 0.31) < 0.002) == pytest.approx(len(radius) * 0.7, rel=0.15)


def test_the_border_of_the_grid_stays_open() -> None:
    coords = all_voxels(3)
    rows = plain_rows(coords, 12, lambda points: points[..., 2] - 0.01)  # all below is inside
    mesh = extract(coords, rows, 12)
    walked = directed_edges(mesh)
    back = walked % len(mesh.vertices) * len(mesh.vertices) + walked // len(mesh.vertices)
    assert len(np.setdiff1d(walked, back)) == 4 * 11  # the outline of 11 x 11 quads
    np.testing.assert_allclose(mesh.vertices[:, 2], 0.01, atol=1e-6)
    assert_same(mesh, coords, rows, 12)


def test_one_voxel_that_is_all_inside() -> None:
    """Its cubes reach to the vertices of others, where the distance is 1, so the surface lies outside of the voxel."""
    coords = np.array([[1, 1, 1]])
    mesh = extract(coords, plain_rows(coords, 12, lambda points: np.full(points.shape[:-1], -1.0)), 12)
    assert is_closed(mesh)
    assert euler_characteristic(mesh) == 2
    np.testing.assert_allclose(np.abs(mesh.vertices).max(axis=0), 2.5 / 12, atol=1e-6)
    np.testing.assert_array_equal(mesh.colors, np.full_like(mesh.vertices, 0.5))


def test_rows_are_of_the_cubes_around_crossed_edges() -> None:
    coords = some_voxels(8, 0.8, 1, border=False)
    rows = plain_rows(coords, 32, sphere)
    field = CubeField(coords, rows.sdf, resolution=32)
    cubes = cubes_of(coords)
    sdf = {}
    for cube, values in zip(cubes, rows.sdf, strict=True):
        for corner, value in zip(CORNERS, values, strict=True):
            sdf[tuple(np.add(cube, corner).tolist())] = value
    ends = set()
    for x in range(33):
        for y in range(33):
            for z in range(33):
                inside = sdf.get((x, y, z), 1) < 0
                for other in ((x + 1, y, z), (x, y + 1, z), (x, y, z + 1)):
                    if inside != (sdf.get(other, 1) < 0):
                        ends |= {(x, y, z), other}
    expected = [
        row for row, cube in enumerate(cubes) if any(tuple(np.add(cube, corner).tolist()) in ends for corner in CORNERS)
    ]
    assert field.rows.tolist() == expected
    assert field.rows.dtype == np.int64
    assert 0 < len(expected) < len(cubes) / 2


def test_colours_are_interpolated_like_positions() -> None:
    """Colours that are a linear function of the place at the vertices are that function on the surface, whatever the
    weights are."""
    coords = all_voxels(8)
    rows = random_rows(coords, 5, sphere(corner_positions(coords, 32)))
    rows.deform[:] = 0
    slope = np.array([[0.5, 0.1, 0.0], [0.0, -0.6, 0.2], [0.3, 0.0, 0.4]])
    color = corner_positions(coords, 32) @ slope + 0.5
    rows.colors[..., :3] = np.log(color / (1 - color))
    mesh = extract(coords, rows, 32)
    np.testing.assert_allclose(mesh.colors, mesh.vertices @ slope + 0.5, atol=1e-5)


def test_colours_are_averaged_before_the_sigmoid_and_only_three_count() -> None:
    """Two voxels side by side disagree; on the surface between them lies the sigmoid of the mean."""
    coords = np.array([[1, 1, 1], [2, 1, 1]])
    rows = plain_rows(coords, 16, lambda points: points[..., 2] + 1 / 8)
    rows.colors[:64, :, :3], rows.colors[64:, :, :3] = 4.0, -1.0
    rows.colors[..., 3:] = 50
    mesh = extract(coords, rows, 16)
    assert mesh.colors is not None
    sides = 1 / (1 + np.exp([-4.0, 1.0, -1.5]))
    x = mesh.vertices[:, 0]
    near, far, middle = (x > -0.2) & (x < -0.08), (x > 0.08) & (x < 0.2), (x > -0.06) & (x < 0.06)
    top = np.abs(mesh.vertices[:, 2] + 1 / 8) < 1e-6
    np.testing.assert_allclose(mesh.colors[near & top], sides[0], atol=1e-6)
    np.testing.assert_allclose(mesh.colors[far & top], sides[1], atol=1e-6)
    blended = np.unique(mesh.colors[middle & top].round(5))
    np.testing.assert_allclose(blended, [(sides[1] + sides[2]) / 2, (sides[0] + sides[2]) / 2], atol=2e-5)


def test_the_bias_moves_the_surface() -> None:
    coords = all_voxels(8)
    rows = plain_rows(coords, 32, sphere)
    grown = extract(coords, rows, 32, bias=-0.05)
    radius = np.linalg.norm(grown.vertices - [0.02, -0.01, 0.03], axis=1)
    np.testing.assert_allclose(radius, 0.36, atol=0.005)


def test_half_precision_is_taken() -> None:
    coords = all_voxels(4)
    rows = random_rows(coords, 6)
    half = Rows(*(getattr(rows, name).astype(np.float16) for name in ("sdf", "deform", "weights", "colors")))
    single = Rows(*(getattr(half, name).astype(np.float32) for name in ("sdf", "deform", "weights", "colors")))
    a, b = extract(coords, half, 16), extract(coords, single, 16)
    np.testing.assert_array_equal(a.faces, b.faces)
    np.testing.assert_array_equal(a.vertices, b.vertices)
    np.testing.assert_array_equal(a.colors, b.colors)


@pytest.mark.parametrize(("first", "second"), [(-1e-45, 0.0), (-1e-45, 1e-45), (-1e-30, 1e30)])
def test_values_near_zero_give_finite_vertices(first: float, second: float) -> None:
    """Scaled by its corner's weight, such a value may be zero."""
    coords = all_voxels(3)
    rows = random_rows(coords, 7, np.where(sphere(corner_positions(coords, 12)) < 0, first, second))
    rows.weights[:, 12:20] = -9
    mesh = extract(coords, rows, 12)
    assert len(mesh.vertices) > 100
    assert np.abs(mesh.vertices).max() < 0.5
    assert is_closed(mesh)


@pytest.mark.parametrize("count", [0, 3])
def test_no_surface_gives_an_empty_mesh(count: int) -> None:
    coords = all_voxels(4)[:count]
    rows = plain_rows(coords, 16, lambda points: np.ones(points.shape[:-1]))
    field = CubeField(coords, rows.sdf, resolution=16)
    assert len(field.rows) == field.surface_cubes == 0
    mesh = field.extract(rows.deform[:0], rows.weights[:0], rows.colors[:0])
    assert mesh.vertices.shape == mesh.faces.shape == (0, 3)
    assert mesh.colors is not None
    assert mesh.colors.shape == (0, 3)


def test_memory_is_bounded() -> None:
    """Beside tables of the grid (distances, indices, flags: at most 16 bytes a vertex) memory follows the surface."""
    coords = all_voxels(32)
    coords = coords[np.abs(sphere((coords + 0.5) / 32 - 0.5)) < 1.1 / 32]
    rows = random_rows(coords, 8, sphere(corner_positions(coords, 128)))
    field = CubeField(coords, rows.sdf, resolution=128)
    attributes = rows.deform[field.rows], rows.weights[field.rows], rows.colors[field.rows]
    tracemalloc.start()
    try:
        CubeField(coords, rows.sdf, resolution=128).extract(*attributes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 129**3 + 100 * field.surface_cubes


def test_bad_fields() -> None:
    coords, sdf = all_voxels(2), np.ones((512, 8), np.float32)
    with pytest.raises(InputError, match=r"cube_sdf does not fit .* got: float32 \(512, 8\) \| .* \(448, 8\)"):
        CubeField(coords[1:], sdf, resolution=8)
    with pytest.raises(InputError, match=r"cube_sdf does not fit the voxels \| got: int64 \(512, 8\)"):
        CubeField(coords, sdf.astype(int), resolution=8)
    for resolution in (0, 6, 9):
        with pytest.raises(InputError, match=rf"got: a resolution of {resolution} \| expected: a multiple of 4"):
            CubeField(coords, sdf, resolution=resolution)
    with pytest.raises(InputError, match=r"outside the grid \| got: \[0, 0, 1\] in row 1"):
        CubeField(coords, sdf, resolution=4)
    with pytest.raises(InputError, match="there twice"):
        CubeField(coords[[0] * 8], sdf, resolution=8)
    sdf[3, 4], sdf[5, 6] = np.nan, -np.inf
    with pytest.raises(InputError, match=r"cube_sdf is not finite \| got: 2 of 4096 values are NaN or infinite"):
        CubeField(coords, sdf, resolution=8)


def test_bad_attributes() -> None:
    coords = all_voxels(2)
    rows = random_rows(coords, 9)
    field = CubeField(coords, rows.sdf, resolution=8)
    good = {name: getattr(rows, name)[field.rows] for name in ("deform", "weights", "colors")}
    for name, array in good.items():
        with pytest.raises(InputError, match=rf"{name} does not fit the voxels \| got: float32 \({len(array) - 1}, "):
            field.extract(**good | {name: array[1:]})
        array[1].flat[2] = np.inf
        with pytest.raises(InputError, match=rf"{name} is not finite \| got: 1 of {array.size} values"):
            field.extract(**good)
        array[1].flat[2] = 0
