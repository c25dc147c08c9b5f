"""The manifest's numbers of a model that makes 3D."""

from __future__ import annotations

from typing import Any

from samrt_export.families.sam3d.config import VIEWS, Sam3dConfig, Sampling

CROP_SCALE = 1.2


def reconstruction_numbers(config: Sam3dConfig, views: tuple[str, ...] = VIEWS) -> dict[str, Any]:
    """What the runtime follows: views, sampling, latent statistics, activations."""
    pose = None
    if config.points is not None:
        pose = {"rotation_mean": list(config.rotation_mean), "rotation_std": list(config.rotation_std)}
    return {
        "reconstruction": {
            "views": list(views),
            "view_px": config.vit.view_px,
            "crop_scale": CROP_SCALE,
            "point_px": None if config.points is None else config.points.view_px,
            "grid": config.grid,
            "latent_grid": config.latent_grid,
            "max_voxels": config.max_voxels,
            "window": config.decoder.window,
            "prune_interior": config.prune_interior,
            "structure": _flow(config.structure_sampling),
            "latent": _flow(config.latent_sampling),
            "latent_mean": list(config.latent_mean),
            "latent_std": list(config.latent_std),
            "pose": pose,
            "gaussians": {"scale_bias": 0.004, "min_kernel": 0.0009, "rotation_gain": 0.1, "opacity_bias": 0.1},
            "mesh": {"resolution": config.resolution, "sdf_bias": -1 / config.resolution},
        }
    }


def _flow(sampling: Sampling) -> dict[str, Any]:
    return {
        "steps": sampling.steps,
        "rescale_t": sampling.rescale_t,
        "guidance": sampling.guidance,
        "guidance_interval": list(sampling.guidance_interval),
        "time_scale": sampling.time_scale,
        "shortcut": sampling.shortcut,
    }
