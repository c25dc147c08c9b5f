"""GLB files in: positions, colours and faces of every mesh of the scene, as one mesh.

Textures, normals, animations and everything else are left out. Compressed geometry (Draco, meshopt), sparse accessors and
data outside the file are refused. Offsets and counts are a stranger's claim: each is held against the file first.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from samrt.assets.colors import srgb_from_linear
from samrt.assets.files import FilePath, open_file
from samrt.assets.frames import Z_UP_FROM_Y_UP
from samrt.assets.gaussians import rotation_from_quaternion
from samrt.assets.glb import BIN_CHUNK, JSON_CHUNK, MAGIC, POINTS, TRIANGLES
from samrt.assets.mesh import Mesh
from samrt_engines.errors import InputError

MAX_VERTICES = 100_000_000
"""Vertices of a scene together: a small file can name one mesh a million times."""

_MAX_JSON_BYTES = 64 * 2**20
_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
_STRIP, _FAN = 5, 6
_MAX_STEP = 1e12  # of a node's matrix: some of them in a row stay finite


def read_glb(path: FilePath, *, linear: bool = False) -> Mesh:
    """Read a GLB as one mesh, z-up: nodes are applied, primitives put one after another.

    Where some primitives have colours, those without are white; where none has, the mesh has no colours.
    linear: the file's colours are linear light (as `write_glb(linearize=True)` writes them) and become display colours
    Raises InputError for a file that is damaged, compressed, not a GLB, or holds no triangles and no points.
    """
    file, size = open_file(path)
    with file:
        document, chunk = _read_chunks(file, size, str(path))
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused by the mesh
            mesh = _Scene(document, chunk).mesh()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise InputError(f"cannot read {path}", got=_said(error), expected=error.expected, fix=error.fix) from error
        got = f"{type(error).__name__} {error} in its JSON"
        raise InputError(f"cannot read {path}", got=got, expected="a glTF 2.0 scene") from error
    if mesh.colors is None or not linear:
        return mesh
    return Mesh(mesh.vertices, mesh.faces, srgb_from_linear(mesh.colors))


def _said(error: InputError) -> str:
    return error.what if error.got is None else f"{error.what}: {error.got}"


def _read_chunks(file: BinaryIO, size: int, path: str) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk."""

    def refused(got: str, expected: str) -> InputError:
        return InputError(f"cannot read {path}", got=got, expected=expected)

    head = file.read(20)
    if head[:4] != struct.pack("<I", MAGIC):
        raise refused(f"a file that begins with {head[:8]!r}", "a GLB file")
    if len(head) < 20:
        raise refused(f"{size} bytes", "a GLB file of at least 20")
    _, version, total, json_bytes, kind = struct.unpack("<IIIII", head)
    if version != 2:
        raise refused(f"version {version}", "version 2")
    if total > size or json_bytes > total - 20 or json_bytes > _MAX_JSON_BYTES or kind != JSON_CHUNK:
        raise refused(f"{size} bytes that claim {total}, of which {json_bytes} JSON", "a whole GLB file")
    try:
        document = json.loads(file.read(json_bytes))
    except (ValueError, RecursionError) as error:
        raise refused(f"JSON that cannot be read: {error}", "a whole GLB file") from error
    if not isinstance(document, dict):
        raise refused("JSON that is no object", "a glTF document")
    head, left = file.read(8), total - 20 - json_bytes - 8
    if len(head) < 8:
        return document, b""
    chunk_bytes, kind = struct.unpack("<II", head)
    if kind != BIN_CHUNK or chunk_bytes > left:
        raise refused(f"a binary chunk of {chunk_bytes} bytes where {left} are left", "a whole GLB file")
    return document, file.read(chunk_bytes)


