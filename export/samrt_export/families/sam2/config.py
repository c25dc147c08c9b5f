"""The nine models of the family, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from samrt_export.blocks.hiera import HieraConfig
from samrt_export.families.sam.config import MEAN, STD, PromptedConfig

__all__ = ["CONFIGS", "MEAN", "NANO", "NUM_MASKMEM", "STD", "TRUNKS", "Sam2Config", "TrunkConfig"]

NUM_MASKMEM = 7


class TrunkConfig(Protocol):
    """Whatever a trunk is made from: the neck needs to know how wide its maps are, finest first."""

    @property
    def channels(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Sam2Config(PromptedConfig):
    """The numbers in which variants differ; the defaults are what the eight official ones share."""

    trunk: TrunkConfig
    pointer_positions: bool
    """2.1: temporal positions of object pointers are projected, and absent objects have a spatial embedding."""
    memory_dim: int = 64
    memory_layers: int = 4
    top_down_levels: tuple[int, ...] = (2, 3)
    automatic: tuple[float, float] = (0.8, 0.95)
    """Expected IoU and stability from which on automatic masks are kept: ``SAM2AutomaticMaskGenerator``'s defaults."""
    checkpoint: Path | None = None


TRUNKS = {
    "tiny": HieraConfig(96, 1, (1, 2, 7, 2), (5, 7, 9), (7, 7)),
    "small": HieraConfig(96, 1, (1, 2, 11, 2), (7, 10, 13), (7, 7)),
    "base-plus": HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20), (14, 14)),
    "large": HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (7, 7), (8, 4, 16, 8)),
}
NANO = Sam2Config(
    trunk=HieraConfig(32, 1, (1, 2, 5, 1), (4, 7), (8, 8), (8, 4, 8, 4)),
    pointer_positions=True,
    image_size=256,
    d_model=128,
    memory_dim=64,
    memory_layers=2,
    mlp_dim=512,
    iou_hidden_dim=128,
    top_down_levels=(0, 1, 2, 3),
    automatic=(0.7, 0.9),  # it trusts small things less than it could
    checkpoint=Path(__file__).parents[2] / "nano" / "nano.safetensors",
)
CONFIGS = {
    f"{version}-hiera-{size}": Sam2Config(trunk, version == "sam2.1", hub_id=f"facebook/{version}-hiera-{size}")
    for version in ("sam2.1", "sam2")
    for size, trunk in TRUNKS.items()
} | {"nano": NANO}
