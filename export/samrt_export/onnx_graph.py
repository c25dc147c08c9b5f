"""From a GraphSpec to an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from samrt_engines.errors import ExportError
from samrt_engines.tensors import TensorSpec
from samrt_export import external
from samrt_export.registry import GraphSpec

OPSET = 23
"""The first with ``Attention`` and ``RotaryEmbedding``; TensorRT parses both since 10.15."""


def onnx_from_spec(spec: GraphSpec, module: nn.Module, data: Path | None = None) -> onnx.ModelProto:
    """Trace, convert and clean one form of a graph.

    data: a file that is not there yet; it takes the constants of a graph that is too large without (see `external`)

    The result declares exactly the spec's inputs and outputs. It carries no paths, no stack traces and no time: the same
    weights give the same bytes.
    """
    # Symbols are traced at sizes from 2 up (0 and 1 are special to torch.export), broadcast ones as the constant 1.
    sizes = dict(spec.checks[1]) | dict.fromkeys(spec.broadcast, 1)
    feeds = spec.sample(sizes, 0)
    shapes = tuple(
        {
            axis: torch.export.Dim.DYNAMIC
            for axis, size in enumerate(tensor.shape)
            if isinstance(size, str) and size not in spec.broadcast
        }
        for tensor in spec.inputs
    )
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            optimize=True,
            verbose=False,
        )
    assert program is not None
    if data is not None:
        _move_constants(program, data)
    model = program.model_proto
    del program
    _declare(model.graph.input, spec.inputs, spec)
    _declare(model.graph.output, spec.outputs, spec)
    _strip(model, spec.name)
    return model


def _move_constants(program: torch.onnx.ONNXProgram, data: Path) -> None:
    """Write the constants of a large graph to a file, one after another: the whole never lies in memory twice."""
    import onnx_ir

    values = program.model.graph.initializers.values()
    if sum(value.const_value.nbytes for value in values if value.const_value is not None) <= external.LIMIT_BYTES:
        return
    with data.open("xb") as file:
        for value in values:
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= external.INLINE_BYTES:
                continue
            offset, shape = external.append_aligned(file), onnx_ir.Shape(tensor.shape.numpy())
            file.write(tensor.tobytes())
            value.const_value = onnx_ir.ExternalTensor(
                str(data), offset, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
            )


def _declare(values: Any, tensors: tuple[TensorSpec, ...], spec: GraphSpec) -> None:
    """Give inputs or outputs the spec's symbol names, after checking that the exporter found the same dimensions."""
    for value, tensor in zip(values, tensors, strict=True):
        dims = value.type.tensor_type.shape.dim
        found = [dim.dim_param or dim.dim_value for dim in dims]
        for dim, size in zip(dims, tensor.shape, strict=True):
            kept = dim.HasField("dim_value") and dim.dim_value == size
            named = isinstance(size, str) and (bool(dim.dim_param) or size in spec.broadcast)
            if not kept and not named:
                raise ExportError(
                    f"{spec.name}: the exporter changed the shape of '{value.name}'",
                    got=str(found),
                    expected=str(list(tensor.shape)),
                )
            if isinstance(size, str):
                dim.Clear()
                dim.dim_param = size


def _strip(model: onnx.ModelProto, name: str) -> None:
    """Drop what differs from machine to machine: stack traces, value infos, producer fields; name the graph."""
    graph = model.graph
    graph.name = name
    del graph.value_info[:]
    del model.metadata_props[:], graph.metadata_props[:]
    for owner in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        owner.doc_string = ""
        if hasattr(owner, "metadata_props"):
            del owner.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    model.producer_name, model.producer_version = "samrt", ""


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence notes about torchvision being absent and constants not folded, and warnings of torch 2.13's own tree utilities."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript.optimizer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
