"""Surfaces out of signed distances that are known in some cubes of a large grid: sparse FlexiCubes, in numpy."""

from samrt.surface.field import ROWS_PER_VOXEL, CubeField

__all__ = ["ROWS_PER_VOXEL", "CubeField"]
