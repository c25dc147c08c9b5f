"""The sizes of MoGe v1 models. Official ones from the ``model_config`` of their ``model.pt``."""

from __future__ import annotations

from dataclasses import dataclass

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PATCH_PX = 14


@dataclass(frozen=True)
class MogeConfig:
    """One model.

    grid: patches along a side of the picture that positions are stored for. features: how many of the encoder's last layers
    the head sees. tokens: fewest and most patches of a picture in training. opt_hw: the usual picture, in patches.
    """

    dim: int
    depth: int
    heads: int
    grid: int = 37
    features: int = 4
    projection: int = 512
    widths: tuple[int, ...] = (256, 128, 64)
    hidden_factor: int = 2
    blocks: int = 2
    last: int = 32
    tokens: tuple[int, int] = (1275, 2551)
    opt_hw: tuple[int, int] = (42, 60)
    most: int = 100
    """Patches along one side of the largest picture."""
    hub_id: str | None = None


CONFIGS = {
    "moge-vitl": MogeConfig(dim=1024, depth=24, heads=16, hub_id="Ruicheng/moge-vitl"),
    "moge-vitl-toy": MogeConfig(
        dim=64, depth=4, heads=4, grid=5, features=3, projection=32, widths=(32, 32, 16), blocks=1, last=16,
        tokens=(12, 24), opt_hw=(4, 5), most=16,
    ),
}  # fmt: skip
