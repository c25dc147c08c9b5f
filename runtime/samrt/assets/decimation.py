"""Fewer triangles for the same shape, through the library fast-simplification."""

from __future__ import annotations

from importlib import import_module

import numpy as np

from samrt.assets.mesh import Mesh
from samrt.assets.nearest import nearest_rows
from samrt_engines.errors import InputError, MissingExtraError


def decimate(mesh: Mesh, *, faces: int | None = None, keep: float | None = None) -> Mesh:
    """Collapse edges by quadric error (Garland and Heckbert 1997) until so many faces are left, or about so many.

    faces: how many to leave, at least 4; or keep: the part to leave, 0..1. One of the two. A mesh that has no more faces than
        that comes back as it is. Vertices take the colour of the nearest one of before
    Raises InputError; MissingExtraError without fast-simplification.
    """
    target = _target(mesh, faces, keep)
    if len(mesh.faces) <= target:
        return mesh
    try:
        library = import_module("fast_simplification")
    except ImportError as error:
        raise MissingExtraError.for_package(
            "fast-simplification", extra="mesh", purpose="to decimate a mesh"
        ) from error
    points, triangles = library.simplify(mesh.vertices, mesh.faces, target_count=target)
    if not len(triangles):
        raise InputError("decimation left nothing", got=f"{target} faces asked for", expected="more")
    vertices = np.asarray(points, np.float32)
    colors = None if mesh.colors is None else mesh.colors[nearest_rows(mesh.vertices, vertices)]
    return Mesh(vertices, np.asarray(triangles, np.int32), colors)


def _target(mesh: Mesh, faces: int | None, keep: float | None) -> int:
    if (faces is None) == (keep is None):
        got = "neither" if faces is None else "both"
        raise InputError("how far to decimate is not clear", got=got, expected="either faces or keep")
    if not len(mesh.faces):
        raise InputError("nothing to decimate", got="a mesh without faces", fix="downsample points instead")
    if faces is not None:
        if faces < 4:
            raise InputError("too few faces", got=str(faces), expected="at least 4")
        return faces
    assert keep is not None
    if not 0 < keep <= 1:
        raise InputError("the part to keep is out of range", got=str(keep), expected="above 0, at most 1")
    return max(round(keep * len(mesh.faces)), 4)
