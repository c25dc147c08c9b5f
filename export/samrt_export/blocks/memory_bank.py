"""The memory bank as `memory_attention` takes it: slots and object pointers, each with its place in time and whether it is there.

`BankTokens` says what the tokens of a slot are and gives upstream's arrangement; `MemoryAttentionGraph` is what is exported:

- What depends on weights alone is computed beforehand: the positions of keys go through the key projection at export, the
  channels of queries and keys are put in an order in which rotating them moves whole blocks.
- Before the first cross-attention all objects of a frame are alike: the first self-attention is done once.

``lean``, for CPUs, does two things more. GPUs' fused kernels want values as wide as keys, and widths they know:

- The softmax weights of a query sum to one, so the value projection may follow the attention: with W the projection,
  sum a (W m + b) = W (sum a m) + b. The attention then sums the 64 channels of the memory instead of 256, and W joins the
  output projection. That takes a quarter off memory attention.
- What is missing is marked in one more channel of the keys, that of the queries being 1: attention with a mask would build
  the whole score matrix (470 MB for each layer of SAM 2 with seven slots).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.contrib import multi_head_attention
from samrt_export.blocks.memory import MemoryAttention, RotaryAttention
from samrt_export.blocks.positions import (
    Rotation,
    halves_from_pairs,
    no_rotation,
    rotate_halves,
    sine_distances,
)

EMPTY = -1e4
"""Added to the scores of what is not there (fp16 holds it with room to spare): their softmax weights are exactly zero."""


@dataclass(frozen=True)
class BankTokens:
    """The tokens of one slot: ``position`` (tokens, memory_dim) and ``rotation`` of their keys, (tokens, dim / 2) each."""

    position: Tensor
    rotation: Rotation


class Bank(NamedTuple):
    """The inputs of `memory_attention` that describe memory; K objects, M slots of T tokens, P pointers. See families."""

    memory: Tensor  # (K, M, T, memory_dim)
    memory_time: Tensor  # (K, M) int32
    memory_valid: Tensor  # (K, M) 0 or 1
    object_pointers: Tensor  # (K, P, dim)
    pointer_distance: Tensor  # (K, P)
    pointer_valid: Tensor  # (K, P) 0 or 1


class TimePositions(NamedTuple):
    """Positions in time: a row of ``table`` (rows, memory_dim) for each age of a slot; for pointers a projection of sines."""

    table: Tensor
    projection: nn.Linear | None

    def of_slots(self, memory_time: Tensor) -> Tensor:
        """memory_time: (K, M) int32 -> (K, M, memory_dim)."""
        return F.embedding(memory_time.clamp_min(0), self.table)

    def of_pointers(self, distance: Tensor, dim: int) -> Tensor | None:
        """distance: (K, P) -> (K, P, memory_dim); None where the model has no such positions."""
        return None if self.projection is None else self.projection(sine_distances(distance, dim))


def tokens_of(bank: Bank) -> tuple[Tensor, Tensor]:
    """All tokens in one row (K, N, memory_dim), and which are there (K, N) 0 or 1. A pointer is dim / memory_dim tokens."""
    per_slot, memory_dim = bank.memory.shape[2:]
    split = bank.object_pointers.shape[-1] // memory_dim
    pointers = bank.object_pointers.unflatten(-1, (split, memory_dim)).flatten(1, 2)
    valid = (repeated(bank.memory_valid, per_slot), repeated(bank.pointer_valid, split))
    return torch.cat((bank.memory.flatten(1, 2), pointers), dim=1), torch.cat(valid, dim=1)


def repeated(values: Tensor, count: int) -> Tensor:
    """(K, N, ...) -> (K, N * count, ...): every row ``count`` times in a row."""
    return values.unsqueeze(2).expand(-1, -1, count, *values.shape[2:]).flatten(1, 2)


def condition_as_upstream(
    attention: MemoryAttention, image: Tensor, turn: Rotation, bank: Bank, tokens: BankTokens, times: TimePositions
) -> Tensor:
    """Memory attention in upstream's arrangement: all tokens in one row, positions added to them.

    image: (1, hw, dim), sine positions added; turn: of its queries -> (K, hw, dim)
    """
    count, slots, per_slot, memory_dim = bank.memory.shape
    dim = image.shape[-1]
    memory, valid = tokens_of(bank)
    slot_position = tokens.position + times.of_slots(bank.memory_time).unsqueeze(2)  # (K, M, T, memory_dim)
    pointer_position = times.of_pointers(bank.pointer_distance, dim)
    if pointer_position is None:
        pointer_position = bank.pointer_distance.new_zeros(*bank.pointer_distance.shape, memory_dim)
    position = torch.cat((slot_position.flatten(1, 2), repeated(pointer_position, dim // memory_dim)), dim=1)
    rest = no_rotation(memory.shape[1] - slots * per_slot, dim)
    rotation = Rotation(*(torch.cat((a.repeat(slots, 1), b)) for a, b in zip(tokens.rotation, rest, strict=True)))
    return attention(image.expand(count, -1, -1), memory, position, turn, rotation, valid > 0.5)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention to the bank, positions and reordering folded into the weights; ``lean``, ``ort_cpu``: see above."""

    token_keys: Tensor
    time_keys: Tensor
    key_bias: Tensor

    def __init__(
        self, layer: RotaryAttention, tokens: BankTokens, times: TimePositions, lean: bool, ort_cpu: bool
    ) -> None:
        super().__init__()
        self.lean, self.ort_cpu = lean, ort_cpu
        self.query, key = in_halves(layer.q_proj), in_halves(layer.k_proj)
        self.key = nn.Linear(key.in_features, key.out_features, bias=False)
        self.pointer_times = times.projection
        self.value = nn.Identity() if lean else layer.v_proj
        self.out = composed(layer.v_proj, layer.out_proj) if lean else layer.out_proj
        with torch.no_grad():
            self.key.weight.copy_(key.weight)
            self.register_buffer("token_keys", key(tokens.position))  # (T, dim)
            self.register_buffer("time_keys", times.table @ key.weight.T)  # (rows, dim)
            self.register_buffer("key_bias", key.bias.clone())

    def forward(
        self, x: Tensor, turn: Rotation, bank: Bank, turn_slot: Rotation, memory: Tensor, valid: Tensor
    ) -> Tensor:
        """x: (K or 1, hw, dim); memory: (K, N, memory_dim) all tokens; valid: (K, N) 0 or 1 -> (K, hw, dim)."""
        query, key = rotate_halves(self.query(x), turn), self.keys(bank, turn_slot)
        scale, mask = query.shape[-1] ** -0.5, None
        if self.lean:
            query = torch.cat((query, torch.ones_like(query[..., :1])), dim=-1)
            key = torch.cat((key, (1 - valid).unsqueeze(-1) * EMPTY), dim=-1)
        else:  # written out for every query: ONNX Runtime 1.31 does not broadcast it
            mask = ((1 - valid) * EMPTY)[:, None, None].expand(-1, -1, query.shape[1], -1)
        query, value = query.expand(key.shape[0], -1, -1), self.value(memory)
        if self.ort_cpu:
            return self.out(multi_head_attention(query, key, value, scale=scale))  # type: ignore[no-any-return]
        return self.out(attend_one_head(query, key, value, scale, mask))  # type: ignore[no-any-return]

    def keys(self, bank: Bank, turn_slot: Rotation) -> Tensor:
        """All keys of the bank, rotated: (K, N, dim)."""
        slots = self.key(bank.memory) + self.token_keys  # (K, M, T, dim)
        slots = slots + F.embedding(bank.memory_time.clamp_min(0), self.time_keys).unsqueeze(2)
        slots = rotate_halves(slots, turn_slot)
        pointers = bank.object_pointers.unflatten(-1, (-1, bank.memory.shape[-1]))  # (K, P, split, memory_dim)
        position = TimePositions(self.time_keys, self.pointer_times).of_pointers(
            bank.pointer_distance, bank.object_pointers.shape[-1]
        )
        if position is not None:
            pointers = pointers + position.unsqueeze(2)
        return torch.cat((slots.flatten(1, 2), (self.key(pointers) + self.key_bias).flatten(1, 2)), dim=1)


