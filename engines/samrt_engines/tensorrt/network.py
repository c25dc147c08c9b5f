"""What we read from and set on a parsed network: its inputs, the shapes of its profile, and its attentions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samrt_engines.errors import BuildError
from samrt_engines.tensorrt.keys import Range
from samrt_engines.tensors import TensorSpec

DTYPE_FROM_TRT = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's names of the dtypes that go in and out of graphs."""

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""min, opt and max shape of one input."""


def check_inputs(network: Any, name: str) -> tuple[TensorSpec, ...]:
    """The inputs of a parsed network, with the names of their symbolic dimensions. Raises BuildError for other dtypes."""
    return tuple(_spec(network.get_input(index), name) for index in range(network.num_inputs))


def profile_shapes(inputs: Sequence[TensorSpec], profiles: Mapping[str, Range], name: str) -> dict[str, Shapes]:
    """The profile of every input that has a symbolic dimension.

    Raises BuildError for a symbol without sizes, sizes for no symbol, and sizes that do not ascend.
    """
    symbols = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    if symbols != set(profiles):
        raise BuildError(
            f"{name}: the profiles are not those of the graph's symbolic dimensions",
            got=", ".join(sorted(profiles)) or "none",
            expected=", ".join(sorted(symbols)) or "none",
        )
    for symbol, (smallest, usual, largest) in profiles.items():
        if not 0 <= smallest <= usual <= largest or largest == 0:
            raise BuildError(
                f"{name}: the profile of '{symbol}' makes no sense",
                got=f"min {smallest}, opt {usual}, max {largest}",
                expected="0 <= min <= opt <= max, and max at least 1",
            )
    dynamic = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    return {spec.name: _shapes(spec, profiles) for spec in dynamic}


def allow_decomposition(trt: Any, network: Any, wanted: bool | None) -> tuple[int, int]:
    """Say of every Attention whether it may become several kernels; see `BuildOptions.decomposable_attention`.

    Returns how many Attentions there are, and of how many it may.
    """
    attentions = [attention for attention in map(_attention(trt), _layers(network)) if attention is not None]
    for attention in attentions:
        fp32 = attention.get_input(0).dtype == trt.DataType.FLOAT
        attention.decomposable = fp32 if wanted is None else wanted
    return len(attentions), sum(attention.decomposable for attention in attentions)


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _attention(trt: Any) -> Any:
    """A function from a layer to the Attention that it begins, or None."""

    def find(layer: Any) -> Any | None:
        if layer.type != trt.LayerType.ATTENTION_INPUT:
            return None
        layer.__class__ = trt.IAttentionInputLayer  # how the Python API turns a plain layer into what it is
        return layer.attention

    return find


def _shapes(spec: TensorSpec, profiles: Mapping[str, Range]) -> Shapes:
    def shape(which: int) -> tuple[int, ...]:
        return tuple(profiles[size][which] if isinstance(size, str) else size for size in spec.shape)

    return shape(0), shape(1), shape(2)


def _spec(tensor: Any, name: str) -> TensorSpec:
    dtype = DTYPE_FROM_TRT.get(tensor.dtype.name)
    if dtype is None:
        raise BuildError(
            f"{name}: input '{tensor.name}' is of a type samrt does not use",
            got=tensor.dtype.name,
            expected=", ".join(DTYPE_FROM_TRT),
        )
    sizes = enumerate(tuple(tensor.shape))
    shape = (size if size >= 0 else tensor.get_dimension_name(axis) or f"{tensor.name}.{axis}" for axis, size in sizes)
    return TensorSpec(tensor.name, dtype, tuple(shape))
