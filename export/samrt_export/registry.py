"""What a model family is, and the list of families. Adding one costs one file in ``families/`` and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from samrt_engines.errors import ExportError
from samrt_engines.tensors import TensorSpec

FAMILIES = (
    "sam",
    "sam_hq",
    "mobile_sam",
    "efficient_sam",
    "fast_sam",
    "sam2",
    "edgetam",
    "sam3d",
    "trellis",
    "moge",
)

Feeds = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Form:
    """One arrangement of a graph's computation, to be stored; for which targets (none named: any)."""

    module: nn.Module
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    ``module`` computes it as upstream does and is what every form is compared with. It takes the tensors of ``inputs``
    positionally and returns a tuple in the order of ``outputs``; the modules of ``forms`` do the same. A runtime takes the
    first form that fits its target.
    ``profiles`` gives (min, opt, max) for every symbolic dimension of the inputs. ``checks`` are the two sets of sizes at
    which parity is measured, the usual one and a larger one, at which the graph is traced too. ``sample(sizes, seed)``
    makes live inputs for given sizes. Symbols in ``broadcast`` are traced as the constant 1 and given their name back in
    the file: their tensors may only meet operators that broadcast, so that both sizes of the checks work.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, tuple[int, int, int]]
    checks: tuple[Mapping[str, int], Mapping[str, int]]
    sample: Callable[[Mapping[str, int], int], Feeds]
    forms: tuple[Form, ...]
    broadcast: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Family:
    """A model family: its models, and plain functions from a model name to each thing the exporter needs."""

    name: str
    models: tuple[str, ...]
    build: Callable[[str], nn.Module]
    """Model name -> module with the official parameter names, weights uninitialised: the target of a strict load."""
    graphs: Callable[[nn.Module, str], tuple[GraphSpec, ...]]
    numbers: Callable[[str], dict[str, Any]]
    """The manifest's ``numbers``."""
    abilities: Callable[[str], tuple[str, ...]]
    official_from_hf: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """Hugging Face layout -> official layout. Keys it does not know keep their name, so that strict loading names them."""
    randomize: Callable[[nn.Module, int], None]
    """Live random weights, in place."""
    licence: Callable[[str], tuple[str, str]]
    """(name, note that travels with derivatives)."""
    hub_id: Callable[[str], str | None]
    shipped_checkpoint: Callable[[str], Path | None]
    read_state: Callable[[Path], dict[str, Tensor]] | None = None
    """Reads the weights of one path where that is more than one checkpoint file, a folder of them. None: a file."""
    fit: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    """Gives a built module the shape of a file where files differ, before the strict load: shared weights made separate."""
    open_file: Callable[[Path, str], nn.Module] | None = None
    """Makes the module of a model from a file that is more than weights: an ONNX file that holds the network too."""
    module_numbers: Callable[[nn.Module], dict[str, Any]] | None = None
    """Of ``numbers`` those that only the loaded module knows, in place of the model's."""


@cache
def families() -> dict[str, Family]:
    """Every registered family by name."""
    return {name: import_module(f"samrt_export.families.{name}").FAMILY for name in FAMILIES}


def models() -> tuple[str, ...]:
    """Every model name, family by family."""
    return tuple(model for family in families().values() for model in family.models)


def find(model: str) -> Family:
    """The family of a model. Raises ExportError listing what is known, closest name first."""
    for family in families().values():
        if model in family.models:
            return family
    close = difflib.get_close_matches(model, models(), n=3, cutoff=0.4)
    rest = [name for name in models() if name not in close]
    raise ExportError(
        "unknown model",
        got=repr(model),
        expected="one of " + ", ".join([*close, *rest]),
        fix=f"samrt export {close[0]} ..." if close else "samrt models",
    )
