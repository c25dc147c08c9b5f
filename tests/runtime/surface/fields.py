"""Fields to find surfaces in, and what a closed surface must satisfy."""

from collections.abc import Callable

import numpy as np

from samrt.assets import Mesh
from samrt.surface import CubeField

from .reference import CORNERS, Rows, cubes_of

Array = np.ndarray
Distance = Callable[[Array], Array]


def corner_positions(coords: Array, resolution: int) -> Array:
    """Where the corners of every row's cube lie at rest, (64 N, 8, 3)."""
    return (np.array(cubes_of(coords), int).reshape(-1, 1, 3) + CORNERS) / resolution - 0.5


def random_rows(coords: Array, seed: int, distance: Array | None = None) -> Rows:
    """Rows of noise, of `distance` (64 N, 8) and noise around it if given."""
    generator = np.random.default_rng(seed)
    count = 64 * len(coords)
    sdf = generator.normal(size=(count, 8)) if distance is None else distance
    return Rows(
        sdf.astype(np.float32),
        generator.normal(size=(count, 8, 3)).astype(np.float32),
        generator.normal(size=(count, 21)).astype(np.float32),
        generator.normal(size=(count, 8, 6)).astype(np.float32),
    )


def plain_rows(coords: Array, resolution: int, distance: Distance) -> Rows:
    """Rows of a distance without displacement, weights or colours."""
    count = 64 * len(coords)
    return Rows(
        distance(corner_positions(coords, resolution)).astype(np.float32),
        np.zeros((count, 8, 3), np.float32),
        np.zeros((count, 21), np.float32),
        np.zeros((count, 8, 6), np.float32),
    )


def extract(coords: Array, rows: Rows, resolution: int, bias: float = 0.0) -> Mesh:
    field = CubeField(coords, rows.sdf, resolution=resolution, sdf_bias=bias)
    return field.extract(rows.deform[field.rows], rows.weights[field.rows], rows.colors[field.rows])


def all_voxels(grid: int) -> Array:
    return np.indices((grid,) * 3).reshape(3, -1).T


def sphere(points: Array) -> Array:
    return np.linalg.norm(points - [0.02, -0.01, 0.03], axis=-1) - 0.31


def torus(points: Array) -> Array:
    ring = np.linalg.norm(points[..., :2], axis=-1) - 0.273
    return np.hypot(ring, points[..., 2] - 0.004) - 0.131


def box(points: Array, low: tuple[float, ...], high: tuple[float, ...]) -> Array:
    return np.maximum(np.array(low) - points, points - np.array(high)).max(axis=-1)


def boxes(points: Array) -> Array:
    """Two boxes that touch along an edge."""
    first = box(points, (-0.33, -0.32, -0.31), (0.01, 0.02, 0.29))
    return np.minimum(first, box(points, (0.01, 0.02, -0.28), (0.34, 0.35, 0.3)))


def directed_edges(mesh: Mesh) -> Array:
    """The sides of all faces as walked, each a number."""
    a, b, c = mesh.faces.astype(np.int64).T
    start, end = np.r_[a, b, c], np.r_[b, c, a]
    return start * len(mesh.vertices) + end


def is_closed(mesh: Mesh) -> bool:
    """Every edge belongs to exactly two faces, which walk it in opposite directions."""
    walked = directed_edges(mesh)
    back = walked % len(mesh.vertices) * len(mesh.vertices) + walked // len(mesh.vertices)
    return len(np.unique(walked)) == len(walked) and np.array_equal(np.sort(walked), np.sort(back))


def volume(mesh: Mesh) -> float:
    """The volume inside, positive for faces that look outwards."""
    a, b, c = mesh.vertices[mesh.faces].astype(np.float64).transpose(1, 0, 2)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def euler_characteristic(mesh: Mesh) -> int:
    return len(np.unique(mesh.faces)) - len(directed_edges(mesh)) // 2 + len(mesh.faces)
