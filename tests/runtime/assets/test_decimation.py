import sys

import numpy as np
import pytest
from scipy.spatial import cKDTree

from samrt.assets import Mesh, decimate
from samrt_engines.errors import InputError, MissingExtraError


@pytest.mark.parametrize("options", [{"faces": 120}, {"keep": 120 / 320}], ids=["faces", "keep"])
def test_fewer_faces_of_the_same_ball(ball: Mesh, options: dict) -> None:
    pytest.importorskip("fast_simplification")
    small = decimate(ball, **options)
    assert len(ball.faces) == 320
    assert 100 <= len(small.faces) <= 120
    radii = np.linalg.norm(small.vertices - (0, 0, 0.05), axis=1)
    np.testing.assert_allclose(radii, 0.4, atol=0.04)
    edges, uses = np.unique(
        np.sort(small.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)), axis=0, return_counts=True
    )
    assert len(edges) == 1.5 * len(small.faces)
    assert (uses == 2).all()  # still closed
    _, nearest = cKDTree(ball.vertices).query(small.vertices)
    np.testing.assert_array_equal(small.colors, ball.colors[nearest])


def test_a_small_mesh_comes_back_as_it_is(ball: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    assert decimate(ball, faces=320) is ball
    assert decimate(ball, keep=1) is ball


def test_without_the_library(ball: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(
        MissingExtraError, match=r'fast-simplification is needed to decimate .*pip install "samrt\[mesh\]"'
    ):
        decimate(ball, faces=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"how far to decimate is not clear \| got: neither \| expected: either faces or keep"),
        ({"faces": 9, "keep": 0.5}, "got: both"),
        ({"faces": 3}, r"too few faces \| got: 3 \| expected: at least 4"),
        ({"keep": 0}, r"the part to keep is out of range \| got: 0"),
        ({"keep": 1.5}, "got: 1.5"),
        ({"keep": float("nan")}, "got: nan"),
    ],
)
def test_how_far_must_be_clear(ball: Mesh, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decimate(ball, **options)


def test_points_have_no_faces(ball: Mesh) -> None:
    with pytest.raises(InputError, match=r"nothing to decimate .* fix: downsample points instead"):
        decimate(Mesh.points(ball.vertices), faces=10)
