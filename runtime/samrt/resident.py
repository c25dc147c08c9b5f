"""How much memory this process has in RAM, now and at most."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_mib() -> float | None:
    """Resident memory of this process, in MiB; None where there is no /proc."""
    return _status_mib("VmRSS")


def peak_resident_mib() -> float | None:
    """The peak of this process's resident memory, in MiB; None where nothing tells it.

    Linux tells it as VmHWM; its getrusage would give a child the peak of its parent. Elsewhere getrusage is right.
    """
    peak = _status_mib("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _status_mib(field: str) -> float | None:
    """A size of this process from Linux's /proc, in MiB; None elsewhere."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    sizes = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return next((int(size) / 1024 for size in sizes), None)
