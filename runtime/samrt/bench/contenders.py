"""Who takes part: samrt itself, and references that run the same graphs and tasks on something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samrt.bench.tasks import Arrays, WholeTask, run_whole
from samrt.bundle import open_bundle
from samrt.model import Model, load
from samrt.proposals import ProposalModel
from samrt_engines.errors import BackendError, MissingExtraError
from samrt_engines.executor import Executor

Outputs = dict[str, NDArray[Any]]

SAMRT = "samrt"
GROUP = "samrt.references"


class Contender(Protocol):
    """An implementation of a bundle's graphs and of the tasks made of them."""

    def ran_on(self, graph: str) -> str:
        """What really runs a graph."""

    def on_gpu(self, graph: str) -> bool:
        """Whether that is a GPU."""

    def precision(self, graph: str) -> str:
        """What it calculates in."""

    def run_graph(self, name: str, feeds: Arrays) -> Outputs:
        """Run one graph. Raises BackendError when it cannot."""

    def whole(self, task: WholeTask, picture: NDArray[np.uint8]) -> Callable[[], Outputs]:
        """Prepare a task from picture to masks; the call that is returned does it once. Raises BackendError.

        returns: of "encode" the features by name; of others {"masks": bool (P, C, H, W)}, in the picture's pixels
        """

    def allocated_bytes(self) -> int | None:
        """GPU memory its allocator has handed out at most; None where there is no GPU or no count."""

    def close(self) -> None:
        """Free it."""


class Samrt:
    """A loaded bundle as a contender. What a user does with a model that proposes masks is in `samrt.bench.proposals`."""

    def __init__(self, model: Model | ProposalModel) -> None:
        self.model = model

    def ran_on(self, graph: str) -> str:
        return self.model.providers[graph]

    def on_gpu(self, graph: str) -> bool:
        return is_gpu(self.ran_on(graph))

    def precision(self, graph: str) -> str:
        return self.model.precisions[graph]

    def run_graph(self, name: str, feeds: Arrays) -> Outputs:
        return self.model.executors[name].run(feeds)

    def whole(self, task: WholeTask, picture: NDArray[np.uint8]) -> Callable[[], Outputs]:
        model = self.model
        assert isinstance(model, Model)
        features = None if task.prompts is None else model.encode(picture)
        return lambda: run_whole(model, task, features, picture)

    def allocated_bytes(self) -> int | None:
        uses = memory_by_use(self.model.executors.values())
        return None if uses is None else sum(uses.values())

    def close(self) -> None:
        self.model.close()


def open_samrt(
    bundle: Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
) -> Samrt:
    """Load a bundle of either kind as a contender; arguments and errors are those of `samrt.load`."""
    if open_bundle(bundle).manifest.proposals is not None:
        return Samrt(ProposalModel(bundle, backend, device, threads, precision=precision))
    return Samrt(load(bundle, backend, device=device, threads=threads, precision=precision))


def open_reference(
    name: str, bundle: Path, *, checkpoint: Path | None = None, threads: int | None = None, device: str = "cpu"
) -> Contender:
    """Open a reference by its name, which is an entry point of ``samrt.references`` and maybe a mode: "pytorch-compile".

    device: "cpu" or "cuda", where samrt runs
    Raises BackendError for an unknown one, MissingExtraError, and what the reference raises for the bundle's weights.
    """
    kind, _, mode = name.partition("-")
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in known:
        if not known:
            raise MissingExtraError.for_package("samrt_export", extra="export", purpose=f"to measure against {name}")
        raise BackendError("unknown reference", got=repr(name), expected=", ".join(sorted(known)))
    try:
        opener = known[kind].load()
    except (ImportError, OSError) as error:
        package = (getattr(error, "name", None) or kind).partition(".")[0]
        raise MissingExtraError.for_package(
            package, extra="export", purpose=f"to measure against {name}", got=str(error)
        ) from error
    reference: Contender = opener(bundle, mode=mode or "eager", checkpoint=checkpoint, threads=threads, device=device)
    return reference


def is_gpu(provider: str) -> bool:
    """Whether a provider, as backends report it, runs on a GPU: not "CPUExecutionProvider", not "OpenVINO CPU"."""
    return "CPU" not in provider


def memory_by_use(executors: Iterable[Executor]) -> dict[str, int] | None:
    """GPU memory that executors take, by their own count, in bytes at its peak: "weights", "scratch", "inputs_outputs".

    Scratch that several share counts once; arrays that stay on the GPU between graphs are among inputs and outputs.
    None where one on a GPU does not count: ONNX Runtime (1.31) tells Python nothing of its allocator.
    """
    on_gpu = [executor for executor in executors if is_gpu(executor.provider)]
    if not on_gpu or not all(hasattr(executor, "memory_bytes") for executor in on_gpu):
        return None
    counts: list[dict[str, int]] = [executor.memory_bytes() for executor in on_gpu]  # type: ignore[attr-defined]
    blocks = {id(executor.scratch): executor.scratch for executor in on_gpu}.values()  # type: ignore[attr-defined]
    scratch = sum(block.size_bytes for block in blocks)
    return {
        "weights": sum(count["weights"] for count in counts),
        "scratch": scratch,
        "inputs_outputs": sum(block.pool.peak_bytes for block in blocks) - scratch,
    }


def worst_error(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> float:
    """The largest relative error (L2) of any output; infinite where one has another shape or is not finite."""
    return max(_relative_l2(ours[name], theirs[name]) for name in ours)


def mask_iou(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    """The smallest IoU of any mask with its counterpart; two empty ones agree. 0 for masks of different shapes."""
    if ours.shape != theirs.shape:
        return 0.0
    both = np.logical_and(ours, theirs).sum(axis=(-2, -1))
    either = np.logical_or(ours, theirs).sum(axis=(-2, -1))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).min())


def _relative_l2(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    x, y = ours.astype(np.float64), theirs.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("inf")
    return float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30))
