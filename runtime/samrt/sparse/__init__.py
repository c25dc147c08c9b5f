"""Voxels that are few in a large grid: the index maps through which plain graphs reach neighbours, parents and windows.

A sparse convolution, pooling or windowed attention is a gather and a matrix product once it is known which rows to gather.
`SparseMaps` computes those rows from the voxels' coordinates, in numpy.
"""

from samrt.sparse.coords import check_coords, flat_index, row_table
from samrt.sparse.maps import MAP_NAMES, SparseMaps
from samrt.sparse.windows import Windows, partition

__all__ = ["MAP_NAMES", "SparseMaps", "Windows", "check_coords", "flat_index", "partition", "row_table"]
