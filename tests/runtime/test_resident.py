"""Resident memory: told where the machine tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samrt import resident
from samrt.resident import peak_resident_mib, resident_mib

HOLD = """
import numpy as np
from samrt.resident import peak_resident_mib, resident_mib
before = resident_mib()
held = np.ones(100 << 20, np.uint8)
during = resident_mib()
del held
print(before, during, resident_mib(), peak_resident_mib())
"""


def test_what_is_held_counts_now_and_what_was_held_at_the_peak() -> None:
    """In a process of its own: a large one may have such a block to hand already, freed by others."""
    if not resident.STATUS.exists():
        pytest.skip("no /proc")
    printed = subprocess.run([sys.executable, "-c", HOLD], check=True, capture_output=True, text=True).stdout
    before, during, after, peak = map(float, printed.split())
    assert 95 < during - before < 130
    assert 95 < during - after < 130
    assert peak >= during - 1


def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = peak_resident_mib()
    monkeypatch.setattr(resident, "STATUS", tmp_path / "none")
    assert resident_mib() is None
    assert expected is not None
    assert peak_resident_mib() == pytest.approx(expected, rel=0.5)  # ru_maxrss: of the parent, where that had more
