"""GLB out and in: what is written is read back by us and by trimesh; what is damaged or odd gives one error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samrt.assets import Mesh, Node, read_glb, write_glb
from samrt.assets.colors import to_uint8
from samrt.assets.mesh import vertex_normals
from samrt_engines.errors import InputError

Edit = Callable[[dict[str, Any]], object]


def contents(path: Path) -> tuple[dict[str, Any], bytes]:
    """The two chunks of a GLB, with the lengths that the standard asks for."""
    data = path.read_bytes()
    magic, version, total, json_bytes, json_kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, total, json_kind) == (b"glTF", 2, len(data), b"JSON")
    bin_bytes, bin_kind = struct.unpack_from("<I4s", data, 20 + json_bytes)
    assert (json_bytes % 4, bin_bytes % 4, bin_kind) == (0, 0, b"BIN\0")
    assert 28 + json_bytes + bin_bytes == total
    return json.loads(data[20 : 20 + json_bytes]), data[28 + json_bytes :]


def packed(document: object, chunk: bytes) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(chunk), len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(chunk), b"BIN\0") + chunk


def yup(points: np.ndarray) -> np.ndarray:
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)


def test_the_file_says_what_the_standard_asks_for(ball: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "ball.glb"
    write_glb(path, ball, normals=True)
    document, chunk = contents(path)
    (primitive,) = document["meshes"][0]["primitives"]
    accessors = {name: document["accessors"][index] for name, index in primitive["attributes"].items()}
    side = 0.4 * np.sin(np.pi * 5 / 11)
    np.testing.assert_allclose(accessors["POSITION"]["min"], [-side, -0.35, -side], atol=1e-6)
    positions = np.frombuffer(chunk, "<f4", 3 * len(ball), 0).reshape(-1, 3)
    np.testing.assert_array_equal(positions, yup(ball.vertices))
    np.testing.assert_array_equal(accessors["POSITION"]["max"], positions.max(axis=0))
    assert (accessors["COLOR_0"]["componentType"], accessors["COLOR_0"]["type"]) == (5121, "VEC4")
    assert accessors["COLOR_0"]["normalized"] is True
    indices = document["accessors"][primitive["indices"]]
    assert (indices["componentType"], indices["count"]) == (5123, 3 * len(ball.faces))
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])
    start = document["bufferViews"][accessors["NORMAL"]["bufferView"]]["byteOffset"]
    normals = np.frombuffer(chunk, "<f4", 3 * len(ball), start).reshape(-1, 3)
    np.testing.assert_array_equal(normals, yup(vertex_normals(ball)))
    assert [path.name for path in tmp_path.iterdir()] == ["ball.glb"]


def test_round_trip(ball: Mesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "ball.glb", ball)
    again = read_glb(tmp_path / "ball.glb")
    np.testing.assert_array_equal(again.vertices, ball.vertices)
    np.testing.assert_array_equal(again.faces, ball.faces)
    np.testing.assert_allclose(again.colors, ball.colors, atol=0.5 / 255 + 1e-6)


def test_many_vertices_take_wide_indices(tmp_path: Path) -> None:
    vertices = np.random.default_rng(0).random((70_000, 3), np.float32)
    faces = np.array([[0, 69_999, 65_535], [65_536, 1, 2]])
    write_glb(tmp_path / "wide.glb", Mesh(vertices, faces))
    again = read_glb(tmp_path / "wide.glb")
    np.testing.assert_array_equal(again.faces, faces)
    assert again.colors is None


def test_linear_colours(ball: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "linear.glb"
    write_glb(path, Mesh(ball.vertices, ball.faces, np.full((len(ball), 3), [0.5, 0.02, 1])), linearize=True)
    linear = read_glb(path).colors
    np.testing.assert_allclose(linear[0], [0.21404114, 0.02 / 12.92, 1], rtol=1e-5)  # values of IEC 61966-2-1
    np.testing.assert_allclose(read_glb(path, linear=True).colors[0], [0.5, 0.02, 1], rtol=1e-5)


def test_points(tmp_path: Path) -> None:
    points = np.random.default_rng(1).random((50, 3), np.float32)
    write_glb(tmp_path / "points.glb", Mesh.points(points, points))
    document, _ = contents(tmp_path / "points.glb")
    assert document["meshes"][0]["primitives"][0]["mode"] == 0
    again = read_glb(tmp_path / "points.glb")
    assert again.faces.shape == (0, 3)
    np.testing.assert_array_equal(again.vertices, points)


def test_nodes_keep_their_own_frames(ball: Mesh, tmp_path: Path) -> None:
    matrix = np.array([[0, -2, 0, 1], [2, 0, 0, 3], [0, 0, 2, 5], [0, 0, 0, 1]])
    plain = Mesh(ball.vertices, ball.faces)
    write_glb(tmp_path / "two.glb", [Node(ball, name="first"), Node(plain, matrix, "second")])
    document, _ = contents(tmp_path / "two.glb")
    assert [node["name"] for node in document["nodes"]] == ["first", "second"]
    again = read_glb(tmp_path / "two.glb")
    np.testing.assert_array_equal(again.vertices[: len(ball)], ball.vertices)
    np.testing.assert_allclose(again.vertices[len(ball) :], ball.moved(matrix).vertices, atol=1e-6)
    np.testing.assert_array_equal(again.faces[len(ball.faces) :], ball.faces + len(ball))
    np.testing.assert_array_equal(again.colors[len(ball) :], 1)


def test_trimesh_reads_it(ball: Mesh, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    matrix = np.diag([2, 2, 2, 1.0])
    matrix[:3, 3] = 1, 2, 3
    write_glb(tmp_path / "ball.glb", [Node(ball, matrix)])
    scene = trimesh.load_scene(tmp_path / "ball.glb", skip_materials=True)
    mesh = scene.to_mesh()
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(8 * 4 / 3 * np.pi * 0.4**3, rel=0.08)  # positive: faces look outward
    np.testing.assert_allclose(mesh.vertices, yup(ball.vertices * 2 + (1, 2, 3)), atol=1e-6)
    np.testing.assert_array_equal(mesh.visual.vertex_colors[:, :3], np.rint(ball.colors * 255))
    attribute = next(iter(trimesh.load_scene(tmp_path / "ball.glb").geometry.values())).visual.vertex_attributes
    np.testing.assert_array_equal(attribute["color"][:, :3], np.rint(ball.colors * 255))


def test_what_trimesh_writes_is_read(ball: Mesh, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    other = trimesh.Trimesh(yup(ball.vertices), ball.faces, vertex_colors=to_uint8(ball.colors), process=False)
    other.export(tmp_path / "other.glb")
    again = read_glb(tmp_path / "other.glb")
    np.testing.assert_allclose(again.vertices, ball.vertices, atol=1e-7)
    np.testing.assert_array_equal(again.faces, ball.faces)
    np.testing.assert_allclose(again.colors, ball.colors, atol=0.5 / 255 + 1e-6)
    write_glb(tmp_path / "plain.glb", ball, material=False)
    loaded = trimesh.load_scene(tmp_path / "plain.glb").to_mesh()
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], np.rint(ball.colors * 255))


def strips(**changes: Any) -> tuple[dict[str, Any], bytes]:
    """Five points in a row of a strip, in a tree of two nodes, the lower half of a strided view."""
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 2, 0]], "<f4")
    chunk = np.concatenate([points, np.full((5, 1), 9, "<f4")], axis=1).tobytes()
    document = {
        "asset": {"version": "2.0"},
        "nodes": [{"children": [1], "translation": [1, 2, 3]}, {"mesh": 0, "scale": [2, 2, 2]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 5, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 80, "byteStride": 16}],
        "buffers": [{"byteLength": 80}],
    }
    return document | changes, chunk


def test_strips_strides_and_trees(tmp_path: Path) -> None:
    path = tmp_path / "strip.glb"
    path.write_bytes(packed(*strips()))
    mesh = read_glb(path)
    expected = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 2, 0]]) * 2 + (1, 2, 3)
    np.testing.assert_array_equal(yup(mesh.vertices), expected)
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [2, 1, 3], [2, 3, 4]])


def test_fans_rotations_and_mirrors(tmp_path: Path) -> None:
    document, chunk = strips()
    document["meshes"][0]["primitives"][0]["mode"] = 6
    document["nodes"] = [{"mesh": 0, "rotation": [0, 0, np.sqrt(0.5), np.sqrt(0.5)], "scale": [-1, 1, 1]}]
    path = tmp_path / "fan.glb"
    path.write_bytes(packed(document, chunk))
    mesh = read_glb(path)
    np.testing.assert_allclose(yup(mesh.vertices)[[1, 2]], [[0, -1, 0], [-1, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, [[2, 1, 0], [3, 2, 0], [4, 3, 0]])  # a mirror turns faces around


def nest(depth: int) -> dict[str, Any]:
    document, _ = strips()
    chain = [{"children": [index + 1]} for index in range(depth)]
    return document | {"nodes": [*chain, {"mesh": 0}]}


def test_a_deep_tree_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "deep.glb").write_bytes(packed(nest(5000), strips()[1]))
    assert len(read_glb(tmp_path / "deep.glb")) == 5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["accessors"][0].update(count=6), r"an array past its end: 6 rows at 0 \| expected: a whole file"),
        (lambda d: d["accessors"][0].update(count=2**70), "an array past its end"),
        (lambda d: d["accessors"][0].update(count=-1), "an array past its end"),
        (lambda d: d["accessors"][0].update(byteOffset=-16), "an array past its end"),
        (lambda d: d["bufferViews"][0].update(byteStride=2), "an array past its end"),
        (lambda d: d["bufferViews"][0].update(byteLength=800, byteOffset=16), "an array past its end"),
        (lambda d: d["accessors"][0].update(count="many"), "TypeError .* in its JSON"),
        (lambda d: d["accessors"][0].update(type="VEC4"), r"an accessor of another type: VEC4 \| expected: VEC3"),
        (lambda d: d["accessors"][0].update(componentType=1), "KeyError 1 in its JSON"),
        (lambda d: d["accessors"][0].update(sparse={}), "a sparse or empty accessor"),
        (lambda d: d["buffers"][0].update(uri="ball.bin"), "data outside the file"),
        (lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"]), "compressed geometry: KHR_draco"),
        (lambda d: d.update(accessors=[]), "IndexError"),
        (lambda d: d.update(meshes=[{}]), "KeyError 'primitives'"),
        (lambda d: d["meshes"][0]["primitives"][0].update(mode=1), "no triangles and no points"),
        (lambda d: d["meshes"][0]["primitives"][0].update(indices=0), "an accessor of another type"),
        (lambda d: d["nodes"][1].update(children=[0]), "no triangles and no points"),
        (lambda d: d.update(scenes=[{"nodes": [0, 1]}]), "a node with two parents: node 1"),
        (lambda d: d["nodes"][0].update(translation=["a", 0, 0]), "ValueError"),
        (lambda d: d["nodes"][0].update(scale=[float("nan")] * 3), "a node that leads nowhere"),
        (lambda d: d["nodes"][0].update(rotation=[0, 0, 0, 0]), "a node that leads nowhere"),
    ],
)
def test_a_document_that_lies(edit: Edit, message: str, tmp_path: Path) -> None:
    document, chunk = strips()
    edit(document)
    path = tmp_path / "lie.glb"
    path.write_bytes(packed(document, chunk))
    with pytest.raises(InputError, match=message) as caught:
        read_glb(path)
    assert str(caught.value).startswith(f"cannot read {path}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a file that begins with b''"),
        (b"solid cube", r"a file that begins with b'solid cu' \| expected: a GLB file"),
        (b"glTF\2\0\0\0", r"8 bytes \| expected: a GLB file of at least 20"),
        (b"glTF" + struct.pack("<IIII", 1, 20, 0, 0), "version 1"),
        (packed(b"[1]", b""), "JSON that is no object"),
        (packed(b"{", b""), "JSON that cannot be read"),
        (packed(b"[" * 200_000, b""), "JSON that cannot be read"),
        (packed(*strips())[:-1], "bytes that claim"),
        (packed({"asset": {}}, b""), "no triangles and no points"),
    ],
)
def test_damaged_files(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.glb").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_glb(tmp_path / "bad.glb")


def test_every_truncation_is_one_error(ball: Mesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "ball.glb", ball)
    data = (tmp_path / "ball.glb").read_bytes()
    for length in [*range(0, 64), *range(64, len(data), 397)]:
        (tmp_path / "cut.glb").write_bytes(data[:length])
        with pytest.raises(InputError, match="cannot read"):
            read_glb(tmp_path / "cut.glb")


def test_one_mesh_named_a_million_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samrt.assets.glb_reading.MAX_VERTICES", 1000)
    document, chunk = strips(nodes=[{"mesh": 0}] * 201)
    (tmp_path / "bomb.glb").write_bytes(packed(document, chunk))
    with pytest.raises(InputError, match=r"too many vertices \| expected: at most 1000"):
        read_glb(tmp_path / "bomb.glb")


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to write to .* got: a mesh without vertices"):
        write_glb(tmp_path / "none.glb", Mesh.points(np.empty((0, 3))))
    with pytest.raises(InputError, match="nothing to write to"):
        write_glb(tmp_path / "none.glb", [])
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_format_holds(ball: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samrt.assets.glb._MAX_BYTES", 2000)
    with pytest.raises(InputError, match=r"too much for .* expected: less than 4 GiB"):
        write_glb(tmp_path / "large.glb", ball)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(ball: Mesh, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got: no folder .*absent \| expected: a folder that exists"):
        write_glb(tmp_path / "absent" / "ball.glb", ball)
    with pytest.raises(InputError, match="got: a folder of that name"):
        write_glb(tmp_path, ball)
    with pytest.raises(InputError, match="got: no such file"):
        read_glb(tmp_path / "absent.glb")
    with pytest.raises(InputError, match="got: a folder"):
        read_glb(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(ball: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ball.glb"
    path.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="got: No space left on device"):
        write_glb(path, ball)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("ball.glb", b"before")]
