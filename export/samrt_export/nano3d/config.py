"""The sizes of nano 3D. The grids are half as fine as the released model's; every structural feature is there."""

import numpy as np
from numpy.typing import NDArray

from samrt_export.families.sam3d.config import (
    FlowConfig,
    FuserConfig,
    LatentDecoderConfig,
    PointConfig,
    Sam3dConfig,
    Sampling,
    StructureDecoderConfig,
    VitConfig,
)

CONFIG = Sam3dConfig(
    vit=VitConfig(dim=96, depth=2, heads=3, view_px=84),
    points=PointConfig(dim=48, heads=3, view_px=64),
    fuser=FuserConfig(dim=96, hidden=192),
    structure_flow=FlowConfig(dim=96, depth=3, heads=3, mlp_ratio=3, time_channels=64),
    structure_decoder=StructureDecoderConfig(channels=(48, 24, 16), res_blocks=1, middle_blocks=1),
    latent_flow=FlowConfig(dim=96, depth=2, heads=3, mlp_ratio=3, time_channels=64, io_dim=32),
    decoder=LatentDecoderConfig(dim=96, depth=2, heads=3, mlp_ratio=2, mesh_channels=(32, 32)),
    gaussians=16,
    small_gaussians=4,
    grid=32,
    latent_grid=8,
    max_voxels=6000,
    structure_sampling=Sampling(steps=25, rescale_t=3.0, guidance=1.0, shortcut=True),
    latent_sampling=Sampling(steps=12, rescale_t=1.0, guidance=0.5, shortcut=False),
    latent_mean=(0.0, 0.0, 0.0, 0.0, 0.45, 0.45, 0.45, 0.055),
    latent_std=(0.45, 0.58, 0.58, 0.58, 0.3, 0.3, 0.3, 0.08),
    rotation_mean=(0.0,) * 6,
    rotation_std=(0.6,) * 6,
)

LATENT_MEAN: NDArray[np.float32] = np.array(CONFIG.latent_mean, np.float32)
LATENT_STD: NDArray[np.float32] = np.array(CONFIG.latent_std, np.float32)
"""What `voxel_latent` is normalised with."""
