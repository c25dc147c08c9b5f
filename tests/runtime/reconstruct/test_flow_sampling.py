"""Schedules, guidance and noise."""

from dataclasses import replace

import numpy as np
import pytest

from samrt.numbers import FlowNumbers
from samrt.reconstruct.flow_sampling import draw_noise, plan_schedule, sample_flow
from samrt_engines.errors import InputError

STRUCTURE = FlowNumbers(25, 3.0, 7.0, (0.0, 500.0), 1000.0, True)
LATENT = FlowNumbers(25, 1.0, 1.0, (0.0, 500.0), 1000.0, False)


def test_the_official_schedules_have_their_numbers_of_evaluations() -> None:
    structure, latent = plan_schedule(STRUCTURE), plan_schedule(LATENT)
    assert (structure.runs, latent.runs) == (44, 38)
    assert structure.step == latent.step == 0
    u = np.arange(26) / 25
    np.testing.assert_allclose(structure.times, u / (3 - 2 * u), atol=1e-15)
    np.testing.assert_allclose(latent.times, u, atol=1e-15)


def test_few_steps_turn_guidance_off_and_tell_only_a_flow_that_knows_them() -> None:
    structure, latent = plan_schedule(STRUCTURE, few_steps=True), plan_schedule(LATENT, few_steps=True)
    assert (structure.runs, structure.step) == (4, 0.25)
    np.testing.assert_allclose(structure.times, [0, 0.1, 0.25, 0.5, 1])
    assert (latent.runs, latent.step) == (25, 0)
    two = plan_schedule(STRUCTURE, steps=2, few_steps=True)
    assert (two.runs, two.step) == (2, 0.5)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(InputError, match=rf"number of steps is out of range.*got: {steps} .*expected: 1 to 1000"):
        plan_schedule(STRUCTURE, steps=steps)


def test_euler_steps_with_guidance_follow_the_formula() -> None:
    numbers = FlowNumbers(3, 2.0, 2.5, (100.0, 400.0), 1000.0, True)
    asked = []

    def velocity(state: dict[str, np.ndarray], *, time: float, step: float, conditioned: bool) -> dict[str, np.ndarray]:
        asked.append((round(time, 6), step, conditioned))
        sign = 1.0 if conditioned else -0.5
        return {"a": np.float32(sign) * state["b"] + np.float32(time / 1000), "b": state["a"] * np.float32(sign)}

    start = {"a": np.array([1.0], np.float32), "b": np.array([2.0], np.float32)}
    made = sample_flow(velocity, start, plan_schedule(numbers))

    t = [0, 1 / 3 / (2 - 1 / 3), 2 / 3 / (2 - 2 / 3), 1]  # 0, 0.2, 0.5, 1
    a, b = 1.0, 2.0
    for i in range(3):
        conditioned = (b + t[i], a)
        free = (-0.5 * b + t[i], -0.5 * a)
        s = 2.5 if i == 1 else 0  # 200 lies within 100..400, 0 and 500 do not
        move = [(1 + s) * c - s * f for c, f in zip(conditioned, free, strict=True)]
        a, b = a + (t[i + 1] - t[i]) * move[0], b + (t[i + 1] - t[i]) * move[1]
    np.testing.assert_allclose([made["a"][0], made["b"][0]], [a, b], rtol=1e-6)
    assert asked == [(0, 0, True), (200, 0, True), (200, 0, False), (500, 0, True)]
    assert start["a"][0] == 1
    assert made["a"].dtype == np.float32


def test_the_graph_is_told_of_long_steps_in_its_own_scale() -> None:
    asked = []

    def velocity(state: dict[str, np.ndarray], *, time: float, step: float, conditioned: bool) -> dict[str, np.ndarray]:
        asked.append((step, conditioned))
        return dict(state)

    sample_flow(velocity, {"x": np.ones(1, np.float32)}, plan_schedule(STRUCTURE, steps=2, few_steps=True))
    assert asked == [(500, True), (500, True)]


def test_a_sample_that_overflows_is_refused() -> None:
    def velocity(state: dict[str, np.ndarray], *, time: float, step: float, conditioned: bool) -> dict[str, np.ndarray]:
        return {"x": np.full(2, np.inf, np.float32)}

    with pytest.raises(InputError, match=r"sampling 'x' ran out of the range.*fix: run the graphs in fp32"):
        sample_flow(velocity, {"x": np.zeros(2, np.float32)}, plan_schedule(replace(LATENT, guidance=0.0)))


def test_noise_is_drawn_in_the_order_of_names_and_may_be_given() -> None:
    shapes = {"shape": (2, 3), "rotation_6d": (6,), "scale": (3,)}
    drawn = draw_noise(shapes, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    for name in ("rotation_6d", "scale", "shape"):
        np.testing.assert_array_equal(drawn[name], rng.standard_normal(shapes[name], np.float32))
    mine = draw_noise(shapes, np.random.default_rng(5), {"scale": np.array([1.0, 2.0, 3.0])})
    np.testing.assert_array_equal(mine["scale"], np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(mine["shape"], drawn["shape"])


@pytest.mark.parametrize(
    ("noise", "got"),
    [
        (np.zeros(2, np.float32), r"float32 \(2,\)"),
        (np.array([1, np.nan, 2], np.float32), "NaN or infinity"),
        (np.zeros(3, np.int64), "int64"),
        (np.array(["a"]), "<U1"),
    ],
)
def test_noise_that_does_not_fit_is_refused(noise: np.ndarray, got: str) -> None:
    with pytest.raises(
        InputError, match=rf"noise of 'scale' does not fit.*got: .*{got}.*expected: finite float32 \(3,\)"
    ):
        draw_noise({"scale": (3,)}, np.random.default_rng(0), {"scale": noise})
