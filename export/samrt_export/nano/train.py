"""Trains nano from nothing: ``python -m samrt_export.nano.train --out nano.safetensors``.

Every picture, prompt and augmentation follows from the step and the worker's number, so a run can be cut and resumed and
comes to the same place (up to the machine's floating-point order). About two hours on four CPU cores. One-threaded workers
that average their gradients use the cores better than one process with four threads: the tensors are small.

What makes a model this small learn at all is an auxiliary loss that asks the finest feature map to tell instances apart:
with the mask losses alone it stays near zero for thousands of steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn as spawn_workers
from torch.nn import functional as F

from samrt_export.blocks.hiera import Hiera
from samrt_export.families.sam2 import build
from samrt_export.nano.scenes import SIZE, Frame, scene_from_seed

STEPS, WARMUP, DECAY = 8_000, 300, 2_500
"""Optimiser steps: all of them; of which the first rise, the last fall to zero."""
WORKERS, PICTURES, PROMPTS = 4, 2, 5
"""Worker processes, pictures per worker and step, prompts per picture."""
POOL = 6_000
LEARNING_RATE, WEIGHT_DECAY, EMA = 1e-3, 0.02, 0.998
LOW, MID = 64, 128
"""Sides at which masks meet the truth: for the losses (the model's low-res logits), and for the IoU the head must predict."""
KINDS = ("click", "box", "both", "mask")


@dataclass(frozen=True)
class Phase:
    """Shares of the steps that begin with each of KINDS, and that then make 0, 1, 2, 3 and 4 corrective clicks."""

    first_step: int
    kinds: tuple[float, ...]
    corrections: tuple[float, ...]


PHASES = (
    Phase(0, (0.5, 0.33, 0.07, 0.1), (1, 0, 0, 0, 0)),  # nothing worth correcting yet
    Phase(1_000, (0.5, 0.33, 0.07, 0.1), (0.45, 0.25, 0.15, 0.05, 0.1)),
    Phase(5_000, (0.35, 0.45, 0.08, 0.12), (0.45, 0.25, 0.12, 0.08, 0.1)),  # clicks were good by then, boxes lagged
)
ABSENT_SHARE = 0.08
"""Share of the clicks that hit the background: the object score must say so."""


@dataclass(frozen=True)
class Targets:
    """The truth of P prompts. Where ``present`` is 0 the masks are the background, which only says where to click."""

    full: Tensor  # (P, S, S) 0 or 1
    low: Tensor  # (P, 1, LOW, LOW) 0..1, share of the area
    mid: Tensor  # (P, 1, MID, MID) 0 or 1
    present: Tensor  # (P, 1) 0 or 1


@dataclass(frozen=True)
class PromptBatch:
    """coords (P, N, 2) model pixels, labels (P, N) int32, mask (P, 1, LOW, LOW) logits, has_mask (P,)."""

    coords: Tensor
    labels: Tensor
    mask: Tensor
    has_mask: Tensor


def draw(index: int) -> Frame:
    """Picture ``index`` of the pool: its own scene, at some moment of its motion."""
    return scene_from_seed(index).render(time=(index * 0.37) % 6.0)


def draw_pool(rank: int) -> list[Frame]:
    """One worker's share of the training pictures; those with nothing to ask about are left out."""
    return [frame for frame in map(draw, range(rank, POOL, WORKERS)) if frame.visible]


def sample_batch(pool: Sequence[Frame], rng: np.random.Generator, absent_share: float) -> tuple[Tensor, Targets]:
    """Augmented pictures (PICTURES, S, S, 3) float 0..255 and the targets of PROMPTS prompts for each."""
    images, masks, present = [], [], []
    for frame in (pool[i] for i in rng.integers(len(pool), size=PICTURES)):
        turn, mirror = int(rng.integers(4)), -1 if rng.integers(2) else 1
        image = np.rot90(frame.image, turn)[:, ::mirror, rng.permutation(3)]
        labels = np.rot90(frame.labels, turn)[:, ::mirror]
        images.append(np.clip(image * rng.uniform(0.75, 1.25) + rng.uniform(-25, 25), 0, 255).astype(np.float32))
        chosen = rng.choice(frame.visible, size=PROMPTS)
        if (labels == 0).any():
            chosen[rng.uniform(size=PROMPTS) < absent_share] = 0
        masks.append(labels[None] == chosen[:, None, None])
        present.append(chosen > 0)
    full = torch.from_numpy(np.concatenate(masks)).float()  # (P, S, S)
    low, mid = (F.adaptive_avg_pool2d(full[:, None], side) for side in (LOW, MID))
    present_column = torch.from_numpy(np.concatenate(present)).float()[:, None]
    return torch.from_numpy(np.stack(images)), Targets(full, low, (mid > 0.5).float(), present_column)


def random_pixels(region: Tensor, rng: np.random.Generator, inward: bool) -> Tensor:
    """region: (P, h, w) weights -> (P, 2) xy of one pixel each, drawn evenly or towards the middle of the region."""
    if inward:
        depth = F.avg_pool2d(region[:, None], 9, stride=1, padding=4)[:, 0] * region
        region = (depth / depth.flatten(1).amax(1)[:, None, None].clamp_min(1e-6)) ** 8
    cumulative = region.flatten(1).double().cumsum(1)
    picks = torch.from_numpy(rng.uniform(size=(len(region), 1))) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, picks, right=True).clamp_max(cumulative.shape[1] - 1)[:, 0]
    side = region.shape[-1]
    return torch.stack((index % side, index // side), dim=1).float()


def input_from_mid(xy: Tensor) -> Tensor:
    """Pixel positions on the MID grid -> on the picture's, centre to centre."""
    return (xy + 0.5) * (SIZE / MID) - 0.5


def shaken_boxes(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """masks: (P, S, S) -> (P, 2, 2) box corners, each moved by a few per cent of the box."""
    side = masks.shape[-1]
    axes = []
    for used in (masks.amax(1), masks.amax(2)):  # columns in use, rows in use
        axes.append(torch.stack((used.argmax(1), side - 1 - used.flip(1).argmax(1)), dim=1))
    boxes = torch.stack(axes, dim=2).float()  # (P, corner, xy)
    shake = torch.from_numpy(rng.normal(0, 0.03, boxes.shape).clip(-0.1, 0.1)).float()
    return (boxes + shake * (boxes[:, 1:] - boxes[:, :1])).clamp(0, side - 1)


def first_prompts(kind: str, targets: Targets, rng: np.random.Generator) -> PromptBatch:
    """One kind of prompt for the whole step, so that no padding is needed."""
    count = len(targets.full)
    no_mask, none = torch.zeros(count, 1, LOW, LOW), torch.zeros(count)
    clicks = input_from_mid(random_pixels(targets.mid[:, 0], rng, inward=bool(rng.uniform() < 0.6)))[
        :, None
    ]  # (P, 1, 2)
    click_labels = torch.ones(count, 1, dtype=torch.int32)
    box_labels = torch.tensor([[2, 3]], dtype=torch.int32).expand(count, 2)
    if kind == "click":
        return PromptBatch(clicks, click_labels, no_mask, none)
    if kind == "box":
        return PromptBatch(shaken_boxes(targets.full, rng), box_labels, no_mask, none)
    if kind == "both":
        coords = torch.cat((shaken_boxes(targets.full, rng), clicks), dim=1)
        return PromptBatch(coords, torch.cat((box_labels, click_labels), dim=1), no_mask, none)
    rough = torch.roll(targets.low, shifts=tuple(rng.integers(-3, 4, 2).tolist()), dims=(2, 3))
    return PromptBatch(clicks[:, :0], click_labels[:, :0], (rough - 0.5) * float(rng.uniform(8, 24)), none + 1)


def corrected(prompts: PromptBatch, targets: Targets, logits: Tensor, rng: np.random.Generator) -> PromptBatch:
    """Add a click in the deepest error of ``logits`` (P, 1, LOW, LOW), and mostly the mask itself as a prompt."""
    predicted = (F.interpolate(logits, size=MID, mode="bilinear", align_corners=False) > 0).float()
    missing, spilled = targets.mid * (1 - predicted), (1 - targets.mid) * predicted
    depths = [F.avg_pool2d(error, 11, stride=1, padding=5).flatten(1).amax(1) for error in (missing, spilled)]
    positive = depths[0] >= depths[1]
    region = torch.where(positive[:, None, None, None], missing, spilled)[:, 0]
    region = torch.where(
        region.flatten(1).any(1)[:, None, None], region, targets.mid[:, 0]
    )  # a perfect mask: click inside
    click = input_from_mid(random_pixels(region, rng, inward=bool(rng.uniform() < 0.8)))
    return PromptBatch(
        torch.cat((prompts.coords, click[:, None]), dim=1),
        torch.cat((prompts.labels, positive.int()[:, None]), dim=1),
        logits.clamp(-32, 32),
        torch.full((len(logits),), float(rng.uniform() < 0.75)),
    )


class Trainer:
    """The model, its optimiser, the averaged weights, and one step of training."""

    def __init__(self, pool: Sequence[Frame], rank: int) -> None:
        torch.manual_seed(0)
        self.pool = pool
        self.rank = rank
        self.model = build("nano")
        trunk = self.model.image_encoder.trunk
        assert isinstance(trunk, Hiera)
        for table in (trunk.pos_embed, trunk.pos_embed_window, self.model.no_mem_embed, self.model.maskmem_tpos_enc):
            nn.init.trunc_normal_(table, std=0.02)
        self.instance_head = nn.Conv2d(self.model.config.d_model, 16, kernel_size=1)
        self.parameters = [*self.model.parameters(), *self.instance_head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """Encode the pictures once, then prompt, correct, and learn from every round. Returns figures to print."""
        plan = np.random.default_rng((0, self.step))  # the same for every worker
        phase = [phase for phase in PHASES if phase.first_step <= self.step][-1]
        kind = str(plan.choice(KINDS, p=phase.kinds))
        rounds = 1 + int(plan.choice(len(phase.corrections), p=phase.corrections))
        rng = np.random.default_rng((1 + self.rank, self.step))
        image, targets = sample_batch(self.pool, rng, ABSENT_SHARE if kind == "click" else 0.0)
        features, instance_loss = self._encode(image, targets, rng)
        prompts, loss = first_prompts(kind, targets, rng), instance_loss
        figures = {"instance": float(instance_loss.detach())}
        for index in range(rounds):
            logits, iou, round_loss = self._decode(features, prompts, targets)
            loss = loss + round_loss / rounds
            figures[f"{kind}+{index}"] = iou
            if index + 1 < rounds:
                prompts = corrected(prompts, targets, logits.detach(), rng)
        self._update(loss)
        return figures

    def _encode(self, image: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
        """The decoder's three maps, one row per prompt, and the instance loss on the finest of them."""
        model = self.model
        fine, middle, coarse = model.image_encoder(model.normalize(image))
        maps = model.features(fine, middle, coarse)
        embedding = F.normalize(self.instance_head(fine.permute(0, 3, 1, 2)), dim=1).repeat_interleave(
            PROMPTS, dim=0
        )  # (P, 16, LOW, LOW)
        pixel = (random_pixels(targets.mid[:, 0], rng, inward=False) * LOW / MID).long()
        clicked = embedding[torch.arange(len(pixel)), :, pixel[:, 1], pixel[:, 0]]  # (P, 16)
        similarity = (embedding * clicked[:, :, None, None]).sum(1, keepdim=True) * 12 - 6
        return tuple(m.repeat_interleave(PROMPTS, dim=0) for m in maps), mask_losses(similarity, targets.low).mean()

    def _decode(
        self, features: tuple[Tensor, ...], prompts: PromptBatch, targets: Targets
    ) -> tuple[Tensor, float, Tensor]:
        """One round: the mask a user would see (P, 1, LOW, LOW), its mean IoU, the loss."""
        model, (image, fine, middle) = self.model, features
        coords, labels = prompts.coords, prompts.labels
        if coords.shape[1]:  # the padding point that the predictor appends
            coords, labels = F.pad(coords, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        sparse = model.sam_prompt_encoder.embed_points(coords, labels)
        dense = model.sam_prompt_encoder.embed_masks(prompts.mask, prompts.has_mask)
        position = model.sam_prompt_encoder.dense_position()
        hw = (model.config.embed_size,) * 2
        masks, scores, object_score, _ = model.sam_mask_decoder(image + dense, position, sparse, (fine, middle), hw)

        present = targets.present
        losses = mask_losses(masks, targets.low.expand_as(masks)) * present  # (P, 4)
        with torch.no_grad():
            seen = F.interpolate(masks, size=MID, mode="bilinear", align_corners=False) > 0
            iou = (seen * targets.mid).sum((2, 3)) / (seen + targets.mid).clamp_max(1).sum((2, 3)).clamp_min(
                1
            )  # (P, 4)
        best_of_three = losses[:, 1:].amin(1) + 0.05 * losses[:, 1:].mean(1)
        score_loss = ((scores - iou).abs() * present).mean()
        object_loss = F.binary_cross_entropy_with_logits(object_score, present)
        loss = losses[:, 0].mean() + best_of_three.mean() + score_loss + 0.2 * object_loss
        shown = 0 if coords.shape[1] != 2 or int(labels[0, 0]) != 1 else 1 + scores[:, 1:].argmax(1)
        rows = torch.arange(len(masks))
        return masks[rows, shown][:, None], float(iou[rows, shown][present[:, 0] > 0].mean()), loss

    def _update(self, loss: Tensor) -> None:
        """Optimise, and move the averaged weights."""
        rate = min((self.step + 1) / WARMUP, (STEPS - self.step) / DECAY, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(EMA, self.step / (self.step + 100))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.state_dict().values()), 1 - decay)
        self.step += 1

    def _average_gradients(self) -> None:
        """The mean over the workers, in one exchange."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= WORKERS
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self, path: Path) -> None:
        """Everything needed to go on."""
        state = {"step": self.step, "model": self.model.state_dict(), "head": self.instance_head.state_dict()}
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "average": self.average}, path)

    def resume(self, path: Path) -> None:
        """Go on from a saved run."""
        state = torch.load(path, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        self.model.load_state_dict(state["model"])
        self.instance_head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """logits, target: (P, M, h, w), target 0..1 -> (P, M): cross-entropy (three times) plus dice."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    probability = logits.sigmoid()
    overlap, total = (probability * target).sum((2, 3)), (probability + target).sum((2, 3))
    return 3 * cross_entropy + 1 - (2 * overlap + 1) / (total + 1)


def save_checkpoint(average: dict[str, Tensor], path: Path) -> None:
    """Official parameter names, fp16 storage."""
    save_file({name: value.half().contiguous() for name, value in average.items()}, path)


def work(rank: int, out: Path, run: Path, rendezvous: str) -> None:
    """One worker's whole life; the first one also prints and saves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORKERS)
    trainer = Trainer(draw_pool(rank), rank)
    if run.exists():
        trainer.resume(run)
    dist.barrier()
    recent: dict[str, list[float]] = {}
    started = time.perf_counter()
    while trainer.step < STEPS:
        for name, value in trainer.train_step().items():
            recent.setdefault(name, []).append(value)
        if rank > 0:
            continue
        if trainer.step % 50 == 0:
            figures = "  ".join(f"{name} {np.nanmean(values):.3f}" for name, values in sorted(recent.items()))
            print(f"{trainer.step:6d}  {(time.perf_counter() - started) / 50:.2f} s/step  {figures}", flush=True)
            recent, started = {}, time.perf_counter()
        if trainer.step % 250 == 0 or trainer.step == STEPS:
            trainer.save(run)
            save_checkpoint(trainer.average, out)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--run", type=Path, default=Path("nano-run.pt"), help="saved every 250 steps, resumed if there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn_workers(work, (arguments.out, arguments.run, f"{folder}/rendezvous"), nprocs=WORKERS)


if __name__ == "__main__":
    main()
