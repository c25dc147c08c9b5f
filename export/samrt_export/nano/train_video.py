"""Teaches nano to remember: ``python -m samrt_export.nano.train_video --out nano.safetensors``.

What the image path uses stays as it is; memory attention, memory encoder and the pointers' layers learn. The frozen image
features of a few hundred clips are kept in memory; one new clip replaces the oldest every few steps. Every clip, window and
prompt follows from the step, so a run can be cut and resumed. Less than half an hour on one CPU core.

The mask decoder knows what to do with a mask prompt: it adds the mask's embedding to the image's. So memory attention is
first taught to write just that, the embedding of the true mask, into the image; the mask losses refine it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.memory import CXBlock
from samrt_export.families.sam2 import NANO, Sam2, build
from samrt_export.nano.clips import LENGTH
from samrt_export.nano.tracking import (
    CERTAIN,
    Decoded,
    FrameMaps,
    Remembered,
    RowPrompts,
    condition,
    decode,
    empty_prompts,
    remember,
    remember_mask,
)
from samrt_export.nano.train import (
    LOW,
    MID,
    PromptBatch,
    Targets,
    corrected,
    first_prompts,
    mask_losses,
    save_checkpoint,
)
from samrt_export.nano.windows import CachedClip, ClipPool, Window, sample_window

VIDEO_PARTS = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
)
"""What is trained, by the beginning of its name."""
LEARNING_RATE, WEIGHT_DECAY, EMA, WARMUP = 1e-3, 0.02, 0.995, 100
KINDS, KIND_SHARES = ("click", "box", "mask"), (0.4, 0.2, 0.4)


@dataclass(frozen=True)
class Phase:
    """How training goes until a step."""

    last_step: int
    frames: int
    """Frames of a window."""
    warm: int
    """Frames after the prompted one through which gradients do not flow: only what they leave in memory counts."""
    scattered: float
    """Share of the windows whose frames lie at random distances: objects are gone for long, and return elsewhere."""
    truth: float
    """Share of the frames that are remembered with their true masks."""
    imitation: float
    """Weight of the distance to the true mask's embedding."""


PHASES = (
    Phase(150, 4, 0, 0.0, 0.6, 1.0),
    Phase(450, 6, 0, 0.4, 0.15, 0.3),
    Phase(900, 10, 4, 0.4, 0.0, 0.1),
)
STEPS = PHASES[-1].last_step
SLIVER = 60
"""Visible pixels from which on an object must be found; fewer count in proportion."""


def start_model() -> Sam2:
    """The shipped image weights; what is trained starts near a memory attention that changes nothing."""
    torch.manual_seed(0)
    model = build("nano")
    assert NANO.checkpoint is not None
    shipped = load_file(NANO.checkpoint)
    own = model.state_dict()
    for name in own:
        if not name.startswith(VIDEO_PARTS):
            own[name] = shipped[name].float()
    model.load_state_dict(own)
    model.requires_grad_(False)
    assert model.no_obj_embed_spatial is not None
    with torch.no_grad():
        for table in (model.maskmem_tpos_enc, model.no_obj_ptr, model.no_obj_embed_spatial):
            nn.init.trunc_normal_(table, std=0.02)
        for block in model.memory_encoder.fuser.layers:
            assert isinstance(block, CXBlock)
            block.gamma.fill_(0.1)
        model.mask_downsample.weight.fill_(2 * CERTAIN / 16)  # a mean, as logits
        assert model.mask_downsample.bias is not None
        model.mask_downsample.bias.fill_(-CERTAIN)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(VIDEO_PARTS))
    return model.eval()


