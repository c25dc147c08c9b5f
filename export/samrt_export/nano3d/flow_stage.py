"""The flows' lesson: from noise to the latents of the solid that four views and a pointmap show, and to its pose.

Both flows learn in every step, and with them the encoder of views and the fusers of their conditions: they are all small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt.sparse import SparseMaps
from samrt_export.blocks.point_patch import PointPatch
from samrt_export.blocks.token_fuser import TokenFuser
from samrt_export.families.sam3d.condition import KINDS, DinoGraph
from samrt_export.families.sam3d.latent import FlowMaps
from samrt_export.families.sam3d.model import Sam3d
from samrt_export.nano3d.config import CONFIG
from samrt_export.nano3d.examples import POSE_CHANNELS, Example
from samrt_export.nano3d.training import Losses, Stage

BATCH, LATENT_BATCH = 6, 2
"""Examples in a step: for the structure, and how many of them also for the latent."""
UNCONDITIONED = 0.1
"""Share of examples whose condition is left out, for guidance."""
LONG_STEP_SHARE = 0.25
"""Share of steps in which the structure flow is told that steps are long: its paths are straight enough for few of them."""
FLOW_MAPS = ("neighbours", "coarse_neighbours", "children", "children_inverse", "parents", "coarse_coords")


@dataclass(frozen=True)
class Batch:
    """pixels: (B, 4, S, S, 3), 0..1; points: (B, 2, P, P, 3); valid: (B, 2, P, P); structure: (B, T, 8); pose: (B, 13)."""

    pixels: Tensor
    points: Tensor
    valid: Tensor
    structure: Tensor
    pose: Tensor


def make_batch(examples: Sequence[Example]) -> Batch:
    """Side by side, in float32."""
    columns = (np.stack([getattr(e, name) for e in examples]).astype(np.float32) for name in vars_of_batch())
    pixels, points, valid, structure, pose = map(torch.from_numpy, columns)
    return Batch(pixels / 255, points, valid, structure, pose)


def vars_of_batch() -> tuple[str, ...]:
    """The columns of a `Batch`, which are those of an `Example` too."""
    return tuple(Batch.__dataclass_fields__)


class Conditions:
    """The conditions of a batch, as the graphs ``dino``, ``ss_cond`` and ``slat_cond`` make them of one picture."""

    def __init__(self, model: Sam3d) -> None:
        self._ss, self._slat = model.ss_generator.condition_embedder, model.slat_generator.condition_embedder
        self._dino = DinoGraph(self._ss, self._slat)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, ss tokens, dim), (B, slat tokens, dim)."""
        count = len(batch.pixels)
        by_kind = batch.pixels.unflatten(1, (KINDS, 2)).transpose(0, 1).flatten(0, 2)  # (kinds * B * 2, S, S, 3)
        encoder = self._dino.encoders[0]
        pictures = ((by_kind - self._dino.mean) / self._dino.std).permute(0, 3, 1, 2)
        tokens = encoder(pictures)
        normed = encoder.normed(tokens)  # type: ignore[operator]
        reader = self._ss.module_list[KINDS]
        assert isinstance(reader, PointPatch)
        points = reader(batch.points.flatten(0, 1), batch.valid.flatten(0, 1), whole_block=False)
        latent = F.layer_norm(tokens, (tokens.shape[-1],), eps=1e-5)
        ss = _fuse(self._ss, [*normed.chunk(KINDS), points], count)
        return ss, _fuse(self._slat, list(latent.chunk(KINDS)), count)


def _fuse(fuser: TokenFuser, tokens: Sequence[Tensor], count: int) -> Tensor:
    """tokens: of each encoder (B * 2, N, width), cropped and whole -> (B, all tokens, dim): `TokenFuser.fuse` of a batch."""
    parts = []
    for project, views in zip(fuser.projection_nets, tokens, strict=True):
        fused = project(views).unflatten(0, (count, 2)) + fuser.idx_emb[:2].unsqueeze(1)
        parts.append(fused.flatten(1, 2))
    return torch.cat(parts, dim=1)


def flow_stage(name: str, model: Sam3d, examples: Sequence[Example], steps: int, rate: float) -> Stage:
    """Both generators, on these examples."""
    conditions = Conditions(model)

    def losses(rng: np.random.Generator, step: int) -> Losses:
        chosen = [examples[i] for i in rng.integers(len(examples), size=BATCH)]
        batch = make_batch(chosen)
        ss, slat = conditions(batch)
        keep = torch.from_numpy(rng.uniform(size=BATCH) >= UNCONDITIONED).float()[:, None, None]
        ss, slat = ss * keep, slat * keep
        latent_loss = [_latent_loss(model, e, slat[i : i + 1], rng) for i, e in enumerate(chosen[:LATENT_BATCH])]
        return _structure_losses(model, batch, ss, rng) | {"latent": torch.stack(latent_loss).mean()}

    modules: dict[str, nn.Module] = {"ss_generator": model.ss_generator, "slat_generator": model.slat_generator}
    return Stage(name, modules, losses, steps, rate)


def _normal(rng: np.random.Generator, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.standard_normal(like.shape, np.float32))


def _times(rng: np.random.Generator, count: int) -> Tensor:
    """(B,) between noise, 0, and data, 1; more of them in the middle, where most is decided."""
    return torch.from_numpy((1 / (1 + np.exp(-rng.normal(0, 1.2, count)))).astype(np.float32))


def _structure_losses(model: Sam3d, batch: Batch, condition: Tensor, rng: np.random.Generator) -> Losses:
    """Squared errors of the velocities of the shape and of the pose."""
    count = len(condition)
    data = [batch.structure, *(part.unsqueeze(1) for part in batch.pose.split(POSE_CHANNELS, dim=1))]
    noise = [_normal(rng, part) for part in data]
    time = _times(rng, count)
    t = time[:, None, None]
    mixed = [(1 - t) * start + t * end for start, end in zip(noise, data, strict=True)]
    step = torch.full((count,), 0.25 if rng.uniform() < LONG_STEP_SHARE else 0.0)
    scale = CONFIG.structure_sampling.time_scale
    made = model.ss_generator.backbone(tuple(mixed), time * scale, step * scale, condition)
    errors = [(v - (end - start)).square() for v, start, end in zip(made, noise, data, strict=True)]
    return {"structure": errors[0].mean(), "pose": 0.3 * torch.cat(errors[1:], dim=2).mean()}


def _latent_loss(model: Sam3d, example: Example, condition: Tensor, rng: np.random.Generator) -> Tensor:
    """The same for the latent of one example's voxels."""
    maps = SparseMaps.from_coords(example.coords.astype(np.int32), grid=CONFIG.grid)
    data = torch.from_numpy(example.latent.astype(np.float32))
    noise, time = _normal(rng, data), _times(rng, 1)
    tensors = FlowMaps(*(torch.tensor(value) for value in maps.feeds(FLOW_MAPS).values()))
    mixed = (1 - time) * noise + time * data
    made = model.slat_generator.backbone(mixed, time * CONFIG.latent_sampling.time_scale, condition, tensors)
    return F.mse_loss(made, data - noise)
