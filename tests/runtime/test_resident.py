"""Resident memory: told where the machine tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samrt import resident
from samrt.resident import peak_resident_mib, resident_mib


def test_what_is_held_counts_now_and_what_was_held_at_the_peak() -> None:
    if not resident.STATUS.exists():
        pytest.skip("no /proc")
    before = resident_mib()
    held = np.ones(100 << 20, np.uint8)
    during = resident_mib()
    del held
    after, peak = resident_mib(), peak_resident_mib()
    assert before is not None
    assert during is not None
    assert after is not None
    assert peak is not None
    assert 95 < during - before < 130
    assert 95 < during - after < 130
    assert peak >= during - 1


def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = peak_resident_mib()
    monkeypatch.setattr(resident, "STATUS", tmp_path / "none")
    assert resident_mib() is None
    assert expected is not None
    assert peak_resident_mib() == pytest.approx(expected, rel=0.5)  # ru_maxrss: of the parent, where that had more
