"""Runs one stage of training: warm-up, decay, averaged weights, checkpoints from which a cut run goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]

WARMUP, EMA, WEIGHT_DECAY = 40, 0.995, 0.01
SAVE_EVERY, PRINT_EVERY = 100, 50

Part = TypeVar("Part", bound=nn.Module)


def part_of(module: nn.Module, kind: type[Part]) -> Part:
    """A model's part as what it is."""
    assert isinstance(module, kind)
    return module


@dataclass(frozen=True)
class Stage:
    """What is learned, and from what.

    modules: under the names that their weights have in the checkpoint. losses: of one step, drawn from the generator.
    """

    name: str
    modules: dict[str, nn.Module]
    losses: Callable[[np.random.Generator, int], Losses]
    steps: int
    learning_rate: float

    def named_parameters(self) -> dict[str, Tensor]:
        """Every tensor that is learned; modules that share one name it once."""
        tree = nn.ModuleDict({name.replace(".", "/"): module for name, module in self.modules.items()})
        return {name.replace("/", "."): value for name, value in tree.named_parameters()}


def run_stage(stage: Stage, folder: Path, seconds: float = math.inf) -> bool:
    """Train until the stage's last step, or for some seconds of processor time. Whether the stage is complete.

    Everything follows from the step's number, so a run that was cut goes on where its last checkpoint was.
    """
    path, parameters = folder / f"{stage.name}.pt", stage.named_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True)
    average = {name: value.detach().clone() for name, value in parameters.items()}
    step = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        step, average = state["step"], state["average"]
        optimizer.load_state_dict(state["optimizer"])
        for name, value in parameters.items():
            value.data.copy_(state["live"][name])
    started, recent = time.process_time(), dict[str, list[float]]()
    while step < stage.steps and time.process_time() - started < seconds:
        rate = min((step + 1) / WARMUP, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / stage.steps)))
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * rate
        losses = stage.losses(np.random.default_rng((1, step)), step)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(EMA, step / (step + 50))
        torch._foreach_lerp_(list(average.values()), [value.data for value in parameters.values()], 1 - decay)
        step += 1
        for name, loss in losses.items():
            recent.setdefault(name, []).append(loss.item())
        if step % PRINT_EVERY == 0:
            figures = "  ".join(f"{name} {np.mean(values):.4f}" for name, values in recent.items())
            print(f"{stage.name} {step:6d}  {time.process_time() - started:6.0f} s  {figures}", flush=True)
            recent.clear()
        if step % SAVE_EVERY == 0:
            _save(path, step, parameters, average, optimizer)
    _save(path, step, parameters, average, optimizer)
    return step >= stage.steps


def _save(
    path: Path, step: int, live: dict[str, Tensor], average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    state = {"step": step, "live": {name: value.data for name, value in live.items()}, "average": average}
    partial = path.with_suffix(".partial")
    torch.save(state | {"optimizer": optimizer.state_dict()}, partial)
    os.replace(partial, path)


def averaged_weights(stage: str, folder: Path) -> dict[str, Tensor]:
    """The averaged weights of the stage of this name, if it has run, by their names in the checkpoint; empty where it has not."""
    path = folder / f"{stage}.pt"
    if not path.exists():
        return {}
    average: dict[str, Tensor] = torch.load(path, weights_only=True)["average"]
    return average