class SelfAttention(nn.Module):
    """Attention of the image to itself, channels reordered."""

    def __init__(self, layer: RotaryAttention, ort_cpu: bool) -> None:
        super().__init__()
        self.attend = multi_head_attention if ort_cpu else attend_one_head
        self.query, self.key = in_halves(layer.q_proj), in_halves(layer.k_proj)
        self.value, self.out = layer.v_proj, layer.out_proj

    def forward(self, x: Tensor, turn: Rotation) -> Tensor:
        """x: (B, hw, dim), the same out."""
        query, key = rotate_halves(self.query(x), turn), rotate_halves(self.key(x), turn)
        return self.out(self.attend(query, key, self.value(x)))  # type: ignore[no-any-return]


class MemoryAttentionGraph(nn.Module):
    """Memory attention as it is exported: (1, hw, dim) image, positions added, and a bank -> (K, hw, dim)."""

    cos: Tensor
    sin: Tensor
    slot_cos: Tensor
    slot_sin: Tensor

    def __init__(
        self,
        attention: MemoryAttention,
        turn: Rotation,
        tokens: BankTokens,
        times: TimePositions,
        lean: bool = False,
        ort_cpu: bool = False,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.register_buffer("cos", turn.cos)
        self.register_buffer("sin", turn.sin)
        self.register_buffer("slot_cos", tokens.rotation.cos)
        self.register_buffer("slot_sin", tokens.rotation.sin)
        layers = attention.ordered_layers
        self.self_attentions = nn.ModuleList(SelfAttention(layer.self_attn, ort_cpu) for layer in layers)
        self.cross_attentions = nn.ModuleList(
            CrossAttention(layer.cross_attn_image, tokens, times, lean, ort_cpu) for layer in layers
        )

    def forward(self, image: Tensor, bank: Bank) -> Tensor:
        """image: (1, hw, dim), sine positions added -> (K, hw, dim)."""
        turn, turn_slot = Rotation(self.cos, self.sin), Rotation(self.slot_cos, self.slot_sin)
        memory, valid = tokens_of(bank)
        x = image
        parts = zip(self.attention.ordered_layers, self.self_attentions, self.cross_attentions, strict=True)
        for layer, attend_self, attend_bank in parts:
            x = x + attend_self(layer.norm1(x), turn)
            x = x + attend_bank(layer.norm2(x), turn, bank, turn_slot, memory, valid)
            x = x + layer.linear2(F.relu(layer.linear1(layer.norm3(x))))
        return self.attention.norm(x)  # type: ignore[no-any-return]


def attend_one_head(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """q: (B, Nq, C), k: (B, Nk, C), v: (B, Nk, D), mask: (B, 1, Nq, Nk), added -> (B, Nq, D)."""
    q, k, v = (part.unsqueeze(1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).squeeze(1)


def in_halves(layer: nn.Linear) -> nn.Linear:
    """The same projection, its outputs in the order of `halves_from_pairs`."""
    ordered = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        ordered.weight.copy_(halves_from_pairs(layer.weight))
        ordered.bias.copy_(halves_from_pairs(layer.bias))
    return ordered


def composed(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Two projections as one: second(first(x))."""
    both = nn.Linear(first.in_features, second.out_features)
    with torch.no_grad():
        weight, bias = second.weight.double(), second.bias.double()
        both.weight.copy_(weight @ first.weight.double())
        both.bias.copy_(weight @ first.bias.double() + bias)
    return both
