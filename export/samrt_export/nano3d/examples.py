"""Training examples of the flows: photographs as the runtime prepares them, with the latents and the pose that they show."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samrt.numbers import ReconstructionNumbers, parse_reconstruction
from samrt.reconstruct.pointmap import PointViews, check_pointmap, make_point_views
from samrt.reconstruct.preprocess import crop_window, make_views
from samrt.schema import Cursor
from samrt_export.families.sam3d.numbers import reconstruction_numbers
from samrt_export.nano3d.config import CONFIG
from samrt_export.nano3d.rendering import Photo, photograph
from samrt_export.nano3d.shapes import Array
from samrt_export.nano3d.targets import Integers, occupied, structure_latent, voxel_latent

POSE_CHANNELS = (6, 3, 3, 1)
"""rotation_6d, translation, scale, translation_scale."""

SHARD = 100
"""Examples in one file of the cache."""


def nano_numbers() -> ReconstructionNumbers:
    """The numbers that a bundle of nano 3D has in its manifest."""
    return parse_reconstruction(Cursor(reconstruction_numbers(CONFIG)["reconstruction"], "reconstruction"))


@dataclass(frozen=True)
class Example:
    """One photograph and the answers.

    pixels: uint8 (4, S, S, 3), the views in the model's order. points: float16 (2, P, P, 3), valid: bool (2, P, P).
    structure: (latent_grid^3, 8). coords: (N, 3), latent: (N, 8). pose: (13,) tokens side by side, see POSE_CHANNELS.
    """

    pixels: NDArray[np.uint8]
    points: NDArray[np.float16]
    valid: NDArray[np.bool_]
    structure: NDArray[np.float16]
    coords: NDArray[np.uint8]
    latent: NDArray[np.float16]
    pose: NDArray[np.float32]


def photo_views(photo: Photo, numbers: ReconstructionNumbers) -> tuple[NDArray[np.float32], PointViews]:
    """The pixels (4, S, S, 3) and points that the model is shown of a photograph."""
    assert numbers.point_px is not None
    pointmap = check_pointmap(photo.pointmap, photo.mask.shape)
    crop = crop_window(photo.mask, numbers.crop_scale)
    views = make_point_views(pointmap, photo.mask, crop, numbers.view_px, numbers.point_px)
    return make_views(photo.image, photo.mask, numbers), views


def pose_tokens(photo: Photo, views: PointViews) -> Array:
    """(13,) what the pose stream should end at: as `samrt.reconstruct.pose.decode_pose` reads it."""
    rotation = (photo.rotation[:2].reshape(6) - CONFIG.rotation_mean) / CONFIG.rotation_std
    translation = (photo.translation - views.shift) / views.scale
    size = np.full(3, np.log(photo.scale / views.scale))
    return np.concatenate([rotation, translation, size, [0]]).astype(np.float32)


def make_example(seed: int, numbers: ReconstructionNumbers) -> Example:
    """Object ``seed``, photographed."""
    photo = photograph(seed)
    pixels, points = photo_views(photo, numbers)
    coords: Integers = occupied(photo.solid)
    return Example(
        np.asarray(np.round(pixels * 255), np.uint8),
        points.points.astype(np.float16),
        points.valid > 0.5,
        structure_latent(photo.solid).astype(np.float16),
        coords.astype(np.uint8),
        voxel_latent(photo.solid, coords).astype(np.float16),
        pose_tokens(photo, points),
    )


def load_examples(count: int, folder: Path) -> list[Example]:
    """Examples 0 .. count - 1, kept in ``folder`` from one run to the next."""
    numbers, examples = nano_numbers(), list[Example]()
    for start in range(0, count, SHARD):
        path = folder / f"examples-{start:06d}.npz"
        if not path.exists():
            made = [make_example(seed, numbers) for seed in range(start, start + SHARD)]
            np.savez(
                path.with_suffix(".partial.npz"),
                **{f"{i}.{k}": v for i, e in enumerate(made) for k, v in vars(e).items()},
            )
            os.replace(path.with_suffix(".partial.npz"), path)
        with np.load(path) as stored:
            examples += [
                Example(**{field.name: stored[f"{i}.{field.name}"] for field in fields(Example)}) for i in range(SHARD)
            ]
    return examples[:count]
