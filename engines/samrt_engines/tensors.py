"""Tensors by name, dtype and symbolic shape, and the one check that feeds pass before any backend sees them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt_engines.errors import BackendError, ManifestError, TensorError

DTYPES = ("float32", "float16", "uint8", "int32", "int64", "bool")
"""The numpy dtype names a graph's tensors may have."""

Array = NDArray[Any]
"""An array of any of `DTYPES`; which one, the graph's `TensorSpec` says."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    `dtype` is one of `DTYPES`. `shape` has a size for every fixed dimension and a name for every symbolic one; a name
    stands for the same size wherever it appears among a graph's inputs.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"

    def to_json(self) -> dict[str, Any]:
        """The manifest's form: `{"name": ..., "dtype": ..., "shape": [...]}`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, entry: object) -> TensorSpec:
        """Read the manifest's form, trusting nothing about it. Raises ManifestError."""
        if not isinstance(entry, dict) or entry.keys() != {"name", "dtype", "shape"}:
            got = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise ManifestError(
                "a tensor's entry is malformed", got=got, expected="an object with 'name', 'dtype' and 'shape'"
            )
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if not isinstance(name, str) or not name:
            raise ManifestError("a tensor's name is malformed", got=repr(name), expected="a non-empty string")
        if dtype not in DTYPES:
            raise ManifestError(f"tensor '{name}' has an unknown dtype", got=repr(dtype), expected=", ".join(DTYPES))
        if not isinstance(shape, list) or not all(map(_is_dimension, shape)):
            raise ManifestError(
                f"tensor '{name}' has a malformed shape",
                got=repr(shape),
                expected="a list of sizes (whole numbers from 0) and names of symbolic dimensions",
            )
        return cls(name, dtype, tuple(shape))


def check_feeds(
    feeds: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    *,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    graph: str = "graph",
) -> dict[str, int]:
    """Check that `feeds` are exactly the arrays a graph's input `specs` describe. Nothing is cast, copied or reordered.

    ranges: symbolic dimension -> (smallest, largest) size, both allowed; without one any size will do, 0 included
    graph: what messages call the graph

    Returns the size of every symbol. Raises TensorError for a missing or unknown name, a wrong dtype (byte order
    included), rank or fixed size, a symbol with two sizes, or one outside its range.
    """
    _check_names(feeds, [spec.name for spec in specs], graph)
    ranges = ranges or {}
    sizes: dict[str, int] = {}
    named_by: dict[str, str] = {}  # symbol -> the input that gave it its size
    for spec in specs:
        array = feeds[spec.name]
        _check_array(array, spec, graph)
        for axis, (symbol, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
            if isinstance(symbol, int):
                continue
            if sizes.setdefault(symbol, size) != size:
                raise TensorError(
                    f"{graph}: '{symbol}' has two sizes",
                    got=f"{sizes[symbol]} in '{named_by[symbol]}', {size} in '{spec.name}' (axis {axis})",
                    expected=f"one size for '{symbol}' in all inputs",
                )
            named_by.setdefault(symbol, spec.name)
            smallest, largest = ranges.get(symbol, (0, size))
            if not smallest <= size <= largest:
                raise TensorError(
                    f"{graph}: '{symbol}' is out of range in input '{spec.name}' (axis {axis})",
                    got=str(size),
                    expected=f"{smallest} to {largest}",
                    fix=f"split the call along '{symbol}'" if size > largest else None,
                )
    return sizes


def pick_outputs(wanted: Sequence[str] | None, specs: Sequence[TensorSpec], *, graph: str = "graph") -> list[str]:
    """The names of the outputs to compute: `wanted` in its order, or all of `specs` when it is None.

    Raises TensorError for a name that is not an output of the graph, and for an empty wish.
    """
    known = [spec.name for spec in specs]
    if wanted is None:
        return known
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise TensorError(f"{graph}: no such output", got=_quoted(unknown), expected=_quoted(known))
    return list(dict.fromkeys(wanted))


def spec_differences(declared: Sequence[TensorSpec], promised: Sequence[TensorSpec]) -> list[str]:
    """In words, how the tensors a model file declares differ from those its manifest promises; empty when they agree.

    Names, dtypes, ranks and fixed sizes are compared; order and the names of symbolic dimensions are not.
    """
    theirs = {spec.name: spec for spec in declared}
    ours = {spec.name: spec for spec in promised}
    return [
        *(f"'{name}' is missing" for name in ours if name not in theirs),
        *(f"'{name}' is unknown" for name in theirs if name not in ours),
        *(
            f"{theirs[name]} instead of {ours[name]}"
            for name in ours
            if name in theirs and not _alike(theirs[name], ours[name])
        ),
    ]


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return (
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(one.shape, other.shape, strict=True))
    )


def _check_names(given: Iterable[str], known: Sequence[str], graph: str) -> None:
    """All names and no others, in any order."""
    given = list(given)
    missing = [name for name in known if name not in given]
    unknown = [name for name in given if name not in known]
    if missing or unknown:
        faults = [f"missing {_quoted(missing)}"] * bool(missing) + [f"unknown {_quoted(unknown)}"] * bool(unknown)
        raise TensorError(
            f"{graph}: the inputs are not the graph's",
            got=" and ".join(faults),
            expected=_quoted(known),
            fix=_rename(unknown, missing),
        )


def _check_array(array: Array, spec: TensorSpec, graph: str) -> None:
    """Type, dtype, rank and fixed sizes of one array."""
    if not isinstance(array, np.ndarray):
        raise TensorError(
            f"{graph}: input '{spec.name}' is not an array",
            got=type(array).__name__,
            expected=f"numpy.ndarray, {spec}",
            fix=f'numpy.asarray(..., dtype="{spec.dtype}")',
        )
    if array.dtype != np.dtype(spec.dtype):
        raise TensorError(
            f"{graph}: input '{spec.name}' has the wrong dtype",
            got=array.dtype.name if array.dtype.isnative else f"{array.dtype.name} in foreign byte order",
            expected=spec.dtype,
            fix=f'.astype("{spec.dtype}")',
        )
    fits = len(spec.shape) == array.ndim and all(
        size == declared or isinstance(declared, str) for declared, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise TensorError(f"{graph}: input '{spec.name}' has the wrong shape", got=str(array.shape), expected=str(spec))


def _is_dimension(value: object) -> bool:
    """A size or a symbol; JSON's true and false are no sizes, though Python calls them ints."""
    if isinstance(value, str):
        return value != ""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _rename(unknown: Sequence[str], missing: Sequence[str]) -> str | None:
    """Suggest a new name for each unknown one that looks like a missing one."""
    pairs = [(name, difflib.get_close_matches(name, missing, n=1)) for name in unknown]
    return "; ".join(f"rename '{name}' to '{close[0]}'" for name, close in pairs if close) or None


def agree(
    declared: Sequence[TensorSpec],
    promised: Sequence[TensorSpec] | None,
    what: str,
    *,
    error: type[BackendError] = BackendError,
    fix: str = "export the model again: samrt export",
) -> tuple[TensorSpec, ...]:
    """The promised specs, once the declared ones agree with them; without a promise, the declared ones.

    what: what messages call them
    Raises `error`, naming every difference.
    """
    if promised is None:
        return tuple(declared)
    differences = spec_differences(declared, promised)
    if differences:
        raise error(
            f"{what} are not what the manifest says",
            got="; ".join(differences),
            expected="; ".join(map(str, promised)),
            fix=fix,
        )
    return tuple(promised)
