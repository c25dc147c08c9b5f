import hashlib

import numpy as np

from samrt.surface.tables import (
    BEHIND_FACE,
    CORNERS,
    EDGE_COUNTS,
    EDGES,
    GROUP_COUNTS,
    GROUP_OF_EDGE,
    GROUPED_EDGES,
    INVERTED,
    IS_AMBIGUOUS,
    SURROUNDING,
)


def test_groups_are_those_of_flexicubes() -> None:
    """Written out as its dmc_table, int8 (256, 4, 7), the digest is that of NVIDIA's file."""
    table = np.full((256, 4, 7), -1, np.int8)
    for case in range(256):
        for group in range(4):
            edges = np.flatnonzero(GROUP_OF_EDGE[case] == group)
            table[case, group, : len(edges)] = edges
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    assert digest == "d3f5350eced63fcaa843c7a9d4c5a15e5d031858f9c1f72a48fffc453858ff0e"


def test_inversions_are_those_of_flexicubes() -> None:
    """Written out as its check_table, int8 (256, 5), the digest is that of NVIDIA's file."""
    table = np.concatenate(
        [IS_AMBIGUOUS[:, None], BEHIND_FACE.view(np.uint8), INVERTED[:, None]], axis=1, dtype=np.uint8
    )
    table[~IS_AMBIGUOUS] = 0
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    assert digest == "c2b179c4cfc3e02397231522991129bdcdd8af017f829dba356215516d01411d"


def test_groups_hold_the_crossed_edges_of_their_case() -> None:
    for case in range(256):
        crossed = [edge for edge, (a, b) in enumerate(EDGES.tolist()) if (case >> a ^ case >> b) & 1]
        assert np.flatnonzero(GROUP_OF_EDGE[case] >= 0).tolist() == crossed
        assert EDGE_COUNTS[case] == len(crossed)
        assert GROUP_COUNTS[case] == GROUP_OF_EDGE[case].max() + 1
        listed = GROUPED_EDGES[case, : len(crossed)]
        assert sorted(listed.tolist()) == crossed
        assert (np.diff(GROUP_OF_EDGE[case, listed]) >= 0).all()


def test_edges_join_neighbouring_corners() -> None:
    assert (np.abs(CORNERS[EDGES[:, 0]] - CORNERS[EDGES[:, 1]]).sum(axis=1) == 1).all()


def test_cubes_around_an_edge_see_the_same_edge() -> None:
    """Moved to where each of the four cubes is, its edge runs along the axis through the origin."""
    for axis in range(3):
        u, v = (other for other in range(3) if other != axis)
        for cube, edge in enumerate(SURROUNDING[axis].tolist()):
            place = np.zeros(3, int)
            place[u], place[v] = cube // 2 - 1, cube % 2 - 1
            ends = CORNERS[EDGES[edge]] + place
            assert sorted(ends[:, axis].tolist()) == [0, 1]
            assert not ends[:, [u, v]].any()
