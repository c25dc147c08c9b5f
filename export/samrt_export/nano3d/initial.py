"""Weights to start training from: the model's modules leave some of theirs empty, or at values that learn slowly."""

from __future__ import annotations

import math

import torch
from torch import nn

from samrt_export.blocks.sparse_conv import ConvWeights
from samrt_export.families.sam3d.decoders import OFFSET_VOXELS, SlatDecoderGs
from samrt_export.families.sam3d.model import Sam3d

GATE = 0.3
"""Of a block's branches before a time changes them."""


def initialise(model: Sam3d, seed: int = 0) -> None:
    """In place, the same for the same seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, ConvWeights):
                nn.init.normal_(module.weight, std=math.sqrt(1 / module.weight[0].numel()))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(0.7 / module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SlatDecoderGs):
                module.offset_perturbation.copy_(_spread(module.gaussians))
            if name.endswith("adaLN_modulation"):
                _start_gates(module)
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_token", "register_tokens", "invalid_xyz_token", "idx_emb")) or "pos_emb" in name:
                nn.init.normal_(parameter, std=0.2)


def _start_gates(layer: nn.Module) -> None:
    linear = layer[1]  # type: ignore[index]
    linear.weight.mul_(0.1)
    linear.bias.zero_()
    for gate in (2, 5):
        linear.bias.chunk(6)[gate].fill_(GATE)


def _spread(count: int) -> torch.Tensor:
    """(count, 3) where Gaussians start from, atanh of a Hammersley pattern in [-1, 1] over 1.5: evenly within the voxel."""
    index = torch.arange(count)
    columns = [(index + 0.5) / count, _radical_inverse(index, 2), _radical_inverse(index, 3)]
    pattern = torch.stack(columns, dim=1) * 2 - 1
    return torch.atanh(pattern / (2 * OFFSET_VOXELS))


def _radical_inverse(index: torch.Tensor, base: int) -> torch.Tensor:
    """The digits of each number in a base, mirrored at the point."""
    value, digit, rest = torch.zeros(len(index)), 1 / base, index + 1
    while bool(rest.any()):
        value += digit * (rest % base)
        rest, digit = rest // base, digit / base
    return value
