# The two number tables of this file, GROUPS and INVERSIONS, are those of NVIDIA FlexiCubes (tables.py), written shorter:
#
# Copyright (c) 2025 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the
# License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
# "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific
# language governing permissions and limitations under the License.
"""How a surface passes through a cube: the cases of dual marching cubes as FlexiCubes has them (Shen et al. 2023).

A cube's *case* is a byte: bit i is set where corner i lies inside. Corners count x fastest: corner i is at
(i & 1, i >> 1 & 1, i >> 2). Each case names its *groups*: the crossed edges around one patch of surface, which get one
dual vertex together.
"""

import numpy as np
from numpy.typing import NDArray

Int8Array = NDArray[np.int8]

CORNERS: Int8Array = np.array([(i & 1, i >> 1 & 1, i >> 2) for i in range(8)], np.int8)
"""(8, 3) where the corners are, from the corner with the lowest coordinates."""

EDGES: Int8Array = np.array(
    [(0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4)], np.int8
)
"""(12, 2) the corners that each edge joins."""

SURROUNDING: Int8Array = np.array([(6, 4, 2, 0), (10, 9, 11, 8), (5, 1, 7, 3)], np.int8)
"""(3, 4) which edge of each of the four cubes around it an edge along x, y or z is. With u and v the other two axes in
order, the cubes are those at (u - 1, v - 1), (u - 1, v), (u, v - 1) and (u, v) from the edge."""

_GROUPS = """
- 038 019 1389 478 0347 019/478 13479 459 038/459 0145 13458 5789 03579 01578 1357 23b 028b 019/23b 1289b
478/23b 0247b 019/478/23b 12479b 459/23b 028b/459 0145/23b 12458b 5789/23b 02579b 01578/23b 1257b 12a 038/12a
029a 2389a 478/12a 0347/12a 029a/478 23479a 459/12a 038/459/12a 0245a 23458a 5789/12a 03579/12a 02578a 2357a
13ab 018ab 039ab 89ab 478/13ab 0147ab 039ab/478 479ab 459/13ab 018ab/459 0345ab 458ab 5789/13ab 01579ab 03578ab
57ab 67b 038/67b 019/67b 1389/67b 468b 0346b 019/468b 13469b 459/67b 038/459/67b 0145/67b 13458/67b 5689b 03569b
01568b 1356b 2367 02678 019/2367 126789 23468 0246 019/23468 12469 459/2367 02678/459 0145/2367 1245678 235689
02569 0123568 1256 12a/67b 038/12a/67b 029a/67b 2389a/67b 468b/12a 0346b/12a 029a/468b 23469ab 459/12a/67b
038/459/12a/67b 0245a/67b 23458a/67b 5689b/12a 03569b/12a 02568ab 2356ab 1367a 01678a 03679a 6789a 13468a 0146a
034689a 469a 459/1367a 01678a/459 034567a 45678a 135689a 01569a 038/56a 56a 56a 038/56a 019/56a 1389/56a 478/56a
0347/56a 019/478/56a 13479/56a 469a 038/469a 0146a 13468a 6789a 03679a 01678a 1367a 23b/56a 028b/56a 019/23b/56a
1289b/56a 478/23b/56a 0247b/56a 019/478/23b/56a 12479b/56a 469a/23b 028b/469a 0146a/23b 12468ab 6789a/23b
02679ab 01678a/23b 1267ab 1256 038/1256 02569 235689 478/1256 0347/1256 02569/478 2345679 12469 038/12469 0246
23468 126789 0123679 02678 2367 1356b 01568b 03569b 5689b 478/1356b 014567b 03569b/478 45679b 13469b 014689b
0346b 468b 136789b 019/67b 03678b 67b 57ab 038/57ab 019/57ab 1389/57ab 458ab 0345ab 019/458ab 13459ab 479ab
038/479ab 0147ab 13478ab 89ab 039ab 018ab 13ab 2357a 02578a 019/2357a 125789a 23458a 0245a 019/23458a 12459a
23479a 024789a 012347a 478/12a 2389a 029a 01238a 12a 1257b 038/1257b 02579b 235789b 12458b 012345b 024589b
459/23b 12479b 038/12479b 0247b 23478b 1289b 01239b 028b 23b 1357 01578 03579 5789 13458 0145 034589 459 13479
014789 0347 478 1389 019 038 -
"""
"""The groups of the 256 cases; edges as hexadecimal digits."""

