"""PyTorch as a contender in ``samrt bench --against pytorch``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from samrt.bundle import open_bundle
from samrt_export.parity import run_module
from samrt_export.registry import GraphSpec
from samrt_export.source import reference_graphs


class TorchReference:
    """The modules a bundle was made from, eager, fp32, on the CPU."""

    def __init__(self, specs: tuple[GraphSpec, ...]) -> None:
        self._specs = {spec.name: spec for spec in specs}

    def run_graph(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph's module on a graph's feeds."""
        return run_module(self._specs[name], dict(feeds))

    def close(self) -> None:
        """Drop the modules."""
        self._specs = {}


def open_reference(bundle: Path, *, checkpoint: Path | None = None, threads: int | None = None) -> TorchReference:
    """Rebuild the PyTorch model of a bundle. Raises CheckpointError when its weights are not at hand."""
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchReference(reference_graphs(open_bundle(bundle).manifest, checkpoint))
