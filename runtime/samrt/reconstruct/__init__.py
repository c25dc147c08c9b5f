"""3D of one object in one picture: a mesh, Gaussians, and where the object stands.

with samrt.Reconstructor("bundles/sam3d-objects", depth="bundles/moge") as reconstructor:
    result = reconstructor.reconstruct(image, mask)
result.mesh, result.gaussians, result.pose
"""

from samrt.reconstruct.pose import Pose
from samrt.reconstruct.reconstructor import Reconstructor
from samrt.reconstruct.result import Reconstruction
from samrt.reconstruct.stages import StageRecord
from samrt_engines.errors import Cancelled

__all__ = ["Cancelled", "Pose", "Reconstruction", "Reconstructor", "StageRecord"]