_INVERSIONS = {
    61: (1, 0, 0, 194),
    62: (-1, 0, 0, 193),
    91: (0, 1, 0, 164),
    94: (0, -1, 0, 161),
    103: (0, 0, 1, 152),
    110: (0, 0, 1, 145),
    111: (0, 0, 1, 144),
    118: (0, 0, -1, 137),
    122: (0, 1, 0, 133),
    123: (0, 1, 0, 132),
    124: (1, 0, 0, 131),
    125: (1, 0, 0, 130),
    155: (0, 0, 1, 100),
    157: (0, 0, 1, 98),
    159: (0, 0, 1, 96),
    167: (0, 1, 0, 88),
    173: (0, -1, 0, 82),
    181: (0, 1, 0, 74),
    183: (0, 1, 0, 72),
    185: (0, 0, -1, 70),
    188: (-1, 0, 0, 67),
    190: (-1, 0, 0, 65),
    199: (1, 0, 0, 56),
    203: (-1, 0, 0, 52),
    211: (1, 0, 0, 44),
    215: (1, 0, 0, 40),
    217: (0, 0, -1, 38),
    218: (0, -1, 0, 37),
    222: (0, -1, 0, 33),
    227: (-1, 0, 0, 28),
    229: (0, -1, 0, 26),
    230: (0, 0, -1, 25),
    235: (-1, 0, 0, 20),
    237: (0, -1, 0, 18),
    246: (0, 0, -1, 9),
    249: (0, 0, -1, 6),
}
"""Cases C16 and C19, which may be cut in two ways -> where the cube behind the ambiguous face is (x, y, z), and the case
to take instead if that cube is of such a case too: both sides of the face are then cut alike."""


def _parse_groups() -> tuple[Int8Array, Int8Array, Int8Array]:
    edges = np.zeros((256, 12), np.int8)
    group_of_edge = np.full((256, 12), -1, np.int8)
    counts = np.zeros(256, np.int8)
    for case, text in enumerate(_GROUPS.split()):
        groups = [] if text == "-" else text.split("/")
        listed = [int(digit, 16) for digit in "".join(groups)]
        edges[case, : len(listed)] = listed
        counts[case] = len(groups)
        for index, group in enumerate(groups):
            group_of_edge[case, [int(digit, 16) for digit in group]] = index
    return edges, group_of_edge, counts


GROUPED_EDGES, GROUP_OF_EDGE, GROUP_COUNTS = _parse_groups()
"""By case: (256, 12) the crossed edges, group after group, then zeros; (256, 12) the group of each edge, -1 where it is not
crossed; (256,) the number of groups."""

EDGE_COUNTS: Int8Array = (GROUP_OF_EDGE >= 0).sum(axis=1).astype(np.int8)
"""(256,) the number of crossed edges of each case."""

IS_AMBIGUOUS: NDArray[np.bool_] = np.isin(np.arange(256), list(_INVERSIONS))
"""(256,) whether the case is a C16 or C19."""

BEHIND_FACE: Int8Array = np.array([_INVERSIONS.get(case, (0,) * 4)[:3] for case in range(256)], np.int8)
"""(256, 3) step to the cube behind the ambiguous face."""

INVERTED: NDArray[np.uint8] = np.array([_INVERSIONS.get(case, (case,) * 4)[3] for case in range(256)], np.uint8)
"""(256,) the other way to cut an ambiguous case; itself elsewhere."""
