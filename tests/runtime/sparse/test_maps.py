import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samrt.sparse import MAP_NAMES, SparseMaps
from samrt_engines.errors import InputError

Array = np.ndarray


def random_coords(grid: int, share: float, seed: int = 0) -> Array:
    """Voxels in lexicographic order."""
    return np.argwhere(np.random.default_rng(seed).random((grid,) * 3) < share).astype(np.int32)


def shell(grid: int) -> Array:
    """A sphere's surface, about as thick as a model's occupancy."""
    at = np.indices((grid,) * 3).reshape(3, -1).T
    distance = np.linalg.norm(at - (grid - 1) / 2, axis=1)
    return at[np.abs(distance - 0.42 * grid) < 1.1].astype(np.int32)


@st.composite
def voxel_sets(draw: st.DrawFn) -> tuple[Array, int]:
    """Some voxels of a small grid, in any order, and the grid."""
    grid = draw(st.integers(1, 9))
    flat = draw(st.lists(st.integers(0, grid**3 - 1), unique=True, max_size=40))
    return np.stack(np.unravel_index(np.array(flat, np.int64), (grid,) * 3), axis=1), grid


def rows_of(coords: Array) -> dict[tuple[int, ...], int]:
    return {tuple(voxel): row for row, voxel in enumerate(coords.tolist())}


def neighbours_by_loop(coords: Array) -> Array:
    rows, found = rows_of(coords), np.zeros((len(coords), 27), np.int32)
    for row, (x, y, z) in enumerate(coords.tolist()):
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                for dz in (-1, 0, 1):
                    tap = ((dx + 1) * 3 + (dy + 1)) * 3 + (dz + 1)
                    found[row, tap] = rows.get((x + dx, y + dy, z + dz), -1) + 1
    return found


@settings(max_examples=60, deadline=None)
@given(voxel_sets())
def test_neighbours_are_those_of_a_loop(voxels: tuple[Array, int]) -> None:
    coords, grid = voxels
    np.testing.assert_array_equal(SparseMaps.from_coords(coords, grid=grid).neighbours, neighbours_by_loop(coords))


