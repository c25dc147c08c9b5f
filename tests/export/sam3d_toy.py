"""The toy model of SAM 3D with live random weights, only what works on voxels; and voxels to try it on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from samrt_export.blocks.flow_transformer import MultiHeadRmsNorm
from samrt_export.families.sam3d.config import CONFIGS
from samrt_export.families.sam3d.sparse_specs import make_sparse_modules, randomize_sparse, sparse_graphs
from samrt_export.randomize import randomize_live
from samrt_export.registry import GraphSpec

TOY = "sam3d-objects-toy"


class SparseToy(nn.Module):
    """The sparse parts under the names that the whole model has them under."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.config = CONFIGS[model]
        parts = make_sparse_modules(self.config)
        self.slat_generator = nn.Module()
        self.slat_generator.backbone = parts.pop("slat_flow")
        for name, part in parts.items():
            self.add_module(name, part)


@cache
def live_toy() -> SparseToy:
    module = SparseToy(TOY)
    randomize_live(module, 0)
    randomize_sparse(module, 1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, MultiHeadRmsNorm):
                part.gamma.normal_(1.6, 0.1, generator=torch.Generator().manual_seed(0))
    return module.eval()


@cache
def toy_specs() -> tuple[GraphSpec, ...]:
    return sparse_graphs(live_toy())  # type: ignore[arg-type]


def toy_spec(name: str) -> GraphSpec:
    return next(spec for spec in toy_specs() if spec.name == name)


def shell(voxels: int, grid: int) -> NDArray[np.int32]:
    """The voxels closest to a sphere: int32 (N, 3), lexicographic."""
    cells = np.indices((grid,) * 3).reshape(3, -1).T
    distance = np.abs(np.linalg.norm(cells + 0.5 - grid / 2, axis=1) - 0.42 * grid)
    return cells[np.sort(np.argsort(distance, kind="stable")[:voxels])].astype(np.int32)
