"""PLY files in: vertices with any scalar properties, triangles, binary little-endian or text.

A header is a stranger's claim: its counts are held against the size of the file before anything is allocated.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from samrt.assets.files import FilePath, open_file
from samrt.assets.gaussians import Gaussians
from samrt.assets.mesh import Mesh
from samrt.assets.ply import GAUSSIAN_PROPERTIES
from samrt_engines.errors import InputError

TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4"},
    **{"float": "<f4", "double": "<f8", "float32": "<f4", "float64": "<f8"},
}
MAX_HEADER_BYTES = 65_536
_NEEDED = tuple(name for name in GAUSSIAN_PROPERTIES if name not in ("nx", "ny", "nz"))
_FACE_LISTS = ("vertex_indices", "vertex_index")
_KNOWN = {*GAUSSIAN_PROPERTIES, "red", "green", "blue"}

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Element:
    """One element of a header. properties: name to numpy type; lists: name to (type of the count, type of an entry)."""

    name: str
    count: int
    properties: dict[str, str]
    lists: dict[str, tuple[str, str]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """One row, where there are no lists."""
        return np.dtype(list(self.properties.items()))


@dataclass(frozen=True)
class Header:
    """What a file says of itself. dropped: properties of its vertices that no asset holds, such as f_rest_0."""

    text: bool
    elements: tuple[Element, ...]
    size_bytes: int

    @property
    def dropped(self) -> tuple[str, ...]:
        return tuple(n for e in self.elements if e.name == "vertex" for n in e.properties if n not in _KNOWN)


def read_ply(path: FilePath, *, faces: bool = True) -> Mesh | Gaussians:
    """Read a PLY file: Gaussians where its vertices have f_dc_0, else a mesh, or a point cloud where it has no faces.

    Coordinates are taken as they are. Colours of higher degree (f_rest_*) and unknown properties are dropped; normals too.
    faces: False reads the vertices alone, whatever the faces are
    Raises InputError for a file that is damaged, of another kind, or holds NaN; nothing larger than the file is allocated.
    """
    file, size = open_file(path)
    with file:
        header = _read_header(file, size, str(path))
        rows, triangles = _read_body(file, header, size, str(path), faces)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused by the asset
            return _gaussians(rows) if "f_dc_0" in rows else _mesh(rows, triangles)
    except InputError as error:
        got = error.what if error.got is None else f"{error.what}: {error.got}"
        raise _refused(path, got, error.expected or "finite numbers in range") from error


def read_ply_header(path: FilePath) -> Header:
    """The header of a PLY file alone. Raises InputError."""
    file, size = open_file(path)
    with file:
        return _read_header(file, size, str(path))


def _read_header(file: BinaryIO, size: int, path: str) -> Header:
    raw = file.read(min(size, MAX_HEADER_BYTES))
    if not raw.startswith((b"ply\n", b"ply\r\n")):
        raise _refused(path, f"a file that begins with {raw[:8]!r}", "a PLY file")
    end = raw.find(b"end_header")
    line_end = raw.find(b"\n", end)
    if end < 0 or line_end < 0:
        raise _refused(path, f"no end_header in the first {len(raw)} bytes", "a whole header")
    try:
        lines = [line.split() for line in raw[:end].decode("ascii").splitlines()[1:]]
    except UnicodeDecodeError:
        raise _refused(path, "a header that is not ASCII", "a PLY header") from None
    lines = [words for words in lines if words and words[0] not in ("comment", "obj_info")]
    formats = [words[1:] for words in lines if words[0] == "format"]
    if formats not in ([["ascii", "1.0"]], [["binary_little_endian", "1.0"]]):
        raise _refused(path, f"format {formats}", "ascii or binary_little_endian 1.0")
    elements = _read_elements([words for words in lines if words[0] != "format"], path)
    return Header(formats[0][0] == "ascii", elements, line_end + 1)


def _read_elements(lines: list[list[str]], path: str) -> tuple[Element, ...]:
    elements: list[Element] = []
    for words in lines:
        match words:
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 16:
                elements.append(Element(name, int(count), {}, {}))
            case ["property", "list", counts, kind, name] if elements and {counts, kind} <= TYPES.keys():
                elements[-1].lists[name] = (TYPES[counts], TYPES[kind])
            case ["property", kind, name] if elements and kind in TYPES and name not in elements[-1].properties:
                elements[-1].properties[name] = TYPES[kind]
            case _:
                raise _refused(path, f"the header line {' '.join(words)[:80]!r}", "elements and properties of PLY 1.0")
    vertices = [element for element in elements if element.name == "vertex"]
    if len(vertices) != 1 or vertices[0].lists or not {"x", "y", "z"} <= vertices[0].properties.keys():
        raise _refused(path, "no vertices with x, y and z", "one element vertex of scalar properties")
    if vertices[0].count == 0:
        raise _refused(path, "0 vertices", "at least one")
    return tuple(elements)


def _read_body(
    file: BinaryIO, header: Header, size: int, path: str, faces: bool
) -> tuple[Columns, NDArray[np.int32] | None]:
    """Columns of the vertices, and triangles (F, 3) where there are some and they are asked for."""
    file.seek(header.size_bytes)
    left = size - header.size_bytes
    if header.text:
        return _read_text(file, header, left, path, faces)
    rows: Columns = {}
    triangles = None
    for element in header.elements:
        if element.name == "face" and element.lists:
            if faces and element.count:
                triangles = _binary_triangles(file, element, left, path)
            if rows:
                break
        if element.lists:
            raise _refused(path, f"the lists of element {element.name} before the vertices", "vertices first")
        needed = element.count * element.dtype.itemsize
        if needed > left:
            raise _refused(path, f"{left} bytes for element {element.name}", f"{needed}, as the header says")
        if element.name == "vertex":
            table = np.fromfile(file, element.dtype, element.count)
            rows = {name: table[name] for name in element.properties}
            if not faces:
                break
        else:
            file.seek(needed, io.SEEK_CUR)
        left -= needed
    return rows, triangles


def _face_lists(element: Element, path: str) -> tuple[str, tuple[str, str]]:
    """The list of corners of element face, which must be all the element has."""
    names = [name for name in _FACE_LISTS if name in element.lists]
    if len(names) != 1 or len(element.lists) != 1 or element.properties:
        got = ", ".join([*element.lists, *element.properties])
        raise _refused(path, f"faces with {got}", f"one list, {_FACE_LISTS[0]}")
    return names[0], element.lists[names[0]]


def _binary_triangles(file: BinaryIO, element: Element, left: int, path: str) -> NDArray[np.int32]:
    _, (count_type, entry_type) = _face_lists(element, path)
    dtype = np.dtype([("corners", count_type), ("rows", entry_type, (3,))])
    if dtype["corners"].kind == "f" or np.dtype(entry_type).kind == "f":
        raise _refused(path, "faces of fractional numbers", "whole numbers")
    if element.count * dtype.itemsize > left:
        raise _refused(path, f"{left} bytes for {element.count} faces", f"{element.count * dtype.itemsize}, triangles")
    table = np.fromfile(file, dtype, element.count)
    if (table["corners"] != 3).any():
        raise _refused(path, f"faces of {int(table['corners'].max())} corners", "triangles")
    return _rows(table["rows"], path)


def _rows(faces: NDArray[Any], path: str) -> NDArray[np.int32]:
    """Faces as int32, refused where that would wrap."""
    if faces.size and (faces.min() < 0 or faces.max() > np.iinfo(np.int32).max):
        raise _refused(path, f"faces that name vertex {faces.max()}", "vertices that are there")
    return faces.astype(np.int32)


def _read_text(
    file: BinaryIO, header: Header, left: int, path: str, faces: bool
) -> tuple[Columns, NDArray[np.int32] | None]:
    rows: Columns = {}
    triangles = None
    for element in header.elements:
        face = element.name == "face"
        if (face and not faces) or (rows and not face):
            continue
        if element.lists and not face:
            raise _refused(path, f"the lists of element {element.name} before the vertices", "vertices first")
        if face and not element.count:
            continue
        if face:
            _face_lists(element, path)
        width = 4 if face else len(element.properties)
        if element.count * 2 * width > left + 1:  # a digit and a space each
            raise _refused(path, f"{left} bytes for {element.count} rows of {element.name}", "a whole file")
        table = _text_table(file, element, width, path)
        if face:
            if (table[:, 0] != 3).any() or (table != np.rint(table)).any():
                raise _refused(path, "faces that are not three whole numbers", "triangles")
            triangles = _rows(table[:, 1:], path)
        elif element.name == "vertex":
            rows = {
                name: _column(table[:, at], kind, path) for at, (name, kind) in enumerate(element.properties.items())
            }
    return rows, triangles


def _column(values: NDArray[np.float64], kind: str, path: str) -> NDArray[Any]:
    """A column of a text file as the type that the header gives it."""
    dtype = np.dtype(kind)
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= values.min() <= values.max() <= np.iinfo(dtype).max:
        raise _refused(path, f"{values.min():g}..{values.max():g} as {dtype}", "numbers in the range of their type")
    return values.astype(dtype)


def _text_table(file: BinaryIO, element: Element, width: int, path: str) -> NDArray[np.float64]:
    """The next rows of a text file, float64 (count, width)."""
    lines = io.BytesIO()
    for number in range(element.count):
        line = file.readline(65_536)
        if len(line.split()) != width:
            got = "the end of the file" if not line else repr(line[:60].decode("ascii", "replace"))
            raise _refused(path, f"{got} as row {number} of {element.name}", f"{width} numbers")
        lines.write(line)
    try:
        values = np.array(lines.getvalue().split(), np.float64)
    except ValueError as error:
        raise _refused(path, str(error), "numbers") from None
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float32).max:
        raise _refused(path, f"numbers of element {element.name} that are not finite", "float32")
    return values.reshape(element.count, width)


def _gaussians(rows: Columns) -> Gaussians:
    missing = [name for name in _NEEDED if name not in rows]
    if missing:
        raise InputError(f"Gaussians without {', '.join(missing)}", expected=", ".join(_NEEDED))

    def stacked(*names: str) -> NDArray[np.float32]:
        return np.stack([rows[name] for name in names], axis=1).astype(np.float32)

    opacities = 1 / (1 + np.exp(-rows["opacity"].astype(np.float64)))  # a logit of -800 is an opacity of 0
    scales = np.exp(stacked("scale_0", "scale_1", "scale_2"))
    return Gaussians(
        positions=stacked("x", "y", "z"),
        colors_dc=stacked("f_dc_0", "f_dc_1", "f_dc_2"),
        opacities=opacities.astype(np.float32),
        scales=scales,
        rotations=stacked("rot_0", "rot_1", "rot_2", "rot_3"),
    )


def _mesh(rows: Columns, triangles: NDArray[np.int32] | None) -> Mesh:
    vertices = np.stack([rows[axis] for axis in "xyz"], axis=1)
    colors = None
    if all(name in rows for name in ("red", "green", "blue")):
        colors = np.stack([_unit(rows[name]) for name in ("red", "green", "blue")], axis=1)
    faces = np.empty((0, 3), np.int32) if triangles is None else triangles
    return Mesh(vertices, faces, colors)


def _unit(channel: NDArray[Any]) -> NDArray[np.float32]:
    """A colour as 0..1: of unsigned whole numbers the highest is 1."""
    return (channel / np.iinfo(channel.dtype).max if channel.dtype.kind == "u" else channel).astype(np.float32)


def _refused(path: FilePath, got: str, expected: str) -> InputError:
    return InputError(f"cannot read {path}", got=got, expected=expected)