@settings(max_examples=60, deadline=None)
@given(voxel_sets())
def test_coarse_maps_are_those_of_a_loop(voxels: tuple[Array, int]) -> None:
    coords, grid = voxels
    maps = SparseMaps.from_coords(coords, grid=grid)
    coarse = sorted({(x // 2, y // 2, z // 2) for x, y, z in coords.tolist()})
    children = np.zeros((len(coarse), 8), np.int32)
    for row, (x, y, z) in enumerate(coords.tolist()):
        parent = coarse.index((x // 2, y // 2, z // 2))
        assert maps.parents[row] == parent
        children[parent, 4 * (x % 2) + 2 * (y % 2) + z % 2] = row + 1
    assert [tuple(voxel) for voxel in maps.coarse_coords.tolist()] == coarse
    np.testing.assert_array_equal(maps.children, children)
    inverse = [[np.float32(1 / (sum(row > 0 for row in rows) + 1))] for rows in children.tolist()]
    np.testing.assert_array_equal(maps.children_inverse, np.array(inverse, np.float32).reshape(-1, 1))
    np.testing.assert_array_equal(maps.coarse_neighbours, neighbours_by_loop(np.array(coarse, int).reshape(-1, 3)))


@pytest.mark.parametrize(("grid", "size"), [(64, 8), (32, 8), (9, 4), (7, 3)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_are_those_of_a_dictionary(grid: int, size: int, shifted: bool) -> None:
    coords = random_coords(grid, 0.01 if grid > 9 else 0.3, seed=grid)
    maps = SparseMaps.from_coords(coords, grid=grid, window=size)
    members: dict[tuple[int, ...], list[int]] = {}
    for row, voxel in enumerate(coords.tolist()):
        members.setdefault(tuple((c + (size // 2) * shifted) // size for c in voxel), []).append(row)
    windows = maps.shifted_windows if shifted else maps.windows
    slots = maps.shifted_window_slots if shifted else maps.window_slots
    assert windows.shape == (len(members), max(map(len, members.values())))
    for found, key in zip(windows, sorted(members), strict=True):
        expected = [row + 1 for row in members[key]]
        assert found.tolist() == expected + [0] * (len(found) - len(expected))
    np.testing.assert_array_equal(windows.reshape(-1)[slots], np.arange(1, len(coords) + 1))


def test_the_two_window_sets_differ() -> None:
    """Voxels 3 and 4 part company in the shifted windows, voxels 7 and 8 in the others."""
    coords = np.array([[3, 0, 0], [4, 0, 0], [7, 0, 0], [8, 0, 0]])
    maps = SparseMaps.from_coords(coords, grid=64)
    assert maps.windows.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert maps.window_slots.tolist() == [0, 1, 2, 3]
    assert maps.shifted_windows.tolist() == [[1, 0, 0], [2, 3, 4]]
    assert maps.shifted_window_slots.tolist() == [0, 3, 4, 5]


@pytest.mark.parametrize("grid", [32, 64])
def test_a_gather_and_a_product_are_a_dense_convolution(grid: int) -> None:
    """As the graphs use the map: one row of zeros in front, taps side by side, the official weight layout flattened."""
    coords = shell(grid)[::3]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(coords), 4, generator=generator)
    weight = torch.randn(5, 3, 3, 3, 4, generator=generator)  # (out, x, y, z, in)
    maps = SparseMaps.from_coords(coords, grid=grid)
    padded = torch.cat([torch.zeros(1, 4), features])
    sparse = padded[torch.from_numpy(maps.neighbours.copy()).long()].reshape(len(coords), -1) @ weight.reshape(5, -1).T
    dense = torch.zeros(1, 4, grid, grid, grid)
    x, y, z = torch.from_numpy(coords).long().T
    dense[0, :, x, y, z] = features.T
    expected = torch.nn.functional.conv3d(dense, weight.permute(0, 4, 1, 2, 3), padding=1)[0, :, x, y, z].T
    torch.testing.assert_close(sparse, expected, rtol=1e-5, atol=1e-5)


def test_the_mean_of_children_counts_a_row_of_zeros() -> None:
    coords = random_coords(10, 0.4)
    maps = SparseMaps.from_coords(coords, grid=10)
    features = torch.randn(len(coords), 3, generator=torch.Generator().manual_seed(1))
    parents = torch.from_numpy(maps.parents.copy()).long()[:, None].expand(-1, 3)
    expected = torch.zeros(len(maps.coarse_coords), 3).scatter_reduce(0, parents, features, "mean")
    padded = torch.cat([torch.zeros(1, 3), features])
    found = padded[torch.from_numpy(maps.children.copy()).long()].sum(1) * torch.from_numpy(
        maps.children_inverse.copy()
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_full_size_maps_agree_with_the_rows_they_name() -> None:
    """42,000 voxels of the full grid: every named row has the coordinates that its place in the map asks for."""
    generator = np.random.default_rng(5)
    flat = np.sort(generator.choice(64**3, 42_000, replace=False))
    coords = np.stack(np.unravel_index(flat, (64,) * 3), axis=1).astype(np.int32)
    maps = SparseMaps.from_coords(coords, grid=64)
    steps = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    wanted = coords[:, None] + steps
    occupied = set(flat.tolist())
    there = maps.neighbours > 0
    np.testing.assert_array_equal(coords[maps.neighbours[there] - 1], wanted[there])
    absent = wanted[~there]
    absent = absent[((absent >= 0) & (absent < 64)).all(axis=1)]
    assert occupied.isdisjoint((absent @ [4096, 64, 1]).tolist())
    np.testing.assert_array_equal(maps.coarse_coords[maps.parents], coords // 2)
    assert maps.children.max() == np.count_nonzero(maps.children) == len(coords)
    for windows, slots in [
        (maps.windows, maps.window_slots), (maps.shifted_windows, maps.shifted_window_slots)
    ]:  # fmt: skip
        assert windows.shape[0] <= 729
        assert windows.shape[1] <= 512
        np.testing.assert_array_equal(windows.reshape(-1)[slots], np.arange(1, len(coords) + 1))


def test_feeds_are_the_maps_among_a_graphs_inputs() -> None:
    maps = SparseMaps.from_coords(random_coords(8, 0.3), grid=8)
    feeds = maps.feeds(["slat", "neighbours", "children_inverse", "slat_time"])
    assert list(feeds) == ["neighbours", "children_inverse"]
    assert feeds["neighbours"] is maps.neighbours
    everything = maps.feeds(MAP_NAMES)
    assert set(everything) == set(MAP_NAMES)
    kinds = {name: (str(array.dtype), array.flags.c_contiguous) for name, array in everything.items()}
    assert kinds == {name: ("float32" if name == "children_inverse" else "int32", True) for name in MAP_NAMES}


def test_maps_are_computed_when_read_once_and_shared() -> None:
    coords = random_coords(8, 0.3)
    maps = SparseMaps.from_coords(coords, grid=8)
    maps.feeds(["coords", "windows", "window_slots"])
    assert "neighbours" not in vars(maps)
    assert "_coarse" not in vars(maps)
    assert maps.neighbours is maps.neighbours
    for name in MAP_NAMES:
        with pytest.raises(ValueError, match="read-only"):
            getattr(maps, name)[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        maps.grid = 9  # type: ignore[misc]
    coords[:] = 0  # the caller's own array
    assert maps.coords.max() == 7


def test_no_voxels_make_empty_maps() -> None:
    feeds = SparseMaps.from_coords(np.zeros((0, 3), np.int64), grid=64).feeds(MAP_NAMES)
    assert {name: array.shape for name, array in feeds.items()} == {
        "coords": (0, 3),
        "neighbours": (0, 27),
        "coarse_coords": (0, 3),
        "coarse_neighbours": (0, 27),
        "children": (0, 8),
        "children_inverse": (0, 1),
        "parents": (0,),
        "windows": (0, 0),
        "window_slots": (0,),
        "shifted_windows": (0, 0),
        "shifted_window_slots": (0,),
    }


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 0, 8]], r"outside the grid \| got: \[0, 0, 8\] in row 0 \| expected: 0\.\.7 on each axis"),
        ([[0, 0, 0], [1, -1, 0]], r"outside the grid \| got: \[1, -1, 0\] in row 1"),
        ([[2**40, 0, 0]], r"outside the grid \| got: \[1099511627776, 0, 0\]"),
        ([[1, 2, 3], [4, 5, 6], [1, 2, 3]], r"there twice \| got: \[1, 2, 3\] in 2 rows .* fix: np\.unique"),
        ([[0, 0, 0, 1]], r"no voxel coordinates \| got: int64 \(1, 4\) \| expected: integers of shape \(N, 3\)"),
        ([0, 0, 1], r"no voxel coordinates \| got: int64 \(3,\)"),
        ([[0.0, 0.0, 1.0]], r"no voxel coordinates \| got: float64 \(1, 3\)"),
        ([[False, True, True]], r"no voxel coordinates \| got: bool \(1, 3\)"),
    ],
)
def test_bad_coordinates(coords: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseMaps.from_coords(np.array(coords), grid=8)


@pytest.mark.parametrize("grid", [0, -1, 257])
def test_bad_grids(grid: int) -> None:
    with pytest.raises(InputError, match=rf"size is out of range \| got: {grid} \| expected: 1\.\.256"):
        SparseMaps.from_coords(np.zeros((1, 3), int), grid=grid)


def test_a_window_without_voxels() -> None:
    with pytest.raises(InputError, match=r"window has no voxels \| got: 0"):
        SparseMaps.from_coords(np.zeros((1, 3), int), grid=4, window=0)
