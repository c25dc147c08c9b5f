"""Sampling a rectified flow: Euler steps from noise at t = 0 to data at t = 1, with classifier-free guidance.

The schedule is u = i / steps, t = u / (1 + (rescale_t - 1) (1 - u)). Where guidance is on, a velocity is
(1 + s) conditioned - s unconditioned, in every modality. The unconditioned one is of a condition of zeros; without a norm on
the keys all of them are then alike, and a token or two of zeros give what thousands do, in half the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samrt.numbers import FlowNumbers
from samrt_engines.errors import InputError

Float32Array = NDArray[np.float32]
State = Mapping[str, Float32Array]
"""Modality -> its sample."""

FEW_STEPS = 4
"""Steps of a flow that was trained for few long ones, where the caller does not say."""
MOST_STEPS = 1000


class Velocity(Protocol):
    """Asks the graph: which way every modality moves."""

    def __call__(self, state: State, *, time: float, step: float, conditioned: bool) -> State:
        """time, step: as the graph takes them, times `time_scale`"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a flow is evaluated. times: 0 to 1, one more than there are steps; step: what the graph is told of their length."""

    times: tuple[float, ...]
    guided: tuple[bool, ...]  # of each step
    guidance: float
    time_scale: float
    step: float

    @property
    def runs(self) -> int:
        """How often the graph runs."""
        return len(self.guided) + sum(self.guided)


def plan_schedule(numbers: FlowNumbers, *, steps: int | None = None, few_steps: bool = False) -> Schedule:
    """The schedule of a flow.

    steps: None is the model's own; with `few_steps`, of a flow that was trained for it, 4
    few_steps: no guidance; a flow that was trained for it is told how long its steps are
    Raises InputError for a number of steps out of range.
    """
    shortcut = few_steps and numbers.shortcut
    count = steps if steps is not None else FEW_STEPS if shortcut else numbers.steps
    if not 1 <= count <= MOST_STEPS:
        raise InputError("the number of steps is out of range", got=str(count), expected=f"1 to {MOST_STEPS}")
    times = tuple(i / count / (1 + (numbers.rescale_t - 1) * (1 - i / count)) for i in range(count + 1))
    low, high = numbers.guidance_interval
    on = numbers.guidance > 0 and not few_steps
    guided = tuple(on and low <= numbers.time_scale * t <= high for t in times[:-1])
    return Schedule(times, guided, numbers.guidance, numbers.time_scale, 1 / count if shortcut else 0.0)


def sample_flow(velocity: Velocity, noise: State, schedule: Schedule) -> dict[str, Float32Array]:
    """Follow a flow from noise to data. Nothing given is changed.

    Raises what `velocity` raises, and InputError when the sample is not finite any more.
    """
    state = dict(noise)
    scale, guidance = schedule.time_scale, np.float32(schedule.guidance)
    for (t, t_next), guided in zip(pairwise(schedule.times), schedule.guided, strict=True):
        time, step = scale * t, scale * schedule.step
        moves = velocity(state, time=time, step=step, conditioned=True)
        if guided:
            free = velocity(state, time=time, step=step, conditioned=False)
            moves = {name: (1 + guidance) * moves[name] - guidance * free[name] for name in state}
        state = {name: value + np.float32(t_next - t) * moves[name] for name, value in state.items()}
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise InputError(
                f"sampling '{name}' ran out of the range of its numbers",
                got="NaN or infinity",
                expected="finite values",
                fix="run the graphs in fp32: samrt export --precision fp32",
            )
    return state


def draw_noise(
    shapes: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
    given: Mapping[str, NDArray[np.floating]] | None = None,
) -> dict[str, Float32Array]:
    """Normal noise for every modality, drawn in the order of their names, so that one seed is one sample.

    given: noise of the caller's; what is drawn for the others is the same with and without it
    Raises InputError for noise of another shape, or that is not finite.
    """
    drawn = {name: generator.standard_normal(shapes[name], np.float32) for name in sorted(shapes)}
    for name in shapes:
        if given is None or name not in given:
            continue
        array = np.asarray(given[name])
        if array.shape != shapes[name] or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(
                f"noise of '{name}' does not fit",
                got=f"{array.dtype} {array.shape}{'' if np.isfinite(array).all() else ' with NaN or infinity'}"
                if array.dtype.kind in "fiu"
                else str(array.dtype),
                expected=f"finite float32 {shapes[name]}",
            )
        drawn[name] = array.astype(np.float32)
    return drawn
