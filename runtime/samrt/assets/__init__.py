"""3D assets: meshes and Gaussians in memory, their files, and what people do with them."""

from samrt.assets.decimation import decimate
from samrt.assets.downsampling import downsample_random, downsample_uniform, downsample_voxel
from samrt.assets.frames import WORLD_FROM_CAMERA, Y_UP_FROM_Z_UP, Z_UP_FROM_Y_UP
from samrt.assets.gaussians import Gaussians
from samrt.assets.glb import Node, write_glb
from samrt.assets.glb_reading import read_glb
from samrt.assets.mesh import Mesh
from samrt.assets.obj import write_obj
from samrt.assets.ply import write_ply
from samrt.assets.ply_reading import read_ply, read_ply_header
from samrt.assets.preview import render_preview, write_preview
from samrt.assets.scene import join, place, write_scene

__all__ = [
    "WORLD_FROM_CAMERA",
    "Y_UP_FROM_Z_UP",
    "Z_UP_FROM_Y_UP",
    "Gaussians",
    "Mesh",
    "Node",
    "decimate",
    "downsample_random",
    "downsample_uniform",
    "downsample_voxel",
    "join",
    "place",
    "read_glb",
    "read_ply",
    "read_ply_header",
    "render_preview",
    "write_glb",
    "write_obj",
    "write_ply",
    "write_preview",
    "write_scene",
]
