"""How long work reports where it stands."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): when a stage begins, and when it ends (done == total)."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
