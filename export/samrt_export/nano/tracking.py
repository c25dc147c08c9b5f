"""Tracking in PyTorch, one row per object: what training differentiates, and a second opinion on the runtime's tracker.

The rules are those of the official predictor (sam2/modeling/sam2_base.py). Rows may belong to different pictures, so that one
step can learn from several clips; all rows were prompted, and remember, on the same frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samrt_export.blocks.memory import mask_for_memory
from samrt_export.blocks.positions import Rotation, join_rotations, no_rotation
from samrt_export.families.sam2 import Sam2

RECENT, POINTERS = 6, 16
"""Frames remembered besides the prompted ones; object pointers looked at."""
CONDITIONING_TIME = 6
"""Row of the temporal table for prompted frames, of whatever age."""
ABSENT_LOGIT = -1024.0
CERTAIN = 10.0
"""Logit of a pixel that a mask prompt declares the object's; of the others the negative."""
STABLE, STABILITY_DELTA = 0.98, 0.05


class FrameMaps(NamedTuple):
    """What the image encoder made of R pictures: (R, hw, C), (R, hw, 16, C / 8), (R, hw, 4, C / 4)."""

    embed: Tensor
    fine: Tensor
    middle: Tensor


class RowPrompts(NamedTuple):
    """coords (R, N, 2) model pixels, labels (R, N) int32, mask (R, 1, S/4, S/4) logits, has_mask (R,) 0 or 1."""

    coords: Tensor
    labels: Tensor
    mask: Tensor
    has_mask: Tensor


class Decoded(NamedTuple):
    """All candidates (R, 4, h, w), their predicted IoU (R, 4), score (R, 1), the chosen logits (R, 1, h, w) and token (R, C)."""

    candidates: Tensor
    iou: Tensor
    score: Tensor
    logits: Tensor
    token: Tensor

    def gated(self) -> Tensor:
        """The chosen logits; the absent one's everywhere where the object is not there."""
        return torch.where(self.score[:, :, None, None] > 0, self.logits, ABSENT_LOGIT)


@dataclass(frozen=True)
class Remembered:
    """What one frame left: memory (R, hw, memory_dim), pointer (R, C); frames are counted in the direction of tracking."""

    frame: int
    conditioning: bool
    memory: Tensor
    pointer: Tensor


def empty_prompts(rows: int, mask_side: int) -> RowPrompts:
    """What a frame without prompts is decoded with: one point that is none."""
    return RowPrompts(
        torch.zeros(rows, 1, 2),
        torch.full((rows, 1), -1, dtype=torch.int32),
        torch.zeros(rows, 1, mask_side, mask_side),
        torch.zeros(rows),
    )


def decode(model: Sam2, embed: Tensor, maps: FrameMaps, prompts: RowPrompts, multimask: bool) -> Decoded:
    """embed: (R, hw, C), conditioned or not. With ``multimask`` the best of three, else the single mask if it is stable."""
    coords, labels = F.pad(prompts.coords, (0, 0, 0, 1)), F.pad(prompts.labels, (0, 1), value=-1)
    encoder = model.sam_prompt_encoder
    sparse, dense = encoder.embed_points(coords, labels), encoder.embed_masks(prompts.mask, prompts.has_mask)
    hw = (model.config.embed_size,) * 2
    masks, iou, score, tokens = model.sam_mask_decoder(
        embed + dense, encoder.dense_position(), sparse, (maps.fine, maps.middle), hw
    )
    rows = torch.arange(len(masks))
    best = 1 + iou[:, 1:].argmax(1)
    if multimask:
        return Decoded(masks, iou, score, masks[rows, best][:, None], tokens[rows, best])
    inner, outer = ((masks[:, 0] > delta).sum((1, 2)) for delta in (STABILITY_DELTA, -STABILITY_DELTA))
    stable = inner >= STABLE * outer
    return Decoded(masks, iou, score, masks[rows, best * ~stable][:, None], tokens[:, 0])


