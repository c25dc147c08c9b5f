"""FlexiCubes told again, one cube and one edge at a time in plain Python: slow, dense, and without any trick.

Faces are ordered by angle around their edge, not by a table of edges.
"""

import math
from dataclasses import dataclass

import numpy as np

from samrt.surface.tables import BEHIND_FACE, EDGES, GROUP_OF_EDGE, INVERTED, IS_AMBIGUOUS

Array = np.ndarray
Point = tuple[int, int, int]

CORNERS: tuple[Point, ...] = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)
)  # fmt: skip


@dataclass
class Rows:
    """A mesh decoder's rows, all of them."""

    sdf: Array  # (64 N, 8)
    deform: Array  # (64 N, 8, 3)
    weights: Array  # (64 N, 21)
    colors: Array  # (64 N, 8, 6)


def plus(a: Point, b: Point) -> Point:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def cubes_of(coords: Array) -> list[Point]:
    """The cube of every row: child c2 of child c1 of voxel p is row 8 (8 p + c1) + c2; child c is 4 cx + 2 cy + cz."""
    found = []
    for x, y, z in coords.tolist():
        for c1 in range(8):
            for c2 in range(8):
                found.append(
                    (
                        2 * (2 * x + c1 // 4) + c2 // 4,
                        2 * (2 * y + c1 // 2 % 2) + c2 // 2 % 2,
                        2 * (2 * z + c1 % 2) + c2 % 2,
                    )
                )
    return found


class Reference:
    """The surface of a field; `vertices`, `colors` and `faces` when made."""

    def __init__(self, coords: Array, rows: Rows, resolution: int, bias: float) -> None:
        self.resolution, self.rows, self.bias = resolution, rows, bias
        self.row_of_cube = {cube: row for row, cube in enumerate(cubes_of(coords))}
        self.average_at_vertices()
        self.find_cases()
        self.vertices: list[Array] = []
        self.colors: list[Array] = []
        self.quad_corners: dict[tuple[Point, int], list[tuple[Point, int]]] = {}
        for cube in self.cases:
            self.place(cube)
        self.faces: list[tuple[int, ...]] = []
        for (lower, axis), around in self.quad_corners.items():
            if len(around) == 4:
                self.join(lower, axis, around)

    def average_at_vertices(self) -> None:
        collected: dict[Point, list[tuple[int, int]]] = {}
        for cube, row in self.row_of_cube.items():
            for corner, step in enumerate(CORNERS):
                collected.setdefault(plus(cube, step), []).append((row, corner))
        self.sdf, self.position, self.color = {}, {}, {}
        side = range(self.resolution + 1)
        for vertex in ((x, y, z) for x in side for y in side for z in side):
            told = collected.get(vertex, [])
            deform, color, self.sdf[vertex] = np.zeros(3), np.zeros(3), 1.0
            if told:
                self.sdf[vertex] = float(np.mean([self.rows.sdf[at] + self.bias for at in told], dtype=np.float64))
                deform = np.mean([self.rows.deform[at] for at in told], axis=0, dtype=np.float64)
                color = np.mean([self.rows.colors[at][:3] for at in told], axis=0, dtype=np.float64)
            self.position[vertex] = np.array(vertex) / self.resolution - 0.5 + np.tanh(deform) / (2 * self.resolution)
            self.color[vertex] = 1 / (1 + np.exp(-color))

    def find_cases(self) -> None:
        side = range(self.resolution)
        raw = {}
        for cube in ((x, y, z) for x in side for y in side for z in side):
            raw[cube] = sum(2**i for i, step in enumerate(CORNERS) if self.sdf[plus(cube, step)] < 0)
        self.cases = {}
        for cube, case in raw.items():
            if case in (0, 255):
                continue
            if IS_AMBIGUOUS[case]:
                behind = raw.get(plus(cube, tuple(BEHIND_FACE[case].tolist())))
                if behind is not None and IS_AMBIGUOUS[behind]:
                    case = int(INVERTED[case])
            self.cases[cube] = case

    def weights_of(self, cube: Point) -> tuple[Array, Array, float]:
        """Beta, alpha and gamma."""
        raw = np.zeros(21)
        if cube in self.row_of_cube:
            raw = self.rows.weights[self.row_of_cube[cube]].astype(np.float64)
        gamma = 0.99 / (1 + math.exp(-raw[20])) + 0.005
        return 1 + 0.99 * np.tanh(raw[:12]), 1 + 0.99 * np.tanh(raw[12:20]), gamma

    def place(self, cube: Point) -> None:
        beta, alpha, _ = self.weights_of(cube)
        group_of_edge = GROUP_OF_EDGE[self.cases[cube]].tolist()
        for group in range(max(group_of_edge) + 1):
            position, color, total = np.zeros(3), np.zeros(3), 0.0
            for edge in (edge for edge in range(12) if group_of_edge[edge] == group):
                a, b = EDGES[edge].tolist()
                end_a, end_b = plus(cube, CORNERS[a]), plus(cube, CORNERS[b])
                value_a, value_b = self.sdf[end_a] * alpha[a], self.sdf[end_b] * alpha[b]
                t = value_a / (value_a - value_b)
                position += beta[edge] * ((1 - t) * self.position[end_a] + t * self.position[end_b])
                color += beta[edge] * ((1 - t) * self.color[end_a] + t * self.color[end_b])
                total += beta[edge]
                lower = min(end_a, end_b)
                axis = (np.array(end_a) != np.array(end_b)).tolist().index(True)
                self.quad_corners.setdefault((lower, axis), []).append((cube, len(self.vertices)))
            self.vertices.append(position / total)
            self.colors.append(color / total)

    def join(self, lower: Point, axis: int, around: list[tuple[Point, int]]) -> None:
        """Order the four cubes counter-clockwise around the direction out of the surface, and cut the quad."""
        u, v = (axis + 1) % 3, (axis + 2) % 3  # right-handed with the axis
        turn = 1 if self.sdf[lower] < 0 else -1
        ordered = sorted(
            around, key=lambda item: turn * math.atan2(item[0][v] + 0.5 - lower[v], item[0][u] + 0.5 - lower[u])
        )
        a, b, c, d = (dual for _, dual in ordered)
        gamma = [self.weights_of(cube)[2] for cube, _ in ordered]
        # Where both diagonals weigh the same, the one between the lowest and the highest cube is taken for edges that
        # leave the surface upwards along x or z or downwards along y, and the other one elsewhere.
        first, second = gamma[0] * gamma[2], gamma[1] * gamma[3]
        if math.isclose(first, second, rel_tol=1e-9):
            lowest_first = min(cube for cube, _ in ordered) in (ordered[0][0], ordered[2][0])
            cut_first = lowest_first == ((self.sdf[lower] < 0) != (axis == 1))
        else:
            cut_first = first > second
        self.faces += [(a, b, c), (a, c, d)] if cut_first else [(a, b, d), (b, c, d)]