class _Scene:
    """What a document says, looked up with care. Wrong types and missing keys raise what Python raises for them."""

    def __init__(self, document: dict[str, Any], chunk: bytes):
        self.document = document
        self.chunk = chunk
        self.count = 0
        self.vertices: list[NDArray[np.float64]] = []
        self.faces: list[NDArray[np.int64]] = []
        self.colors: list[NDArray[np.float32] | None] = []

    def mesh(self) -> Mesh:
        for name in self.document.get("extensionsRequired", []):
            if name in _COMPRESSED:
                raise _compressed(name)
        for mesh, matrix in self._placed_meshes():
            for primitive in self._list("meshes", mesh)["primitives"]:
                self._add(primitive, matrix)
        if not self.count:
            raise InputError("no triangles and no points", expected="a mesh with POSITION")
        colors = None
        if any(part is not None for part in self.colors):
            pairs = zip(self.colors, self.vertices, strict=True)
            white = [np.ones((len(points), 3), np.float32) if part is None else part for part, points in pairs]
            colors = np.concatenate(white)
        positions = np.concatenate(self.vertices) @ Z_UP_FROM_Y_UP[:3, :3].T
        return Mesh(positions, np.concatenate(self.faces), colors)  # type: ignore[arg-type]

    def _list(self, name: str, index: Any) -> dict[str, Any]:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(f"{name}[{index!r}]")
        entry: dict[str, Any] = self.document[name][index]
        return entry

    def _placed_meshes(self) -> list[tuple[int, NDArray[np.float64]]]:
        """Meshes with the matrices of their nodes: of the default scene, or all nodes that are no one's children."""
        nodes = self.document.get("nodes", [])
        if not nodes:
            return [(index, np.eye(4)) for index in range(len(self.document.get("meshes", [])))]
        if self.document.get("scenes"):
            roots = self._list("scenes", self.document.get("scene", 0)).get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [index for index in range(len(nodes)) if index not in children]
        placed, seen = [], set()
        stack = [(root, np.eye(4)) for root in reversed(roots)]
        while stack:
            index, parent = stack.pop()
            if index in seen:
                raise InputError("a node with two parents", got=f"node {index}", expected="a tree of nodes")
            seen.add(index)
            node = self._list("nodes", index)
            matrix = parent @ _matrix_of(node)
            if not np.isfinite(matrix).all():
                raise InputError("a node that leads nowhere", got=f"node {index}", expected="finite numbers in range")
            if "mesh" in node:
                placed.append((node["mesh"], matrix))
            stack += [(child, matrix) for child in reversed(node.get("children", []))]
        return placed

    def _add(self, primitive: dict[str, Any], matrix: NDArray[np.float64]) -> None:
        for name in primitive.get("extensions", {}):
            if name in _COMPRESSED:
                raise _compressed(name)
        mode = primitive.get("mode", TRIANGLES)
        if mode not in (POINTS, TRIANGLES, _STRIP, _FAN):
            return  # lines
        attributes = primitive["attributes"]
        positions = self._values(attributes["POSITION"], ("VEC3",))
        if self.count + len(positions) > MAX_VERTICES:
            raise InputError("too many vertices", expected=f"at most {MAX_VERTICES}")
        colors = None
        if "COLOR_0" in attributes:
            colors = self._values(attributes["COLOR_0"], ("VEC3", "VEC4"))[:, :3].astype(np.float32)
            if len(colors) != len(positions):
                raise InputError("colours of another count", got=str(len(colors)), expected=str(len(positions)))
        triangles = self._triangles(primitive, mode, len(positions)) + self.count
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        self.faces.append(triangles[:, ::-1] if mirrored else triangles)
        self.vertices.append(positions @ matrix[:3, :3].T + matrix[:3, 3])
        self.colors.append(colors)
        self.count += len(positions)

    def _triangles(self, primitive: dict[str, Any], mode: int, count: int) -> NDArray[np.int64]:
        if mode == POINTS:
            return np.empty((0, 3), np.int64)
        rows = np.arange(count)
        if "indices" in primitive:
            rows = self._values(primitive["indices"], ("SCALAR",))[:, 0].astype(np.int64)
            if rows.size and not 0 <= rows.min() <= rows.max() < count:
                raise InputError("indices past the vertices", got=str(rows.max()), expected=f"0..{count - 1}")
        if mode == TRIANGLES:
            return rows[: len(rows) // 3 * 3].reshape(-1, 3)
        if mode == _FAN:
            return np.stack([np.full(max(len(rows) - 2, 0), rows[0]), rows[1:-1], rows[2:]], axis=1)
        strip = np.stack([rows[:-2], rows[1:-1], rows[2:]], axis=1)
        strip[1::2] = strip[1::2][:, (1, 0, 2)]  # every other triangle of a strip runs the other way
        return strip

    def _values(self, index: Any, kinds: tuple[str, ...]) -> NDArray[np.float64]:
        """An accessor as float64 (count, width); of normalised whole numbers the highest is 1."""
        accessor = self._list("accessors", index)
        if "sparse" in accessor or "bufferView" not in accessor:
            raise InputError("a sparse or empty accessor", expected="plain arrays", fix="save it again without them")
        if accessor["type"] not in kinds:
            raise InputError("an accessor of another type", got=str(accessor["type"]), expected=" or ".join(kinds))
        view = self._list("bufferViews", accessor["bufferView"])
        if view.get("buffer", 0) != 0 or "uri" in self._list("buffers", 0):
            raise InputError("data outside the file", expected="one buffer, inside", fix="save it as one .glb")
        dtype, width = np.dtype(_COMPONENTS[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        row = dtype.itemsize * width
        count, stride = accessor["count"], view.get("byteStride", row)
        inside, start = accessor.get("byteOffset", 0), view.get("byteOffset", 0)
        end = inside + stride * (count - 1) + row
        if min(count, inside, start) < 0 or stride < row or end > view["byteLength"] or start + end > len(self.chunk):
            raise InputError("an array past its end", got=f"{count} rows at {start + inside}", expected="a whole file")
        table = np.ndarray((count, width), dtype, self.chunk, start + inside, (stride, dtype.itemsize))
        scale = np.iinfo(dtype).max if accessor.get("normalized") and dtype.kind != "f" else 1
        return np.asarray(table / scale, np.float64)


def _matrix_of(node: dict[str, Any]) -> NDArray[np.float64]:
    """From a node to its parent: a matrix, or a translation, a rotation xyzw and a scale."""
    if "matrix" in node:
        matrix = np.array(node["matrix"], np.float64).reshape(4, 4).T
    else:
        x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
        turn = np.array([[w, x, y, z]])
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_from_quaternion(turn)[0] if turn.any() else np.nan
        matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
        matrix[:3, 3] = node.get("translation", (0, 0, 0))
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > _MAX_STEP:
        raise InputError("a node that leads nowhere", got=str(matrix.tolist()), expected="finite numbers in range")
    return matrix


def _compressed(name: str) -> InputError:
    return InputError("compressed geometry", got=name, expected="plain arrays", fix="save it again without compression")
