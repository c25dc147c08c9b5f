"""PLY out and in: against plyfile, and against headers that lie."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from samrt.assets import Gaussians, Mesh, read_ply, read_ply_header, write_ply
from samrt_engines.errors import InputError

LAYOUT = [
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]


def test_gaussians_are_68_bytes_each_in_the_layout_of_viewers(gaussians: Gaussians, tmp_path: Path) -> None:
    path = tmp_path / "gaussians.ply"
    write_ply(path, gaussians)
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert len(body) == 68 * len(gaussians)
    assert [line.split()[1:] for line in header.decode().splitlines() if line.startswith("property")] == [
        ["float", name] for name in LAYOUT
    ]
    rows = np.frombuffer(body, "<f4").reshape(-1, 17)
    np.testing.assert_array_equal(rows[:, :3], gaussians.positions)
    np.testing.assert_array_equal(rows[:, 3:6], 0)
    np.testing.assert_array_equal(rows[:, 6:9], gaussians.colors_dc)
    p = gaussians.opacities[2:].astype(float)
    np.testing.assert_allclose(rows[2:, 9], np.log(p / (1 - p)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows[:2, 9], [-16.118, 16.118], atol=1e-3)  # finite for 0 and 1
    np.testing.assert_allclose(rows[:, 10:13], np.log(gaussians.scales), rtol=1e-6)
    np.testing.assert_array_equal(rows[:, 13:], gaussians.rotations)


def test_gaussians_round_trip(gaussians: Gaussians, tmp_path: Path) -> None:
    write_ply(tmp_path / "gaussians.ply", gaussians)
    again = read_ply(tmp_path / "gaussians.ply")
    assert isinstance(again, Gaussians)
    for field in fields(gaussians):
        np.testing.assert_allclose(getattr(again, field.name), getattr(gaussians, field.name), rtol=2e-6, atol=2e-7)


def test_plyfile_reads_gaussians(gaussians: Gaussians, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    write_ply(tmp_path / "gaussians.ply", gaussians)
    vertex = plyfile.PlyData.read(tmp_path / "gaussians.ply")["vertex"]
    assert [item.name for item in vertex.properties] == LAYOUT
    np.testing.assert_array_equal(vertex["y"], gaussians.positions[:, 1])
    np.testing.assert_array_equal(vertex["rot_3"], gaussians.rotations[:, 3])


def test_plyfile_reads_meshes(ball: Mesh, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    write_ply(tmp_path / "ball.ply", ball)
    data = plyfile.PlyData.read(tmp_path / "ball.ply")
    np.testing.assert_array_equal(data["vertex"]["z"], ball.vertices[:, 2])
    np.testing.assert_array_equal(data["vertex"]["green"], np.rint(ball.colors[:, 1] * 255))
    np.testing.assert_array_equal(np.stack(data["face"]["vertex_indices"]), ball.faces)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_what_plyfile_writes_is_read(ball: Mesh, text: bool, tmp_path: Path) -> None:
    """Doubles, properties no one knows, an element before the vertices and one after them."""
    plyfile = pytest.importorskip("plyfile")
    kinds = [("confidence", "f8"), ("x", "f8"), ("y", "f8"), ("z", "f8")]
    kinds += [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("label", "i2")]
    vertices = np.zeros(len(ball), kinds)
    for index, axis in enumerate("xyz"):
        vertices[axis] = ball.vertices[:, index]
    for index, color in enumerate(("red", "green", "blue")):
        vertices[color] = np.rint(ball.colors[:, index] * 255)
    faces = np.empty(len(ball.faces), [("vertex_indices", "i4", (3,))])
    faces["vertex_indices"] = ball.faces
    camera, after = np.array([(1, 2.5)], [("id", "i4"), ("focal", "f4")]), np.array([(7,)], [("n", "u2")])
    elements = [plyfile.PlyElement.describe(camera, "camera"), plyfile.PlyElement.describe(vertices, "vertex")]
    elements += [plyfile.PlyElement.describe(faces, "face"), plyfile.PlyElement.describe(after, "after")]
    plyfile.PlyData(elements, text=text, comments=["made elsewhere"]).write(tmp_path / "other.ply")
    again = read_ply(tmp_path / "other.ply")
    assert isinstance(again, Mesh)
    np.testing.assert_allclose(again.vertices, ball.vertices, atol=1e-7)
    np.testing.assert_array_equal(again.faces, ball.faces)
    np.testing.assert_array_equal(
        np.rint(again.colors * 255),
        vertices["red"][:, None].astype(float) * [1, 0, 0]
        + np.stack([0 * vertices["red"], vertices["green"], vertices["blue"]], axis=1),
    )
    assert read_ply_header(tmp_path / "other.ply").dropped == ("confidence", "label")


def test_mesh_and_points_round_trip(ball: Mesh, tmp_path: Path) -> None:
    for mesh in (ball, Mesh.points(ball.vertices, ball.colors), Mesh(ball.vertices, ball.faces)):
        write_ply(tmp_path / "ball.ply", mesh)
        again = read_ply(tmp_path / "ball.ply")
        assert isinstance(again, Mesh)
        np.testing.assert_array_equal(again.vertices, mesh.vertices)
        np.testing.assert_array_equal(again.faces, mesh.faces)
        if mesh.colors is None:
            assert again.colors is None
        else:
            np.testing.assert_allclose(again.colors, mesh.colors, atol=0.5 / 255 + 1e-6)
    assert read_ply(tmp_path / "ball.ply", faces=False).faces.shape == (0, 3)


def ascii_ply(*lines: str, rows: str = "0 0 0\n1 0 0\n0 1 0\n") -> bytes:
    header = "\n".join(["ply", "format ascii 1.0", *lines, "end_header", ""])
    return (header + rows).encode()


XYZ = ("property float x", "property float y", "property float z")
QUAD = ascii_ply(
    "element vertex 4", *XYZ, "element face 1", "property list uchar int vertex_index",
    rows="0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n",
)  # fmt: skip


def test_text(tmp_path: Path) -> None:
    data = ascii_ply(
        "comment no colours", "element vertex 3", *XYZ, "property float red", rows="1 2 3 1\n4 5 6 1\n-1e-3 .5 +2 0"
    )
    (tmp_path / "text.ply").write_bytes(data.replace(b"\n", b"\r\n"))
    mesh = read_ply(tmp_path / "text.ply")
    assert isinstance(mesh, Mesh)
    np.testing.assert_allclose(mesh.vertices, [[1, 2, 3], [4, 5, 6], [-0.001, 0.5, 2]])
    assert mesh.colors is None


def test_faces_that_no_one_asks_for_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "quad.ply").write_bytes(QUAD)
    assert len(read_ply(tmp_path / "quad.ply", faces=False)) == 4


def binary(count: int, body: bytes, *more: str) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *XYZ, *more, "end_header", ""]
    return "\n".join(lines).encode() + body


TRIANGLE = np.eye(3, dtype="<f4").tobytes()
FACE = ("element face 1", "property list uchar int vertex_indices")
GAUSSIAN = [f"property float {name}" for name in LAYOUT[3:]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a file that begins with b'' \| expected: a PLY file"),
        (b"plywood", "a file that begins with b'plywood'"),
        (b"ply\nformat ascii 1.0\n", "no end_header in the first 21 bytes"),
        (b"ply\n" + b"comment " * 10_000, "no end_header in the first 65536 bytes"),
        (b"ply\nformat ascii 1.0\ncomment \xff\nend_header\n", "a header that is not ASCII"),
        (ascii_ply().replace(b"ascii", b"binary_big_endian"), "format .*big_endian.* expected: ascii or binary_little"),
        (ascii_ply("element vertex 3", *XYZ).replace(b"format", b"comment"), r"format \[\]"),
        (ascii_ply("element vertex -3", *XYZ), "the header line 'element vertex -3'"),
        (ascii_ply("element vertex 99999999999999999999", *XYZ), "the header line 'element vertex 9999"),
        (ascii_ply("property float x"), "the header line 'property float x'"),
        (ascii_ply("element vertex 3", *XYZ, "property quad w"), "the header line 'property quad w'"),
        (ascii_ply("element vertex 3", *XYZ, "property float x"), "the header line 'property float x'"),
        (ascii_ply("element vertex 3", *XYZ[:2]), "no vertices with x, y and z"),
        (ascii_ply("element vertex 3", *XYZ, "element vertex 3", *XYZ), "expected: one element vertex"),
        (ascii_ply("element vertex 3", *XYZ, "property list uchar int n"), "expected: one element vertex"),
        (ascii_ply("element vertex 0", *XYZ), "0 vertices"),
        (ascii_ply("element vertex 999999999", *XYZ), "18 bytes for 999999999 rows of vertex"),
        (ascii_ply("element vertex 3", *XYZ, rows="0 0 0\n1 0 0\n          "), "as row 2 of vertex"),
        (ascii_ply("element vertex 3", *XYZ, rows="0 0 0\n1 0 0\n0 one 0\n"), "could not convert string to float"),
        (ascii_ply("element vertex 3", *XYZ, rows="0 0 0\n1 0 0\n0 nan 0\n"), "that are not finite"),
        (ascii_ply("element vertex 3", *XYZ, rows="0 0 0\n1 0 0\n0 1e99 0\n"), "that are not finite"),
        (ascii_ply("element vertex 1", *XYZ, "property uchar red", rows="0 0 0 300\n"), r"got: 300..300 as uint8"),
        (binary(1, np.array([*np.ones(16), np.nan], "<f4").tobytes(), *GAUSSIAN), "rotations are not finite"),
        (binary(1, np.array([*np.ones(9), np.nan, *np.ones(7)], "<f4").tobytes(), *GAUSSIAN), "opacities are not finite"),
        (binary(1, np.array([*np.ones(12), np.nan, *np.ones(4)], "<f4").tobytes(), *GAUSSIAN), "scales are not finite"),
        (QUAD, "'4 0 1 2 3.* as row 0 of face"),
        (QUAD.replace(b"4 0 1 2 3", b"3 0 1 2.5"), "faces that are not three whole numbers"),
        (QUAD.replace(b"4 0 1 2 3", b"3 0 1 7"), "faces name vertices that are not there"),
        (QUAD.replace(b"4 0 1 2 3", b"3 0 1 -7"), "faces that name vertex"),
        (binary(4, TRIANGLE), r"36 bytes for element vertex \| expected: 48, as the header says"),
        (binary(10**14, TRIANGLE), "36 bytes for element vertex"),
        (binary(3, TRIANGLE.replace(b"\0\0\x80?", b"\0\0\xc0\x7f")), r"vertices are not finite: NaN or infinity in 3 of 3 rows"),
        (binary(3, TRIANGLE + b"\3" + bytes(8), *FACE), "9 bytes for 1 faces"),
        (binary(3, TRIANGLE + b"\4" + bytes(16), *FACE), r"faces of 4 corners \| expected: triangles"),
        (binary(3, TRIANGLE + b"\3" + bytes(4) + b"\1\0\0\0\3\0\0\0", *FACE), r"not there: 0..3 \| expected: 0..2"),
        (binary(3, TRIANGLE + bytes(20), *FACE, "property uchar red"), "faces with vertex_indices, red"),
        (binary(3, TRIANGLE + bytes(20), "element face 1", "property list uchar float vertex_index"), "fractional"),
        (binary(3, TRIANGLE, "property float f_dc_0"), "36 bytes for element vertex"),
        (binary(1, bytes(16), "property float f_dc_0"), r"got: Gaussians without f_dc_1, f_dc_2, opacity, .* expected: x, y"),
        (binary(1, bytes(68), *GAUSSIAN), "rotations of length 0"),
        (binary(1, np.full(17, 200, "<f4").tobytes(), *GAUSSIAN), "scales are not finite"),
    ],
)  # fmt: skip
def test_files_that_lie(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.ply"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_ply(path)
    assert str(caught.value).startswith(f"cannot read {path}")


def test_every_truncation_is_one_error(ball: Mesh, gaussians: Gaussians, tmp_path: Path) -> None:
    for asset in (ball, gaussians):
        write_ply(tmp_path / "whole.ply", asset)
        data = (tmp_path / "whole.ply").read_bytes()
        for length in [*range(0, 500, 7), *range(500, len(data), 211)]:
            (tmp_path / "cut.ply").write_bytes(data[:length])
            with pytest.raises(InputError, match="cannot read"):
                read_ply(tmp_path / "cut.ply")


def test_lists_before_the_vertices(tmp_path: Path) -> None:
    lines = ["ply", "format {} 1.0", "element strip 1", "property list int int rows", "element vertex 1", *XYZ]
    for kind in ("ascii", "binary_little_endian"):
        (tmp_path / "lists.ply").write_bytes("\n".join([*lines, "end_header", ""]).format(kind).encode() + bytes(99))
        with pytest.raises(
            InputError, match=r"the lists of element strip before the vertices \| expected: vertices first"
        ):
            read_ply(tmp_path / "lists.ply")


def test_colours_of_higher_degree_are_named(gaussians: Gaussians, tmp_path: Path) -> None:
    write_ply(tmp_path / "g.ply", gaussians)
    header, _, body = (tmp_path / "g.ply").read_bytes().partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(-1, 17)
    wide = np.concatenate([rows, np.ones((len(rows), 2), "<f4")], axis=1)
    more = b"property float f_rest_0\nproperty float f_rest_1\nend_header\n"
    (tmp_path / "wide.ply").write_bytes(header + more + wide.tobytes())
    assert read_ply_header(tmp_path / "wide.ply").dropped == ("f_rest_0", "f_rest_1")
    again = read_ply(tmp_path / "wide.ply")
    assert isinstance(again, Gaussians)
    np.testing.assert_array_equal(again.rotations, gaussians.rotations)


def test_logits_as_large_as_they_get(tmp_path: Path) -> None:
    row = np.zeros(17, "<f4")
    row[13] = 1
    rows = np.stack([row, row])
    rows[:, 9] = -1e4, 1e4
    (tmp_path / "g.ply").write_bytes(binary(2, rows.tobytes(), *GAUSSIAN))
    again = read_ply(tmp_path / "g.ply")
    assert isinstance(again, Gaussians)
    np.testing.assert_array_equal(again.opacities, [0, 1])


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got: an empty asset"):
        write_ply(tmp_path / "none.ply", Mesh.points(np.empty((0, 3))))
    assert list(tmp_path.iterdir()) == []
