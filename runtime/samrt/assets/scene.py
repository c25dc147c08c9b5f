"""Several objects of one picture in one scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from samrt.assets.files import FilePath
from samrt.assets.frames import WORLD_FROM_CAMERA, as_matrix
from samrt.assets.gaussians import Gaussians
from samrt.assets.glb import Node, write_glb
from samrt.assets.mesh import Mesh
from samrt_engines.errors import InputError

Asset = TypeVar("Asset", bound=Mesh | Gaussians)

GREY = 0.7  # of meshes without colours beside meshes with


def place(
    assets: Sequence[Asset], matrices: Sequence[ArrayLike], *, world_from_camera: ArrayLike = WORLD_FROM_CAMERA
) -> Asset:
    """Move each asset by its pose and join them to one.

    matrices: (4, 4) each, from the object's z-up frame to the camera (a pose's `matrix_z_up`)
    world_from_camera: from there to the z-up frame of the scene; see `samrt.assets.frames`
    Raises InputError for no assets, another number of matrices, or assets of two kinds.
    """
    _check(assets, matrices)
    world = as_matrix(world_from_camera, "world_from_camera")
    moved = [asset.moved(world @ as_matrix(matrix)) for asset, matrix in zip(assets, matrices, strict=True)]
    return join(cast("list[Asset]", moved))


def join(assets: Sequence[Asset]) -> Asset:
    """Assets of one kind, in one frame, as one. Where some meshes have colours, those without become grey."""
    _check(assets, assets)
    if isinstance(assets[0], Gaussians):
        return cast("Asset", _joined_gaussians(cast("Sequence[Gaussians]", assets)))
    return cast("Asset", _joined_meshes(cast("Sequence[Mesh]", assets)))


def _joined_gaussians(parts: Sequence[Gaussians]) -> Gaussians:
    names = ("positions", "colors_dc", "opacities", "scales", "rotations")
    return Gaussians(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _joined_meshes(parts: Sequence[Mesh]) -> Mesh:
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    colors = None
    if any(part.colors is not None for part in parts):
        grey = [np.full((len(part), 3), GREY, np.float32) if part.colors is None else part.colors for part in parts]
        colors = np.concatenate(grey)
    faces = [part.faces + start for part, start in zip(parts, starts, strict=True)]
    return Mesh(np.concatenate([part.vertices for part in parts]), np.concatenate(faces).astype(np.int32), colors)


def write_scene(
    path: FilePath,
    meshes: Sequence[Mesh],
    matrices: Sequence[ArrayLike],
    *,
    names: Sequence[str] | None = None,
    world_from_camera: ArrayLike = WORLD_FROM_CAMERA,
    linearize: bool = False,
) -> None:
    """Write meshes to one GLB in which each stays an object of its own, in its own frame, with its pose as its node's matrix.

    matrices, world_from_camera: as `place` takes them; names: of the nodes; object_0, object_1, ... without
    Raises InputError.
    """
    _check(meshes, matrices)
    known = [f"object_{index}" for index in range(len(meshes))] if names is None else list(names)
    if len(known) != len(meshes):
        raise InputError("names do not match the meshes", got=str(len(known)), expected=str(len(meshes)))
    world = as_matrix(world_from_camera, "world_from_camera")
    parts = zip(meshes, matrices, known, strict=True)
    write_glb(path, [Node(mesh, world @ as_matrix(matrix), name) for mesh, matrix, name in parts], linearize=linearize)


def _check(assets: Sequence[Mesh | Gaussians], matrices: Sequence[object]) -> None:
    if not len(assets):
        raise InputError("nothing to place", got="no assets", expected="at least one")
    if len(matrices) != len(assets):
        raise InputError("matrices do not match the assets", got=str(len(matrices)), expected=str(len(assets)))
    kinds = {type(asset).__name__ for asset in assets}
    if len(kinds) > 1:
        raise InputError("assets of two kinds", got=" and ".join(sorted(kinds)), expected="one kind in a scene")
