"""The sizes of nano 3D, and what its latents are normalised with."""

import numpy as np
from numpy.typing import NDArray

from samrt_export.families.sam3d.config import NANO_3D

CONFIG = NANO_3D
LATENT_MEAN: NDArray[np.float32] = np.array(CONFIG.latent_mean, np.float32)
LATENT_STD: NDArray[np.float32] = np.array(CONFIG.latent_std, np.float32)
"""What `voxel_latent` is normalised with."""
