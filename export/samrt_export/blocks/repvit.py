"""RepViT (arXiv 2307.09283) as a pyramid of four maps, under the names that timm gives its parameters.

Each convolution is trained with a batch norm behind it, each depthwise one as three branches besides. At inference all of that
is linear: `fused` multiplies it into one convolution, exactly.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class RepVitConfig:
    """Width and number of blocks of each stage; the first is at a quarter of the picture's size, each further one at half."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


M1 = RepVitConfig((48, 96, 192, 384), (2, 2, 14, 2))
"""``repvit_m1``."""


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        return self.bn(self.c(x))  # type: ignore[no-any-return]

    def fused(self) -> nn.Conv2d:
        """One convolution that computes the same."""
        weight, bias = self.weight_and_bias()
        return _with_weight(self.c, weight, bias)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Of the convolution with its norm multiplied in; float64."""
        norm = self.bn
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.double() - norm.running_mean.double() * scale
        return (self.c.weight.double() * scale.reshape(-1, 1, 1, 1)).detach(), bias.detach()


class TokenMixer(nn.Module):
    """A depthwise 3x3 convolution, a depthwise 1x1 convolution and the input itself, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, kernel=3, groups=channels)
        self.conv1 = ConvNorm(channels, channels, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        return self.conv(x) + self.conv1(x) + x  # type: ignore[no-any-return]

    def fused(self) -> nn.Conv2d:
        """One depthwise 3x3 convolution that computes the same."""
        weight, bias = self.conv.weight_and_bias()
        point, point_bias = self.conv1.weight_and_bias()
        return _with_weight(self.conv.c, weight + F.pad(point + 1, (1, 1, 1, 1)), bias + point_bias)


class ChannelMixer(nn.Module):
    """Two 1x1 convolutions with GELU between them, twice as wide there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1: nn.Module = ConvNorm(channels, 2 * channels)
        self.conv2: nn.Module = ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        return self.conv2(F.gelu(self.conv1(x)))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """Scales every channel by what the mean of all channels says (arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)  # a quarter, to the nearest multiple of 8
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(mean))).sigmoid()  # type: ignore[no-any-return]


class Block(nn.Module):
    """Mixes positions, then channels."""

    def __init__(self, channels: int, squeeze: bool) -> None:
        super().__init__()
        self.token_mixer: nn.Module = TokenMixer(channels)
        self.se = SqueezeExcite(channels) if squeeze else nn.Identity()
        self.channel_mixer = ChannelMixer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        x = self.se(self.token_mixer(x))
        return x + self.channel_mixer(x)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halves the size and changes the width."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.pre_block = Block(channels, squeeze=False)
        self.spatial_downsample: nn.Module = ConvNorm(channels, channels, kernel=3, stride=2, groups=channels)
        self.channel_downsample: nn.Module = ConvNorm(channels, out_channels)
        self.ffn = ChannelMixer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W) -> (B, out_channels, H / 2, W / 2)."""
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return x + self.ffn(x)  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks of one size, every second one with `SqueezeExcite`."""

    def __init__(self, channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Identity() if channels == out_channels else Downsample(channels, out_channels)
        self.blocks = nn.Sequential(*(Block(out_channels, squeeze=i % 2 == 0) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W) -> (B, out_channels, h, w)."""
        return self.blocks(self.downsample(x))  # type: ignore[no-any-return]


class Stem(nn.Module):
    """Two stride-2 convolutions with GELU between them."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv1: nn.Module = ConvNorm(3, out_channels // 2, kernel=3, stride=2)
        self.conv2: nn.Module = ConvNorm(out_channels // 2, out_channels, kernel=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) -> (B, out_channels, H / 4, W / 4)."""
        return self.conv2(F.gelu(self.conv1(x)))  # type: ignore[no-any-return]


class RepVit(nn.Module):
    """The trunk without its classifier."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        self.stem = Stem(config.channels[0])
        before = (config.channels[0], *config.channels)
        for i, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            self.add_module(f"stages_{i}", Stage(before[i], channels, depth))
        self.num_stages = len(config.depths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, S, S) normalised -> (B, C_i, S/4, S/4), ... (B, C_i, S/32, S/32), finest first."""
        x = self.stem(x)
        maps = []
        for i in range(self.num_stages):
            x = self.get_submodule(f"stages_{i}")(x)
            maps.append(x)
        return maps

    def fused(self) -> RepVit:
        """A copy in which all that `ConvNorm` and `TokenMixer` compute is one convolution each."""
        trunk = copy.deepcopy(self)
        for owner in list(trunk.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, ConvNorm | TokenMixer):
                    setattr(owner, name, child.fused())
        return trunk


def _with_weight(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution over the same positions with other weights, as float32."""
    out, inner, *_ = weight.shape
    padding, groups = conv.padding, conv.groups
    assert isinstance(padding, tuple)
    fused = nn.Conv2d(inner * groups, out, conv.kernel_size, conv.stride, padding, groups=groups)  # type: ignore[arg-type]
    fused.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    fused.bias = nn.Parameter(bias.to(torch.float32), requires_grad=False)
    return fused
