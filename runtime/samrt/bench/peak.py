"""The machine's peak: what a large float32 matrix product reaches here, as a yardstick for graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from samrt.machine import usable_cores
from samrt_engines.errors import BackendError

SIDE, RUNS = 2048, 7
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PROGRAM = """
import json, sys, time
import numpy as np
side, runs = json.loads(sys.argv[1])
a = np.random.default_rng(0).standard_normal((side, side), np.float32)
out = a @ a
times = []
for _ in range(runs):
    start = time.perf_counter()
    np.matmul(a, a, out=out)
    times.append(time.perf_counter() - start)
blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"].get("name", "unknown")
print(json.dumps({"gflops": 2 * side**3 / min(times) / 1e9, "blas": blas}))
"""


@dataclass(frozen=True)
class Peak:
    """What was reached: in 1e9 floating-point operations per second, by which library, with how many threads."""

    gflops: float
    threads: int
    method: str


def probe_peak(threads: int | None = None, *, side: int = SIDE, runs: int = RUNS) -> Peak:
    """Multiply float32 (side, side) matrices in a fresh process, whose thread count can be set; the best run counts.

    Raises BackendError when the process fails.
    """
    count = threads or usable_cores()
    command = [sys.executable, "-c", PROGRAM, json.dumps([side, runs])]
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(count))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BackendError(
            "cannot probe the machine's peak", got=(done.stderr.strip().splitlines() or ["no output"])[-1]
        )
    found = json.loads(done.stdout)
    method = f"numpy float32 matmul {side} x {side}, {found['blas']}, best of {runs}"
    return Peak(found["gflops"], count, method)
