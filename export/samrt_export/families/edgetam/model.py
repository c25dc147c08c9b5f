"""EdgeTAM as modules under the official parameter names: SAM 2's tracker with another trunk and a smaller memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samrt_export.blocks.memory_bank import BankTokens
from samrt_export.blocks.perceiver import PerceiverLayer, PerceiverResampler
from samrt_export.blocks.positions import axial_rotation, join_rotations, no_rotation
from samrt_export.blocks.repvit import ChannelMixer, ConvNorm, RepVit, RepVitConfig, SqueezeExcite, TokenMixer
from samrt_export.families.edgetam.config import CONFIGS, LATENT_GRID, NUM_LATENTS, PERCEIVER_DEPTH
from samrt_export.families.sam2.config import Sam2Config
from samrt_export.families.sam2.model import Sam2
from samrt_export.randomize import randomize_live

BRANCH_GAIN = 0.3
"""Of a random trunk's residual branches: beside an identity, 23 blocks of unit gain would end near 1e7."""
SQUEEZE_BIAS = 1.5
"""Opens a random trunk's channel gates: half closed, eleven of them in a row would leave a thousandth."""
READING_GAIN = 2.0
"""Of the random perceiver's queries, that its latents pick some of 4096 tokens instead of averaging them."""


class Trunk(nn.Module):
    """RepViT under the official name ``body``."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        self.body = RepVit(config)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, S, S) normalised -> (B, S/4, S/4, C_0), ... (B, S/32, S/32, C_3), finest first."""
        return [level.permute(0, 2, 3, 1) for level in self.body(x)]


class EdgeTam(Sam2):
    """The whole model under the official parameter names."""

    def __init__(self, config: Sam2Config) -> None:
        assert isinstance(config.trunk, RepVitConfig)
        super().__init__(config, Trunk(config.trunk))
        hw = (config.embed_size,) * 2
        self.spatial_perceiver = PerceiverResampler(config.memory_dim, PERCEIVER_DEPTH, NUM_LATENTS, LATENT_GRID, hw)

    def bank_tokens(self) -> BankTokens:
        """A slot of the memory bank is what the perceiver makes of a map; latents of the whole map are nowhere on it."""
        dim = self.config.d_model
        rotation = join_rotations(no_rotation(NUM_LATENTS, dim), axial_rotation((LATENT_GRID,) * 2, dim))
        return BankTokens(self.spatial_perceiver.token_position(), rotation)

    def memory_tokens(self, memory: Tensor) -> Tensor:
        """memory: (K, hw, memory_dim) -> (K, tokens, memory_dim), read by the perceiver."""
        return self.spatial_perceiver(memory.unflatten(1, (self.config.embed_size,) * 2))  # type: ignore[no-any-return]


def build(model: str) -> EdgeTam:
    """The module of a model name."""
    return EdgeTam(CONFIGS[model])


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights, in place: `randomize_live`, and what keeps a deep residual trunk from growing or fading."""
    randomize_live(module, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, ConvNorm):
                assert part.bn.running_mean is not None
                assert part.bn.running_var is not None
                part.bn.running_mean.normal_(0, 0.1, generator=generator)
                part.bn.running_var.uniform_(0.5, 1.5, generator=generator)
        for part in module.modules():
            if isinstance(part, TokenMixer):
                part.conv.bn.weight.mul_(BRANCH_GAIN)
                part.conv1.bn.weight.mul_(BRANCH_GAIN)
            elif isinstance(part, ChannelMixer):
                assert isinstance(part.conv2, ConvNorm)
                part.conv2.bn.weight.mul_(BRANCH_GAIN)
            elif isinstance(part, SqueezeExcite):
                assert part.fc2.bias is not None
                part.fc2.bias.add_(SQUEEZE_BIAS)
            elif isinstance(part, PerceiverLayer):
                part.attn.to_q.weight.mul_(READING_GAIN)
                part.self_attn.to_q.weight.mul_(READING_GAIN)
