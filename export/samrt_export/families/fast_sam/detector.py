"""The graph of a FastSAM bundle, and a small network with the same inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt.proposals.detections import BOXES, COEFFICIENTS, IMAGE, PROTOTYPES, SCORES
from samrt_engines.tensors import TensorSpec
from samrt_export.registry import Feeds, Form, GraphSpec
from samrt_export.samples import sample_image

STRIDES = (8, 16, 32)
"""Input pixels between the anchors of each level."""
COEFFICIENT_COUNT = 32
PARTS = (4, 1, COEFFICIENT_COUNT)
"""Of an anchor's channels in ``output0``: box, score, coefficients."""


def anchor_count(size: int) -> int:
    """How many anchors an input of size x size pixels has."""
    return sum((size // stride) ** 2 for stride in STRIDES)


def detector_spec(module: nn.Module, size: int) -> GraphSpec:
    """The one graph. module: of it, as it is traced or comes as ONNX"""
    anchors, quarter = anchor_count(size), size // 4

    def sample(sizes: Mapping[str, int], seed: int) -> Feeds:
        return {IMAGE: sample_image(1, size, seed)}

    return GraphSpec(
        "detector",
        module,
        (TensorSpec(IMAGE, "float32", (1, size, size, 3)),),
        (
            TensorSpec(BOXES, "float32", (1, 4, anchors)),
            TensorSpec(SCORES, "float32", (1, 1, anchors)),
            TensorSpec(COEFFICIENTS, "float32", (1, COEFFICIENT_COUNT, anchors)),
            TensorSpec(PROTOTYPES, "float32", (1, COEFFICIENT_COUNT, quarter, quarter)),
        ),
        profiles={},
        checks=({}, {}),
        sample=sample,
        forms=(Form(module),),
    )


class DetectorGraph(nn.Module):
    """A network of the files' interface (images (1, 3, S, S) 0..1 -> output0, output1) as the bundle's graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the family's table."""
        everything, prototypes = self.network(image.permute(0, 3, 1, 2) / 255)
        return *everything.split(list(PARTS), 1), prototypes


class StandIn(nn.Module):
    """A small network with the files' inputs and outputs, and the operators that such files are made of.

    It is not YOLOv8's architecture and has learned nothing: it is there to try out all that surrounds a file. Three levels
    of anchors; a box is the expected value of a distribution over distances to its four sides.
    """

    centres: Tensor
    strides: Tensor
    distances: Tensor

    def __init__(self, size: int, width: int = 16, bins: int = 8) -> None:
        super().__init__()
        self.size, self.bins = size, bins
        narrow, middle, wide = width, 2 * width, 3 * width
        self.stem = nn.Sequential(_conv(3, width, 3, 2), _conv(width, narrow, 3, 2), Parted(narrow))
        self.down = nn.ModuleList(
            nn.Sequential(_conv(before, after, 3, 2), Parted(after))
            for before, after in ((narrow, narrow), (narrow, middle), (middle, wide))
        )
        self.context = _conv(2 * wide, wide, 1)
        self.middle = _conv(wide + middle, middle, 1)
        self.fine = _conv(middle + narrow, narrow, 1)
        self.prototypes = nn.Sequential(
            nn.ConvTranspose2d(narrow, narrow, 2, 2), nn.SiLU(), nn.Conv2d(narrow, COEFFICIENT_COUNT, 1)
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(channels, 4 * bins + 1 + COEFFICIENT_COUNT, 1) for channels in (narrow, middle, wide)
        )
        centres, strides = _anchors(size)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("distances", torch.arange(bins, dtype=torch.float32).view(1, 1, bins, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (1, 3, S, S) 0..1. returns: output0 (1, 37, A), output1 (1, 32, S / 4, S / 4)"""
        eighth = self.down[0](self.stem(images))
        sixteenth = self.down[1](eighth)
        coarse = self.down[2](sixteenth)
        coarse = self.context(torch.cat((coarse, F.max_pool2d(coarse, 5, 1, 2)), 1))
        middle = self.middle(torch.cat((F.interpolate(coarse, scale_factor=2.0, mode="nearest"), sixteenth), 1))
        fine = self.fine(torch.cat((F.interpolate(middle, scale_factor=2.0, mode="nearest"), eighth), 1))
        levels = [head(level).flatten(2) for head, level in zip(self.heads, (fine, middle, coarse), strict=True)]
        sides, score, coefficients = torch.cat(levels, 2).split((4 * self.bins, 1, COEFFICIENT_COUNT), 1)
        return torch.cat((self._boxes(sides), score.sigmoid(), coefficients), 1), self.prototypes(fine)

    def _boxes(self, sides: Tensor) -> Tensor:
        """(1, 4 bins, A) -> (1, 4, A), centre and size in input pixels."""
        shares = sides.unflatten(1, (4, self.bins)).softmax(2)  # (1, 4, bins, A)
        before, after = (shares * self.distances).sum(2).chunk(2, 1)  # (1, 2, A) each, left and top, right and bottom
        first, last = self.centres - before, self.centres + after
        return torch.cat(((first + last) / 2, last - first), 1) * self.strides


class Parted(nn.Module):
    """Half of the channels pass through a convolution, with the input added, and join the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.changed = channels // 2
        self.inner = _conv(self.changed, self.changed, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, h, w) -> the same."""
        kept, changed = x.split((x.shape[1] - self.changed, self.changed), 1)
        return torch.cat((kept, changed + self.inner(changed)), 1)


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.SiLU())


def _anchors(size: int) -> tuple[Tensor, Tensor]:
    """Centres (1, 2, A) in steps of each level's stride, and those strides (1, 1, A)."""
    centres, strides = [], []
    for stride in STRIDES:
        place = torch.arange(size // stride) + 0.5
        y, x = torch.meshgrid(place, place, indexing="ij")
        centres.append(torch.stack((x.flatten(), y.flatten())))
        strides.append(torch.full((1, x.numel()), float(stride)))
    return torch.cat(centres, 1)[None], torch.cat(strides, 1)[None]
