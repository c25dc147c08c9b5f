"""What a measurement has to say about the machine it was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's model name, with family and model numbers where the name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in reversed(lines))
    entries = {key.strip(): value.strip() for key, _, value in pairs}
    name = entries.get("model name", platform.machine())
    return f"{name} (family {entries.get('cpu family', '?')}, model {entries.get('model', '?')})"


def usable_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
