"""The demo's objects: photographs of coloured solids, made 3D by the shipped nano-3d model.

It learned these photographs by heart. What it shows is the way from a picture to files, not what the model knows of others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

import samrt
from samrt.assets import render_preview, write_glb, write_ply
from samrt_export.nano3d.evaluate import Score, score_gaussians, score_mesh, silhouette_iou
from samrt_export.nano3d.rendering import Photo, photograph

MODEL = "nano-3d"
PHOTOGRAPHS = (5, 1, 0)
"""Of `samrt_export.nano3d.train.HANDFUL`."""
SHEET = "reconstruct.png"
PICTURE_FILE, MASK_FILE, POINTS_FILE = "object.png", "object-mask.png", "object-points.npy"
"""Of the first object, for whoever wants to go on with it."""
VIEW_PX = 240

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Solid:
    """What one reconstruction came to. Distances in voxels."""

    kind: str
    voxels: int
    faces: int
    gaussians: int
    mesh: Score
    gaussian_centres: Score
    silhouette_iou: float
    """Of the mesh under the true pose with the photograph's mask."""
    seconds: float
    mesh_file: str
    gaussians_file: str
    views: Picture
    """The photograph, dark where the mask is not, and the mesh from a few angles."""


def reconstruct_solids(bundle: Path, out: Path) -> tuple[Solid, ...]:
    """Make photographs 3D; writes a GLB and a PLY of each to ``out``, and the inputs of the first."""
    photos = [photograph(seed) for seed in PHOTOGRAPHS]
    PIL.Image.fromarray(photos[0].image).save(out / PICTURE_FILE)
    PIL.Image.fromarray(photos[0].mask).save(out / MASK_FILE)
    np.save(out / POINTS_FILE, photos[0].pointmap)
    with samrt.Reconstructor(bundle, memory="resident") as reconstructor:
        return tuple(_reconstruct(reconstructor, photo, out) for photo in photos)


def _reconstruct(reconstructor: samrt.Reconstructor, photo: Photo, out: Path) -> Solid:
    start = time.perf_counter()
    made = reconstructor.reconstruct(photo.image, photo.mask, pointmap=photo.pointmap)
    seconds = time.perf_counter() - start
    assert made.mesh is not None
    assert made.gaussians is not None
    mesh_file, gaussians_file = f"{photo.solid.kind}.glb", f"{photo.solid.kind}.ply"
    write_glb(out / mesh_file, made.mesh)
    write_ply(out / gaussians_file, made.gaussians)
    dimmed = np.where(photo.mask[..., None], photo.image, photo.image // 2)
    shown = PIL.Image.fromarray(dimmed)
    tile = np.asarray(shown.resize((VIEW_PX, VIEW_PX), PIL.Image.Resampling.LANCZOS))
    return Solid(
        kind=photo.solid.kind,
        voxels=len(made.coords),
        faces=len(made.mesh.faces),
        gaussians=len(made.gaussians),
        mesh=score_mesh(photo.solid, made.mesh),
        gaussian_centres=score_gaussians(photo.solid, made.gaussians),
        silhouette_iou=silhouette_iou(photo, made.mesh.vertices),
        seconds=seconds,
        mesh_file=mesh_file,
        gaussians_file=gaussians_file,
        views=np.concatenate([tile, render_preview(made.mesh, size_px=VIEW_PX)], axis=1),
    )
