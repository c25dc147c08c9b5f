"""The module, with the parameter names of the official ``model.pt``, and its graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samrt_engines.tensors import TensorSpec
from samrt_export.blocks.dinov2 import Dinov2
from samrt_export.blocks.moge_head import MogeHead
from samrt_export.families.moge.config import CONFIGS, MEAN, PATCH_PX, STD, MogeConfig
from samrt_export.randomize import randomize_live
from samrt_export.registry import Feeds, Form, GraphSpec


class Moge(nn.Module):
    """A picture to points: what the camera sees at each pixel, up to a shift in depth and a scale."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: MogeConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Dinov2(
            config.dim, config.depth, config.heads, patch_px=PATCH_PX, registers=0, view_px=PATCH_PX * config.grid
        )
        self.head = MogeHead(
            config.features, config.dim, config.projection, config.widths, config.hidden_factor, config.blocks,
            config.last, PATCH_PX,
        )  # fmt: skip
        self.register_buffer("image_mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(
        self, image: Tensor, row_weights: Tensor, column_weights: Tensor, ort_cpu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See the family's table."""
        pictures = (image.permute(0, 3, 1, 2) - self.image_mean) / self.image_std  # (1, 3, h, w)
        patches = self.backbone.patch_embed.proj(pictures) + self._positions(row_weights, column_weights)
        rows, columns = patches.shape[2:]
        first = self.backbone.cls_token + self.backbone.pos_embed[:, :1]
        x = torch.cat((first, patches.flatten(2).transpose(1, 2)), dim=1)  # (1, 1 + rows * columns, C)
        features = []
        for index, block in enumerate(self.backbone.blocks):
            x = block(x, ort_cpu)
            if index >= self.config.depth - self.config.features:
                seen = self.backbone.norm(x)[:, 1:].transpose(1, 2)
                features.append(seen.unflatten(2, (rows, columns)))
        points, mask = self.head(features)
        points = points.permute(0, 2, 3, 1)
        z = points[..., 2:].exp()
        return torch.cat((points[..., :2] * z, z), dim=-1), mask[:, 0]

    def _positions(self, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """The table at another size, as a product with the weights of its resize: (1, C, rows, columns)."""
        table = self.backbone.pos_embed[0, 1:].unflatten(0, (self.config.grid, self.config.grid))  # (grid, grid, C)
        wide: Tensor = column_weights @ table  # (grid, columns, C)
        both: Tensor = row_weights @ wide.transpose(0, 1)  # (columns, rows, C)
        return both.permute(2, 1, 0).unsqueeze(0)


class CpuMoge(nn.Module):
    """The same with ONNX Runtime's own attention."""

    def __init__(self, module: Moge) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor, row_weights: Tensor, column_weights: Tensor) -> tuple[Tensor, Tensor]:
        """See the family's table."""
        points, mask = self.module(image, row_weights, column_weights, ort_cpu=True)
        return points, mask


def build(model: str) -> nn.Module:
    """The module of a model, weights uninitialised."""
    return Moge(CONFIGS[model])


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place. Depths stay within a few powers of e, as they do in pictures."""
    assert isinstance(module, Moge)
    randomize_live(module, seed)
    module.image_mean.copy_(torch.tensor(MEAN).view(1, 3, 1, 1))
    module.image_std.copy_(torch.tensor(STD).view(1, 3, 1, 1))


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """The graph of a loaded model."""
    assert isinstance(module, Moge)
    config = module.config
    pixels = (PATCH_PX, PATCH_PX * config.most)
    (rows, columns), (more_rows, more_columns) = _checks(config)
    return (
        GraphSpec(
            "moge",
            module,
            (
                TensorSpec("image", "float32", (1, "height", "width", 3)),
                TensorSpec("row_weights", "float32", ("rows", config.grid)),
                TensorSpec("column_weights", "float32", ("columns", config.grid)),
            ),
            (
                TensorSpec("pointmap", "float32", (1, "height", "width", 3)),
                TensorSpec("pointmap_mask", "float32", (1, "height", "width")),
            ),
            {
                "height": (pixels[0], PATCH_PX * config.opt_hw[0], pixels[1]),
                "width": (pixels[0], PATCH_PX * config.opt_hw[1], pixels[1]),
                "rows": (1, config.opt_hw[0], config.most),
                "columns": (1, config.opt_hw[1], config.most),
            },
            (_sizes(rows, columns), _sizes(more_rows, more_columns)),
            lambda sizes, seed: _sample(config, sizes, seed),
            (Form(CpuMoge(module).eval(), ("onnxruntime-cpu",)), Form(module)),
            broadcast=frozenset({"rows", "columns"}),
        ),
    )


def _checks(config: MogeConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Patches of the pictures that parity is measured on: a usual one of the fewest tokens, and a tall one."""
    least = config.tokens[0]
    rows = max(2, round((least / 1.4) ** 0.5))
    return (rows, max(3, least // rows)), (rows + 3, max(2, least // (rows + 3)) + 1)


def _sizes(rows: int, columns: int) -> dict[str, int]:
    return {"height": PATCH_PX * rows, "width": PATCH_PX * columns, "rows": rows, "columns": columns}


def _sample(config: MogeConfig, sizes: Mapping[str, int], seed: int) -> Feeds:
    """A picture, and the weights of a linear resize of positions: parity asks for no particular one."""
    random = np.random.default_rng(seed)
    height, width = sizes["height"], sizes["width"]
    coarse = random.random((1, -(-height // 4), -(-width // 4), 3))
    image = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)[:, :height, :width]
    return {
        "image": image.astype(np.float32),
        "row_weights": _linear_weights(config.grid, sizes["rows"]),
        "column_weights": _linear_weights(config.grid, sizes["columns"]),
    }


def _linear_weights(source: int, target: int) -> NDArray[np.float32]:
    """(target, source)."""
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(source))).astype(np.float32)
    return weights
