"""Random weights under which a model is alive: every output varies with the input.

Default initialisations will not do. Many of these models start with zero embeddings, near-uniform attention and
constant heads, so that any two implementations agree on them and a parity check proves nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ATTENTION_GAIN = 1.6
"""Queries and keys are drawn this much wider, so that softmax picks instead of averaging."""


def randomize_live(module: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer in place, the same for the same seed.

    Weights keep the variance of what passes through (normal, 1 / sqrt(fan-in)); norms stay near one; biases, embeddings and
    position tables are far enough from zero to matter.
    """
    generator = torch.Generator().manual_seed(seed)
    held = module.state_dict().keys()  # buffers that no file holds are constants
    for owner_name, owner in module.named_modules():
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if tensor.is_floating_point() and f"{owner_name}.{name}".lstrip(".") in held:
                _fill(owner, owner_name, name, tensor.data, generator)


def _fill(owner: nn.Module, owner_name: str, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if name == "weight" and isinstance(owner, nn.Linear | nn.Conv2d):
        std = 1 / math.sqrt(tensor[0].numel())
        rows = tensor.shape[0]
        tensor.normal_(0, std, generator=generator)
        if owner_name.endswith(("q_proj", "k_proj")):
            tensor *= ATTENTION_GAIN
        elif owner_name.endswith(".qkv"):
            tensor[: 2 * rows // 3] *= ATTENTION_GAIN
    elif name == "weight" and isinstance(owner, nn.ConvTranspose2d):
        tensor.normal_(0, 1 / math.sqrt(tensor.shape[0]), generator=generator)
    elif name == "weight" and tensor.ndim == 1:  # norms
        tensor.normal_(1, 0.1, generator=generator)
    elif name == "bias":
        tensor.normal_(0, 0.1, generator=generator)
    elif name == "gamma":
        tensor.normal_(0.5, 0.1, generator=generator)
    else:  # embeddings, position tables, random Fourier matrices
        tensor.normal_(0, 1, generator=generator)
