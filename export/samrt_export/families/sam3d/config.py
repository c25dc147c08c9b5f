"""The numbers of SAM 3D Objects: those of the released configuration, and a toy with every structural feature.

Nothing outside this file may assume a grid of 64, a latent grid of 16 or a mesh resolution of 256.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, on the 0..1 scale: what DINOv2 is fed with."""
VIEWS = ("crop_rgb", "full_rgb", "crop_mask", "full_mask")
"""The order of the views in the batch of ``dino`` and of their tokens in a condition."""

POSE_TOKENS = (("6drotation_normalized", 6), ("translation", 3), ("scale", 3), ("translation_scale", 1))
"""Official name and width of each pose token, in the order in which they stand in the pose stream."""
POSE_STREAM = "6drotation_normalized"
SHAPE_STREAM = "shape"


@dataclass(frozen=True)
class VitConfig:
    """DINOv2 with registers. view_px: side of a view; positions are stored for its very grid."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    patch_px: int = 14
    registers: int = 4
    view_px: int = 518

    @property
    def patches(self) -> int:
        """Patches of a view."""
        return (self.view_px // self.patch_px) ** 2


@dataclass(frozen=True)
class PointConfig:
    """The reader of pointmaps: windows of ``window`` pixels of a ``view_px`` map, one token each."""

    dim: int = 512
    heads: int = 16
    mlp_ratio: int = 2
    view_px: int = 256
    window: int = 8

    @property
    def tokens(self) -> int:
        """Tokens of a view."""
        return (self.view_px // self.window) ** 2


@dataclass(frozen=True)
class FuserConfig:
    """Projections of all views into one condition. groups: rows of the table that tells a crop from a whole picture."""

    dim: int = 1024
    hidden: int = 2816
    groups: int = 3


@dataclass(frozen=True)
class FlowConfig:
    """A diffusion transformer. io_dim: width of the sparse residual blocks around the one on voxels."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    time_channels: int = 256
    io_dim: int = 128


@dataclass(frozen=True)
class StructureDecoderConfig:
    """The dense decoder: widths from the latent grid up, each level twice as fine as the one before."""

    channels: tuple[int, ...] = (512, 128, 32)
    res_blocks: int = 2
    middle_blocks: int = 2


@dataclass(frozen=True)
class LatentDecoderConfig:
    """What the Gaussian and the mesh decoder share, and the widths of the mesh decoder's two subdivisions."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    window: int = 8
    mesh_channels: tuple[int, int] = (192, 96)


@dataclass(frozen=True)
class Sampling:
    """How a flow is sampled (the manifest's numbers of one flow)."""

    steps: int
    rescale_t: float
    guidance: float
    shortcut: bool
    guidance_interval: tuple[float, float] = (0.0, 500.0)
    time_scale: float = 1000.0


@dataclass(frozen=True)
class Sam3dConfig:
    """All sizes of one model.

    points: None where the model takes no pointmap. small_gaussians: Gaussians per voxel of the optional second decoder.
    """

    vit: VitConfig = VitConfig()
    points: PointConfig | None = PointConfig()
    fuser: FuserConfig = FuserConfig()
    structure_flow: FlowConfig = FlowConfig()
    structure_decoder: StructureDecoderConfig = StructureDecoderConfig()
    latent_flow: FlowConfig = FlowConfig()
    decoder: LatentDecoderConfig = LatentDecoderConfig()
    gaussians: int = 32
    small_gaussians: int | None = 4
    latent_channels: int = 8
    grid: int = 64
    latent_grid: int = 16
    max_voxels: int = 42000
    prune_interior: bool = True
    structure_sampling: Sampling = Sampling(steps=25, rescale_t=3.0, guidance=7.0, shortcut=True)
    latent_sampling: Sampling = Sampling(steps=25, rescale_t=1.0, guidance=1.0, shortcut=False)
    latent_mean: tuple[float, ...] = field(
        default=(
            0.12211431, 0.37204156, -1.26521907, -2.05276058, -3.10432536, -0.11294304, -0.85146744, 0.45506954,
        )
    )  # fmt: skip
    latent_std: tuple[float, ...] = field(
        default=(2.37326008, 2.13174402, 2.2413953, 2.30589401, 2.1191894, 1.8969511, 2.41684989, 2.08374642)
    )
    rotation_mean: tuple[float, ...] = (-0.06366085, 0.00843822, 0.00017085, 0.00071266, -0.00309167, 0.51660938)
    rotation_std: tuple[float, ...] = (0.66569720, 0.67870123, 0.30345011, 0.43945044, 0.39817974, 0.61762869)

    @property
    def resolution(self) -> int:
        """Cubes of the mesh along one axis: two subdivisions of the grid."""
        return 4 * self.grid

    @property
    def structure_tokens(self) -> int:
        """Tokens of the structure latent."""
        return self.latent_grid**3

    @property
    def ss_feature_tokens(self) -> int:
        """Tokens of one view for stage 1: class token and patches."""
        return 1 + self.vit.patches

    @property
    def slat_feature_tokens(self) -> int:
        """Tokens of one view for stage 2: registers too."""
        return 1 + self.vit.registers + self.vit.patches

    @property
    def ss_tokens(self) -> int:
        """Tokens of the condition of stage 1."""
        points = 0 if self.points is None else 2 * self.points.tokens
        return len(VIEWS) * self.ss_feature_tokens + points

    @property
    def slat_tokens(self) -> int:
        """Tokens of the condition of stage 2."""
        return len(VIEWS) * self.slat_feature_tokens


_TOY_FLOW = FlowConfig(dim=64, depth=2, heads=4, mlp_ratio=2, io_dim=32)

NANO_3D = Sam3dConfig(
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
    structure_sampling=Sampling(steps=25, rescale_t=3.0, guidance=0.0, shortcut=True),
    latent_sampling=Sampling(steps=12, rescale_t=1.0, guidance=0.0, shortcut=False),
    latent_mean=(0.0, 0.0, 0.0, 0.0, 0.45, 0.45, 0.45, 0.055),
    latent_std=(0.45, 0.58, 0.58, 0.58, 0.3, 0.3, 0.3, 0.08),
    rotation_mean=(0.0,) * 6,
    rotation_std=(0.6,) * 6,
)
"""Of the model that this project trains and ships: grids half as fine, every structural feature there (samrt_export.nano3d)."""
NANO_3D_CHECKPOINT = Path(__file__).parents[2] / "nano3d" / "nano3d.safetensors"

CONFIGS: dict[str, Sam3dConfig] = {
    "sam3d-objects": Sam3dConfig(),
    "sam3d-objects-toy": Sam3dConfig(
        vit=VitConfig(dim=64, depth=2, heads=4, view_px=56),
        points=PointConfig(dim=32, heads=4, view_px=32),
        fuser=FuserConfig(dim=64, hidden=96),
        structure_flow=_TOY_FLOW,
        structure_decoder=StructureDecoderConfig(channels=(32, 16, 16), res_blocks=1, middle_blocks=1),
        latent_flow=_TOY_FLOW,
        decoder=LatentDecoderConfig(dim=96, depth=2, heads=3, mlp_ratio=2, mesh_channels=(64, 32)),
    ),
    "nano-3d": NANO_3D,
}
