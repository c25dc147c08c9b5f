"""A bundle's self-test: stored inputs, and samples of what its graphs have to make of them.

Engines that are fast and silently wrong are a known thing (fused fp16 attention, cosine 0.06). So the answer of fp32 PyTorch
travels with the bundle, and a plan has to give it on the very GPU that will run it, without PyTorch there.

The graphs run in a chain, each on what those before it made. Outputs are compared at up to 16,384 places spread over the
whole tensor; what is wrong enough to matter shows there.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import ManifestError, SelfTestError
from samrt_engines.executor import Executor
from samrt_engines.tensors import Array

MOST_SAMPLES = 16_384
_SPREAD = 2_654_435_761  # Knuth's multiplicative hash: neighbouring samples lie far apart
_USUAL = 3
_HALF_STEP = 2.0**-11  # of fp16 and TF32: half the distance from 1 to the next number
_COSINE_SLACK = 2.0  # 1 - cosine is half the square of a small relative error; twice that leaves room


@dataclass(frozen=True, slots=True)
class Expected:
    """What an output has to be.

    samples: float32 (n,), the output at `sample_places`
    tolerance: largest relative error (L2) of the samples
    """

    samples: NDArray[np.float32]
    tolerance: float


@dataclass(frozen=True, slots=True)
class SelfTestRow:
    """One output of one graph, compared."""

    graph: str
    output: str
    relative_l2: float
    cosine: float
    tolerance: float
    usual: float | None = None
    """The relative error that rounding explains, see `usual_error`; None where nothing is known."""

    @property
    def unusual(self) -> bool:
        """Whether rounding alone does not explain the error. No proof that anything is wrong, but worth a look."""
        return self.usual is not None and not self.relative_l2 <= self.usual

    @property
    def ok(self) -> bool:
        """Within tolerance, and pointing the same way. Not so for what is not a number."""
        return self.relative_l2 <= self.tolerance and 1 - self.cosine <= _COSINE_SLACK * self.tolerance**2 + 1e-7

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict; null for what is not a number or not known."""
        known = {"relative_l2": self.relative_l2, "cosine": self.cosine}
        numbers = {name: value if np.isfinite(value) else None for name, value in known.items()}
        limits = {"tolerance": self.tolerance, "usual": self.usual}
        return {"graph": self.graph, "output": self.output, **numbers, **limits, "ok": self.ok}


@dataclass(frozen=True)
class SelfTest:
    """Inputs by tensor name, and what each graph, in the order in which they run, makes of them."""

    inputs: Mapping[str, Array]
    expected: Mapping[str, Mapping[str, Expected]] = field(default_factory=dict)
    """Graph -> output -> what it has to be."""

    def run(self, executors: Mapping[str, Executor]) -> tuple[SelfTestRow, ...]:
        """Run the graphs in their chain and compare. Raises what executors raise."""
        known = dict(self.inputs)
        rows = []
        for graph, outputs in self.expected.items():
            executor = executors[graph]
            feeds = {spec.name: known[spec.name].astype(spec.dtype, copy=False) for spec in executor.inputs}
            made = executor.run(feeds)
            known |= made
            rows += [_compare(graph, name, made[name], wanted) for name, wanted in outputs.items()]
        return tuple(rows)

    def to_bytes(self) -> bytes:
        """As a NumPy archive without pickles; inputs of small whole numbers as uint8. The same content, the same bytes."""
        arrays = {f"input:{name}": _smallest(array) for name, array in self.inputs.items()}
        for graph, outputs in self.expected.items():
            for name, wanted in outputs.items():
                arrays[f"samples:{graph}:{name}"] = wanted.samples
                arrays[f"tolerance:{graph}:{name}"] = np.array(wanted.tolerance)
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> SelfTest:
        """Read what `to_bytes` wrote. Raises ManifestError for anything else."""
        inputs: dict[str, Array] = {}
        expected: dict[str, dict[str, Expected]] = {}
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                for key in archive.files:
                    kind, _, name = key.partition(":")
                    if kind == "input":
                        inputs[name] = archive[key]
                    elif kind == "samples":
                        graph, output = name.split(":")
                        wanted = Expected(archive[key], float(archive[f"tolerance:{name}"]))
                        expected.setdefault(graph, {})[output] = wanted
        except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise ManifestError("the self-test cannot be read", got=str(error), fix="export the model again") from error
        return cls(inputs, expected)


def check_rows(rows: tuple[SelfTestRow, ...], what: str) -> None:
    """Raise SelfTestError naming the worst output, unless all rows are right.

    what: the engines that were tested, as messages call them
    """
    wrong = [row for row in rows if not row.ok]
    if not wrong:
        return
    first = wrong[0]
    others = f"; {len(wrong) - 1} more outputs are wrong after it" if len(wrong) > 1 else ""
    raise SelfTestError(
        f"{what}: {first.graph} is wrong on this machine",
        got=f"'{first.output}' is off by {first.relative_l2:.1e} (relative), cosine {first.cosine:.6f}{others}",
        expected=f"at most {first.tolerance:.1e}, as PyTorch computed it in fp32",
        fix="build again: samrt build; where that does not help, export in another precision: samrt export --precision",
    )


def usual_error(at_export: float) -> float:
    """The error up to which a plan differs as its rounding lets it: three times what was measured at export.

    at_export: relative error (L2) of the graph there, its narrow types emulated
    A plan beyond that is reported and not refused. Emulation has no part in what a right GPU adds: sums kept in fp16, and
    products of fp32 in TF32. With these in TF32 alone, nano's masks in fp16 come to 0.7 of this limit, and its fp32 graphs
    to 200 times the error at export, so the rounding of TF32 and fp16 stands for a smaller one.
    """
    return _USUAL * max(at_export, _HALF_STEP)


def expected_from_output(output: Array, tolerance: float) -> Expected:
    """Keep of a right output what the self-test compares."""
    return Expected(output.reshape(-1)[sample_places(output.size)].astype(np.float32), tolerance)


def sample_places(size: int) -> NDArray[np.int64]:
    """Places in a flattened tensor of `size` elements: all of a small one, spread over a large one."""
    if size <= MOST_SAMPLES:
        return np.arange(size)
    return np.arange(MOST_SAMPLES, dtype=np.int64) * _SPREAD % size


def _smallest(array: Array) -> Array:
    """The array, as uint8 where that says the same."""
    narrow = array.astype(np.uint8) if array.size and array.min() >= 0 and array.max() <= 255 else array
    return narrow if np.array_equal(narrow, array) else array


def _compare(graph: str, name: str, output: Array, wanted: Expected) -> SelfTestRow:
    """A wrong size or a value that is not a number counts as infinitely wrong."""
    places = sample_places(output.size)
    if len(places) != len(wanted.samples) or not np.isfinite(output).all():
        return SelfTestRow(graph, name, float("inf"), -1.0, wanted.tolerance)
    ours, theirs = output.reshape(-1)[places].astype(np.float64), wanted.samples.astype(np.float64)
    norms = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    error = float(np.linalg.norm(ours - theirs)) / max(norms[1], 1e-30)
    cosine = float(ours @ theirs) / (norms[0] * norms[1]) if all(norms) else float(error == 0)
    return SelfTestRow(graph, name, error, min(1.0, cosine), wanted.tolerance)
