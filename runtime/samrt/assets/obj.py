"""OBJ files with vertex colours: a dialect that MeshLab, Blender and trimesh read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from samrt.assets.files import FilePath, write_atomically
from samrt.assets.frames import Y_UP_FROM_Z_UP, moved
from samrt.assets.mesh import Mesh
from samrt_engines.errors import InputError

_LINES = 100_000  # formatted at once


def write_obj(path: FilePath, mesh: Mesh, *, y_up: bool = True) -> None:
    """Write vertices with their colours, and faces.

    y_up: turn (x, y, z) to (x, z, -y), as in a GLB, which is what programs expect of an OBJ
    Raises InputError for a mesh without vertices, or a place that cannot be written to.
    """
    if len(mesh) == 0:
        raise InputError(f"nothing to write to {path}", got="an empty mesh", expected="at least one vertex")
    write_atomically(path, _pieces(mesh, y_up))


def _pieces(mesh: Mesh, y_up: bool) -> Iterable[bytes]:
    yield b"# made by samrt\n"
    rows = moved(mesh.vertices, Y_UP_FROM_Z_UP) if y_up else mesh.vertices
    line = "v %.7g %.7g %.7g\n"
    if mesh.colors is not None:
        rows = np.concatenate([rows, mesh.colors], axis=1)
        line = "v %.7g %.7g %.7g %.5g %.5g %.5g\n"
    yield from _formatted(line, rows)
    yield from _formatted("f %d %d %d\n", mesh.faces.astype(np.int64) + 1)


def _formatted(line: str, rows: NDArray[np.generic]) -> Iterable[bytes]:
    for start in range(0, len(rows), _LINES):
        block = rows[start : start + _LINES]
        yield ((line * len(block)) % tuple(block.ravel().tolist())).encode("ascii")
