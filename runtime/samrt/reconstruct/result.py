"""What a reconstruction gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt.assets import Gaussians, Mesh
from samrt.reconstruct.pose import Pose
from samrt.reconstruct.stages import StageRecord


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One object of one picture, in 3D: z-up, in [-0.5, 0.5]^3.

    mesh: with vertex colours; None where it was not asked for
    gaussians: None where they were not asked for
    pose: where the object stands in the camera's frame; None for a model that does not say
    coords: int32 (N, 3), the occupied voxels
    latent: float32 (N, C), the structured latent of each, de-normalised: what the decoders take
    seed: that the noise was drawn from
    shrunk: 2 where the object had too many voxels and was halved, else 1; `pose` makes up for it
    stages: what each stage took
    """

    mesh: Mesh | None
    gaussians: Gaussians | None
    pose: Pose | None
    coords: NDArray[np.int32]
    latent: NDArray[np.float32]
    seed: int
    shrunk: int
    stages: tuple[StageRecord, ...]

    @property
    def providers(self) -> Mapping[str, str]:
        """Graph -> what it really ran on, as read back from the backend."""
        return {one.graph: one.provider for one in self.stages if one.graph is not None and one.provider is not None}
