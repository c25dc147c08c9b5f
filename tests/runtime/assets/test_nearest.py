import numpy as np
import pytest
from scipy.spatial import cKDTree

from samrt.assets.nearest import nearest_rows


def on_ball(count: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("points", "queries"),
    [
        (on_ball(5000, 0), on_ball(700, 1)),
        (on_ball(5000, 0) * 0.01, on_ball(300, 1) * 100),
        (np.concatenate([on_ball(5000, 0) * 0.01, [[1e6, 0, 0]]]).astype(np.float32), on_ball(300, 1) * 0.02),
        (on_ball(1, 0), on_ball(10, 1)),
        (np.zeros((4, 3), np.float32), on_ball(10, 1)),
        (np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)),
        (on_ball(50, 0), np.empty((0, 3), np.float32)),
        (on_ball(3000, 2) * np.float32([1, 1, 0]), on_ball(300, 1)),
    ],
    ids=["surface", "far", "stray", "one", "same", "all same", "no queries", "flat"],
)
def test_as_near_as_scipy_finds(points: np.ndarray, queries: np.ndarray) -> None:
    rows = nearest_rows(points, queries)
    expected, _ = cKDTree(points).query(queries)
    found = np.linalg.norm(points[rows].astype(float) - queries, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    points, queries = on_ball(2000, 0), on_ball(500, 1)
    expected = nearest_rows(points, queries)
    monkeypatch.setattr("samrt.assets.nearest._AT_ONCE", 10)
    np.testing.assert_array_equal(nearest_rows(points, queries), expected)