def condition(model: Sam2, embed: Tensor, past: list[Remembered], now: int, gap: int = 0) -> Tensor:
    """embed: (R, hw, C) as the image encoder leaves it -> conditioned (R, hw, C), in upstream's arrangement.

    past: every frame that may be used; now: the frame to decode; gap: added to the age of conditioning frames
    """
    slots = [kept for kept in past if kept.conditioning]
    recent = [kept for kept in past if not kept.conditioning and now - kept.frame < POINTERS]
    ages = [CONDITIONING_TIME] * len(slots) + [now - kept.frame - 1 for kept in recent if now - kept.frame <= RECENT]
    distances = [float(now - kept.frame + gap) for kept in slots] + [float(now - kept.frame) for kept in recent]
    pointers = torch.stack([kept.pointer for kept in [*slots, *recent]], dim=1)  # (R, P, C)
    slots += [kept for kept in recent if now - kept.frame <= RECENT]
    memory = torch.stack([kept.memory for kept in slots], dim=1)  # (R, M, hw, memory_dim)
    rows, count, _, width = memory.shape
    dim = embed.shape[-1]
    tokens, times = model.bank_tokens(), model.time_positions()
    split = dim // width
    slot_position = tokens.position + times.of_slots(torch.tensor(ages))[:, None]  # (M, hw, memory_dim)
    pointer_position = times.of_pointers(torch.tensor(distances) / (POINTERS - 1), dim)  # (P, memory_dim)
    assert pointer_position is not None
    position = torch.cat((slot_position.flatten(0, 1), pointer_position.repeat_interleave(split, dim=0)))
    everything = torch.cat((memory.flatten(1, 2), pointers.unflatten(-1, (split, width)).flatten(1, 2)), dim=1)
    turns = Rotation(*(table.repeat(count, 1) for table in tokens.rotation))
    turns = join_rotations(turns, no_rotation(pointers.shape[1] * split, dim))
    image = embed - model.no_mem_embed + model.image_position()
    return model.memory_attention(  # type: ignore[no-any-return]
        image, everything, position.expand(rows, -1, -1), model.rotation(), turns
    )


def remember(
    model: Sam2, maps: FrameMaps, frame: int, conditioning: bool, logits: Tensor, score: Tensor, token: Tensor
) -> Remembered:
    """logits: (R, 1, h, w), gated; score: (R, 1); token: (R, C). Prompted masks are remembered as certain."""
    side = model.config.embed_size
    image = (maps.embed - model.no_mem_embed).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    certain = torch.full((len(logits),), float(conditioning))
    mask = mask_for_memory(logits, certain, (model.config.image_size,) * 2)
    memory = model.memory_encoder(image, mask).flatten(2).transpose(1, 2)
    assert model.no_obj_embed_spatial is not None
    memory = memory + (score <= 0).to(memory.dtype)[:, None] * model.no_obj_embed_spatial
    pointer = torch.where(score > 0, model.obj_ptr_proj(token), model.no_obj_ptr)
    return Remembered(frame, conditioning, memory, pointer)


def remember_mask(model: Sam2, maps: FrameMaps, frame: int, mask: Tensor) -> tuple[Tensor, Remembered]:
    """A mask prompt (R, 1, S, S), 0 or 1: its low-res logits (R, 1, S/4, S/4), and what the frame leaves."""
    logits = F.interpolate(
        mask * 2 * CERTAIN - CERTAIN, scale_factor=0.25, mode="bilinear", align_corners=False, antialias=True
    )
    rows = len(mask)
    prompts = empty_prompts(rows, logits.shape[-1])._replace(
        mask=model.mask_downsample(mask), has_mask=torch.ones(rows)
    )
    decoded = decode(model, maps.embed, maps, prompts, multimask=False)
    there = mask.flatten(1).any(1, keepdim=True) & (decoded.score > 0)
    score = torch.where(there, CERTAIN, -CERTAIN)
    return logits, remember(model, maps, frame, True, logits, score, decoded.token)
