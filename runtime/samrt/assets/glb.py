"""GLB files out: triangles or points with vertex colours, packed by hand (glTF 2.0, section 4).

glTF is y-up: (x, y, z) of an asset is written as (x, z, -y).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.assets.colors import linear_from_srgb, to_uint8
from samrt.assets.files import FilePath, write_atomically
from samrt.assets.frames import Y_UP_FROM_Z_UP, Z_UP_FROM_Y_UP, as_matrix, moved
from samrt.assets.mesh import Mesh, vertex_normals
from samrt_engines.errors import InputError

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
UINT8, UINT16, UINT32, FLOAT32 = 5121, 5123, 5125, 5126
POINTS, TRIANGLES = 0, 4
_ARRAY_BUFFER, _INDEX_BUFFER = 34962, 34963
_MAX_BYTES = 2**32 - 1


@dataclass(frozen=True)
class Node:
    """A mesh in a scene. matrix: 4x4, from the mesh's z-up frame to the scene's z-up frame; None where they are one."""

    mesh: Mesh
    matrix: NDArray[np.float64] | None = None
    name: str = "object"


def write_glb(
    path: FilePath,
    mesh: Mesh | Sequence[Node],
    *,
    linearize: bool = False,
    normals: bool = False,
    material: bool = True,
) -> None:
    """Write one mesh, or several placed ones, each a node of its own with its matrix. A mesh without faces is points.

    linearize: glTF says COLOR_0 is linear light, while the colours are for display, and so is what most programs that
        write vertex colours store (8 bits, as here by default). True converts them, as floats, because 8 bits are too few
        for dark tones; viewers that follow the standard then show the colours of the picture
    normals: write smooth normals too; without them viewers shade each face flat
    material: a matte white one, which the colours tint; without it the standard's own applies, bare metal. trimesh takes
        the colours of a mesh with a material for an attribute: there, `trimesh.load(path, skip_materials=True)`
    Raises InputError for nothing to write, more than 4 GiB, or a place that cannot be written to.
    """
    nodes = [Node(mesh)] if isinstance(mesh, Mesh) else list(mesh)
    if not nodes or any(len(node.mesh) == 0 for node in nodes):
        raise InputError(f"nothing to write to {path}", got="a mesh without vertices", expected="at least one vertex")
    document = _Document(material)
    for node in nodes:
        document.add(node, linearize=linearize, normals=normals)
    write_atomically(path, document.pieces(path))


@dataclass
class _Document:
    """The JSON and the binary chunk while they grow."""

    material: bool
    meshes: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    arrays: list[NDArray[Any]] = field(default_factory=list)
    size: int = 0

    def add(self, node: Node, *, linearize: bool, normals: bool) -> None:
        mesh = node.mesh
        positions = moved(mesh.vertices, Y_UP_FROM_Z_UP)
        bounds = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
        attributes = {"POSITION": self._accessor(positions, FLOAT32, "VEC3", **bounds)}
        if normals and len(mesh.faces):
            turned = moved(vertex_normals(mesh), Y_UP_FROM_Z_UP)
            attributes["NORMAL"] = self._accessor(turned, FLOAT32, "VEC3")
        if mesh.colors is not None:
            attributes["COLOR_0"] = self._colors(mesh.colors, linearize)
        primitive: dict[str, Any] = {"attributes": attributes, "mode": POINTS}
        if self.material:
            primitive["material"] = 0
        if len(mesh.faces):
            small = len(mesh) < 2**16  # 65535 itself restarts a primitive, and is no row then
            indices = mesh.faces.astype("<u2" if small else "<u4").ravel()
            kind = UINT16 if small else UINT32
            primitive |= {"mode": TRIANGLES, "indices": self._accessor(indices, kind, "SCALAR", _INDEX_BUFFER)}
        entry: dict[str, Any] = {"mesh": len(self.meshes), "name": node.name}
        if node.matrix is not None:
            matrix = Y_UP_FROM_Z_UP @ as_matrix(node.matrix) @ Z_UP_FROM_Y_UP
            entry["matrix"] = matrix.T.ravel().tolist()  # column by column
        self.meshes.append({"primitives": [primitive], "name": node.name})
        self.nodes.append(entry)

    def _colors(self, colors: NDArray[np.float32], linearize: bool) -> int:
        if linearize:
            return self._accessor(linear_from_srgb(colors), FLOAT32, "VEC3")
        rgba = np.full((len(colors), 4), 255, np.uint8)
        rgba[:, :3] = to_uint8(colors)
        return self._accessor(rgba, UINT8, "VEC4", normalized=True)

    def _accessor(
        self, values: NDArray[Any], component: int, kind: str, target: int = _ARRAY_BUFFER, **extra: Any
    ) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": values.nbytes, "target": target})
        self.arrays.append(values)
        self.size += -(-values.nbytes // 4) * 4
        accessor = {"bufferView": len(self.views) - 1, "componentType": component, "count": len(values), "type": kind}
        self.accessors.append(accessor | extra)
        return len(self.accessors) - 1

    def pieces(self, path: FilePath) -> Iterable[bytes | memoryview]:
        text = json.dumps(self._json(), separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self.size
        if total > _MAX_BYTES:
            raise InputError(f"too much for {path}", got=f"{total} bytes", expected="less than 4 GiB", fix="decimate")
        yield struct.pack("<III", MAGIC, 2, total)
        yield struct.pack("<II", len(text), JSON_CHUNK) + text
        yield struct.pack("<II", self.size, BIN_CHUNK)
        for values in self.arrays:
            yield np.ascontiguousarray(values).data.cast("B")
            yield b"\0" * (-values.nbytes % 4)

    def _json(self) -> dict[str, Any]:
        plain = {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": 1}  # the default is metal
        materials = [{"pbrMetallicRoughness": plain, "doubleSided": True}]
        return {
            "asset": {"version": "2.0", "generator": "samrt"},
            "scene": 0,
            "scenes": [{"nodes": list(range(len(self.nodes)))}],
            "nodes": self.nodes,
            "meshes": self.meshes,
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": self.size}],
        } | ({"materials": materials} if self.material else {})
