"""The numbers of TRELLIS (microsoft/TRELLIS, MIT): configs/ of its repository and pipeline.json of TRELLIS-image-large."""

from __future__ import annotations

from samrt_export.families.sam3d.config import (
    FlowConfig,
    FuserConfig,
    LatentDecoderConfig,
    Sam3dConfig,
    Sampling,
    StructureDecoderConfig,
    VitConfig,
)

VIEWS = ("object",)
SAMPLING = Sampling(steps=25, rescale_t=3.0, guidance=5.0, shortcut=False)
"""Of both flows. Its own interval of guidance, 0.5 to 1 of a time from noise at 1 to data at 0, is 0 to 500 here."""
LATENT_MEAN = (
    -2.1687545776367188,
    -0.004347046371549368,
    -0.13352349400520325,
    -0.08418072760105133,
    -0.5271206498146057,
    0.7238689064979553,
    -1.1414450407028198,
    1.2039363384246826,
)
LATENT_STD = (
    2.377650737762451,
    2.386378288269043,
    2.124418020248413,
    2.1748552322387695,
    2.663944721221924,
    2.371192216873169,
    2.6217446327209473,
    2.684523105621338,
)
_TOY_FLOW = FlowConfig(dim=64, depth=2, heads=4, mlp_ratio=2, io_dim=32)

CONFIGS: dict[str, Sam3dConfig] = {
    "trellis-image-large": Sam3dConfig(
        points=None,
        small_gaussians=None,
        prune_interior=False,
        structure_sampling=SAMPLING,
        latent_sampling=SAMPLING,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
    ),
    "trellis-image-large-toy": Sam3dConfig(
        vit=VitConfig(dim=64, depth=2, heads=4, view_px=56),
        points=None,
        fuser=FuserConfig(dim=64),
        structure_flow=_TOY_FLOW,
        structure_decoder=StructureDecoderConfig(channels=(32, 16, 16), res_blocks=1, middle_blocks=1),
        latent_flow=_TOY_FLOW,
        decoder=LatentDecoderConfig(dim=96, depth=2, heads=3, mlp_ratio=2, mesh_channels=(64, 32)),
        small_gaussians=None,
        prune_interior=False,
        structure_sampling=SAMPLING,
        latent_sampling=SAMPLING,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
    ),
}