def fit_output_norm(model: Sam2, pool: list[CachedClip]) -> None:
    """The last norm's scale and shift such that an unchanged image comes out as it went in, in the least-squares sense."""
    norm = model.memory_attention.norm
    with torch.no_grad():
        embed = torch.cat([clip.maps.embed[::4].float() for clip in pool[:60]]).flatten(0, 1)  # (N, C)
        positions = model.image_position().repeat(len(embed) // model.config.embed_size**2, 1)
        x = F.layer_norm(embed - model.no_mem_embed[0] + positions, embed.shape[1:])
        scale = ((x - x.mean(0)) * (embed - embed.mean(0))).mean(0) / x.var(0, correction=0)
        norm.weight.copy_(scale)
        norm.bias.copy_(embed.mean(0) - scale * x.mean(0))


class Trainer:
    """The model, its optimiser, the averaged weights, and one step of training."""

    def __init__(self) -> None:
        self.model = start_model()
        self.pool = ClipPool(self.model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True
        )
        self.average: dict[str, Tensor] = {}
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """Prompt the first frame of a window, follow the objects through it, learn from every frame."""
        clips = self.pool.at(self.step)
        if self.step == 0:
            fit_output_norm(self.model, clips)
            self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        phase = next(phase for phase in PHASES if self.step < phase.last_step)
        rng = np.random.default_rng((3, self.step))
        window = sample_window(clips, phase.frames, phase.scattered, rng)
        kind = str(rng.choice(KINDS, p=KIND_SHARES))
        figures, losses = self._follow(window, phase, kind, rng)
        self._update(torch.stack(losses).mean())
        return figures

    def _follow(
        self, window: Window, phase: Phase, kind: str, rng: np.random.Generator
    ) -> tuple[dict[str, float], list[Tensor]]:
        """Figures to print, and the losses of the frames."""
        past = [self._prompt(window, kind, rng)]
        losses: list[Tensor] = []
        figures: dict[str, list[float]] = {}
        gap = int(rng.integers(0, LENGTH)) if rng.uniform() < 0.5 else 0
        correct_at = int(rng.integers(1, phase.frames)) if rng.uniform() < 0.12 else 0
        for frame in range(1, phase.frames):
            with torch.set_grad_enabled(frame > phase.warm):
                used = [kept for kept in past if kept.conditioning or rng.uniform() < 0.93 or kept is past[-1]]
                maps, targets = window.maps[frame], window.targets(frame)
                embed = condition(self.model, maps.embed, used, frame, gap)
                decoded = decode(self.model, embed, maps, empty_prompts(len(embed), LOW), multimask=True)
                loss = self._loss(decoded, embed, maps, targets, phase)
                for name, value in figures_of(decoded, targets).items():
                    figures.setdefault(name, []).append(value)
                conditioning = frame == correct_at and bool(targets.present.all())
                if conditioning:
                    decoded = self._correct(decoded, embed, maps, targets, rng)
                    loss = loss + 0.5 * self._loss(decoded, embed, maps, targets, phase)
                if frame > phase.warm:
                    losses.append(loss)
                if frame < phase.frames - 1:
                    past.append(self._remember(frame, conditioning, decoded, maps, targets, phase, rng))
        return {name: _mean(values) for name, values in figures.items()}, losses

    def _prompt(self, window: Window, kind: str, rng: np.random.Generator) -> Remembered:
        """The first frame."""
        model, maps, targets = self.model, window.maps[0], window.targets(0)
        if kind == "mask":
            return remember_mask(model, maps, 0, targets.full[:, None])[1]
        with torch.no_grad():
            prompts = RowPrompts(**vars(first_prompts(kind, targets, rng)))
            decoded = decode(model, maps.embed, maps, prompts, multimask=kind == "click")
        return remember(model, maps, 0, True, decoded.gated(), decoded.score, decoded.token)

    def _correct(
        self, decoded: Decoded, embed: Tensor, maps: FrameMaps, targets: Targets, rng: np.random.Generator
    ) -> Decoded:
        """One click in the deepest error, mostly with the mask itself as a prompt."""
        rows = len(embed)
        no_points = torch.zeros(rows, 0, 2), torch.zeros(rows, 0, dtype=torch.int32)
        unprompted = PromptBatch(*no_points, torch.zeros(rows, 1, LOW, LOW), torch.zeros(rows))
        with torch.no_grad():
            batch = corrected(unprompted, targets, decoded.logits.clamp(-32, 32), rng)
        return decode(self.model, embed, maps, RowPrompts(**vars(batch)), multimask=True)

    def _remember(
        self,
        frame: int,
        conditioning: bool,
        decoded: Decoded,
        maps: FrameMaps,
        targets: Targets,
        phase: Phase,
        rng: np.random.Generator,
    ) -> Remembered:
        """What was decoded, or for a share of the frames the truth."""
        logits, score = decoded.gated(), decoded.score
        if rng.uniform() < phase.truth:
            logits, score = (targets.low - 0.5) * 2 * CERTAIN, (targets.present - 0.5) * 2 * CERTAIN
        return remember(self.model, maps, frame, conditioning, logits, score, decoded.token)

    def _loss(self, decoded: Decoded, embed: Tensor, maps: FrameMaps, targets: Targets, phase: Phase) -> Tensor:
        """Mask losses of the chosen and the best candidate, object score, and the distance to the true mask's embedding."""
        areas = targets.full.flatten(1).sum(1)
        weight = (areas / SLIVER).clamp_max(1)  # (R,)
        losses = mask_losses(decoded.candidates, targets.low.expand_as(decoded.candidates))  # (R, 4)
        chosen = mask_losses(decoded.logits, targets.low)[:, 0]
        masks = weight * (chosen + 0.3 * losses[:, 1:].amin(1) + 0.05 * losses.mean(1))
        certainty = torch.where(areas > 0, weight, 1.0)[:, None]
        there = F.binary_cross_entropy_with_logits(decoded.score, targets.present, certainty)
        encoder = self.model.sam_prompt_encoder
        with torch.no_grad():
            written = encoder.embed_masks((targets.low - 0.5) * 2 * CERTAIN, torch.ones(len(areas)))
            wanted = maps.embed + written - encoder.no_mask_embed.weight
            spread = written.var()
        distance = (embed - wanted).square().mean((1, 2)) / spread
        return masks.mean() + 0.5 * there + phase.imitation * (weight * distance).mean()

    def _update(self, loss: Tensor) -> None:
        """Optimise, and move the averaged weights."""
        rate = min((self.step + 1) / WARMUP, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / STEPS)))
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        decay = min(EMA, self.step / (self.step + 20))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.trained.values()], 1 - decay)
        self.step += 1

    def checkpoint(self) -> dict[str, Tensor]:
        """The averaged weights among the frozen ones."""
        return self.model.state_dict() | self.average

    def save(self, path: Path) -> None:
        """Everything needed to go on."""
        state = {"step": self.step, "trained": {name: p.detach() for name, p in self.trained.items()}}
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "average": self.average}, path)

    def resume(self, path: Path) -> None:
        """Go on from a saved run."""
        state = torch.load(path, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        with torch.no_grad():
            for name, value in state["trained"].items():
                self.trained[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def figures_of(decoded: Decoded, targets: Targets) -> dict[str, float]:
    """Mean IoU where the object is there, and the share of frames on which its presence is told rightly."""
    with torch.no_grad():
        seen = F.interpolate(decoded.gated(), size=MID, mode="bilinear", align_corners=False) > 0
        either = (seen | (targets.mid > 0)).sum((1, 2, 3))
        iou = (seen & (targets.mid > 0)).sum((1, 2, 3)) / either.clamp_min(1)
        there = targets.mid.flatten(1).any(1)
        right = (decoded.score[:, 0] > 0) == there
        share = float(right[~there].float().mean()) if bool((~there).any()) else float("nan")
        return {"iou": float(iou[there].mean()), "absent": share, "present": float(right[there].float().mean())}


def _mean(values: list[float]) -> float:
    """Of those that are numbers; nan without any."""
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def run(trainer: Trainer, state: Path, out: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Train to the end, saving as it goes; yields what there is to print."""
    while trainer.step < STEPS:
        yield trainer.step, trainer.train_step()
        if trainer.step % 50 == 0 or trainer.step == STEPS:
            trainer.save(state)
            save_checkpoint(trainer.checkpoint(), out)


def main() -> None:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument(
        "--run", type=Path, default=Path("nano-video-run.pt"), help="saved every 50 steps, resumed if there"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer()
    if arguments.run.exists():
        trainer.resume(arguments.run)
    recent: dict[str, list[float]] = {}
    started = time.perf_counter()
    for step, figures in run(trainer, arguments.run, arguments.out):
        for name, value in figures.items():
            recent.setdefault(name, []).append(value)
        if (step + 1) % 25 == 0:
            means = "  ".join(f"{name} {_mean(values):.3f}" for name, values in sorted(recent.items()))
            print(f"{step + 1:6d}  {(time.perf_counter() - started) / 25:.2f} s/step  {means}", flush=True)
            recent, started = {}, time.perf_counter()


if __name__ == "__main__":
    main()
