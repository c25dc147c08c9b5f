"""PLY files out: Gaussians in the layout that splat viewers read, meshes and point clouds with 8-bit colours.

Everything is little-endian binary, in the frame of the asset (z-up).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from samrt.assets.colors import to_uint8
from samrt.assets.files import FilePath, write_atomically
from samrt.assets.gaussians import Gaussians
from samrt.assets.mesh import Mesh
from samrt_engines.errors import InputError

GAUSSIAN_PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *("f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
"""float32 each, 68 bytes a Gaussian: opacity is a logit, scales are logarithms, normals are 0, rotations are wxyz."""

_LEAST = 1e-7  # opacities this near to 0 or 1 are written as if they were not nearer: a logit must be finite
_LEAST_SCALE = 1e-12


def write_ply(path: FilePath, asset: Mesh | Gaussians) -> None:
    """Write Gaussians, a mesh, or a mesh without faces as a point cloud.

    Raises InputError for an asset with nothing in it, or a place that cannot be written to.
    """
    if len(asset) == 0:
        raise InputError(f"nothing to write to {path}", got="an empty asset", expected="at least one point")
    write_atomically(path, _gaussian_pieces(asset) if isinstance(asset, Gaussians) else _mesh_pieces(asset))


def logits_from_opacities(opacities: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(p / (1 - p)) of 0..1, finite."""
    inside = np.clip(opacities.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.log(inside / (1 - inside)).astype(np.float32)


def _gaussian_pieces(asset: Gaussians) -> Iterable[bytes | memoryview]:
    rows = np.zeros((len(asset), len(GAUSSIAN_PROPERTIES)), "<f4")
    rows[:, 0:3] = asset.positions
    rows[:, 6:9] = asset.colors_dc
    rows[:, 9] = logits_from_opacities(asset.opacities)
    rows[:, 10:13] = np.log(np.maximum(asset.scales, _LEAST_SCALE))
    rows[:, 13:17] = asset.rotations
    yield _header([("vertex", len(asset), [f"float {name}" for name in GAUSSIAN_PROPERTIES])])
    yield rows.data


def _mesh_pieces(mesh: Mesh) -> Iterable[bytes | memoryview]:
    fields = [("xyz", "<f4", (3,))] + ([("rgb", "u1", (3,))] if mesh.colors is not None else [])
    rows = np.empty(len(mesh), np.dtype(fields))
    rows["xyz"] = mesh.vertices
    properties = ["float x", "float y", "float z"]
    if mesh.colors is not None:
        rows["rgb"] = to_uint8(mesh.colors)
        properties += ["uchar red", "uchar green", "uchar blue"]
    elements = [("vertex", len(mesh), properties)]
    if len(mesh.faces):
        elements.append(("face", len(mesh.faces), ["list uchar int vertex_indices"]))
    yield _header(elements)
    yield rows.tobytes()
    if len(mesh.faces):
        faces = np.empty(len(mesh.faces), np.dtype([("corners", "u1"), ("rows", "<i4", (3,))]))
        faces["corners"] = 3
        faces["rows"] = mesh.faces
        yield faces.tobytes()


def _header(elements: list[tuple[str, int, list[str]]]) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", "comment made by samrt"]
    for name, count, properties in elements:
        lines += [f"element {name} {count}", *(f"property {text}" for text in properties)]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")
