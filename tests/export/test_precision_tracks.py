"""What a narrow precision costs in tracking: the figures, and nano's fp16 graphs through clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samrt_export.precision.masks import open_forms
from samrt_export.precision.tracks import BARS, TrackAgreement, compare_tracks, slope_of, summarize


def test_the_slope_and_its_error_are_those_of_a_fitted_line() -> None:
    rng = np.random.default_rng(0)
    values = 0.99 - 1e-4 * np.arange(80) + rng.normal(0, 1e-3, 80)
    slope, error = slope_of(values)
    (fitted, _), covariance = np.polyfit(np.arange(80), values, 1, cov=True)
    assert slope == pytest.approx(fitted, rel=1e-9)
    assert error == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-6)


def test_drift_is_told_from_chance() -> None:
    rng = np.random.default_rng(1)
    still = [0.995 + rng.normal(0, 1e-3, (299, 2)) for _ in range(3)]
    sinking = [one - 2e-5 * np.arange(299)[:, None] for one in still]
    assert summarize("fp16", still).ok
    assert not summarize("fp16", still).drifts
    assert summarize("fp16", sinking).drifts
    assert not summarize("fp16", sinking).ok
    assert summarize("bf16", sinking).ok  # no bars: only reported


def test_one_bad_frame_is_a_miss() -> None:
    scores = np.full((299, 2), 0.999)
    scores[40] = 0.97
    found = summarize("fp16", [scores])
    assert (found.smallest_frame, found.frames, found.clips) == (0.97, 300, 1)
    assert found.mean > BARS["fp16"][0]
    assert not found.ok


def follow(bundle: Path, clips: int, frames: int) -> TrackAgreement:
    with open_forms(bundle, "fp32") as reference, open_forms(bundle, "fp16") as fp16:
        (found,) = compare_tracks(reference, {"fp16": fp16}, clips, frames=frames)
    print(found)
    return found


def test_fp16_follows_fp32(nano_fp16_bundle: Path) -> None:
    found = follow(nano_fp16_bundle, 2, 25)
    assert found.mean >= BARS["fp16"][0]
    assert found.mean < 1  # fp16 did run


@pytest.mark.slow
def test_fp16_follows_fp32_for_300_frames(nano_fp16_bundle: Path) -> None:
    found = follow(nano_fp16_bundle, 4, 300)
    assert found.ok
