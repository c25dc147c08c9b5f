"""An ONNX file that somebody else exported: read without trust, and refused with what it looks like if it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from samrt_engines.errors import BackendError, CheckpointError
from samrt_engines.sessions import folded_graph
from samrt_engines.tensors import Array
from samrt_export.external import LIMIT_BYTES
from samrt_export.families.fast_sam.detector import COEFFICIENT_COUNT, STRIDES, anchor_count
from samrt_export.precision.elements import opset_versions

LEAST_OPSET = 13
"""The first in which Split, Squeeze and Softmax are what they are today."""
_CHANNELS = 5 + COEFFICIENT_COUNT
_QUANTISED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
}


@dataclass(frozen=True)
class DetectorFile:
    """A file that was found sound.

    content: the file with its input's size fixed; folded: the same with constants folded, standard operators only
    """

    content: bytes
    folded: onnx.ModelProto
    size: int
    image: str
    outputs: tuple[str, str]


def read_file(path: Path, model: str, default_size: int) -> DetectorFile:
    """Read a file. default_size: of the input where the file leaves it open. Raises CheckpointError."""
    proto = _parsed(path, model)
    _check_content(proto, path, model)
    image = _picture_input(proto, path, model)
    size = _fix_size(image, path, model, default_size)
    if len(proto.graph.output) != 2:
        _refuse_outputs(path, model, [(value.name, _shape(value)) for value in proto.graph.output])
    try:
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        _refuse(path, model, _one_line(error), "a valid ONNX graph")
    content: bytes = proto.SerializeToString(deterministic=True)
    try:
        with folded_graph(content, path.name) as folded:
            graph = onnx.load(folded.path)
    except BackendError as error:
        raise CheckpointError(
            f"{path.name} cannot be loaded", got=error.got, expected="a graph that ONNX Runtime runs", fix=_fix(model)
        ) from error
    first, second = (value.name for value in proto.graph.output)
    return DetectorFile(content, graph, size, image.name, (first, second))


def check_answers(path: Path, model: str, size: int, answers: dict[str, Array]) -> None:
    """Look at what a file answers to a picture, in the order of its outputs. Raises CheckpointError."""
    found = [(name, tuple(map(int, answer.shape))) for name, answer in answers.items()]
    quarter = size // 4
    if [shape for _, shape in found] != [
        (1, _CHANNELS, anchor_count(size)),
        (1, COEFFICIENT_COUNT, quarter, quarter),
    ]:
        _refuse_outputs(path, model, found, size)
    everything, prototypes = answers.values()
    if everything.dtype != np.float32 or prototypes.dtype != np.float32:
        _refuse(path, model, f"outputs of {everything.dtype} and {prototypes.dtype}", "float32: half=False, int8=False")
    scores = everything[0, 4]
    if not (scores.min() >= 0 and scores.max() <= 1):
        _refuse(
            path, model, f"scores from {scores.min():g} to {scores.max():g} in channel 4", "probabilities from 0 to 1"
        )


def _parsed(path: Path, model: str) -> onnx.ModelProto:
    if not path.is_file():
        raise CheckpointError(f"no file at {path}", expected="an ONNX file of FastSAM", fix=_fix(model))
    if path.stat().st_size > LIMIT_BYTES:
        _refuse(path, model, f"{path.stat().st_size} bytes", f"at most {LIMIT_BYTES}")
    content = path.read_bytes()
    if content[:2] == b"PK" or content[:1] == b"\x80":
        _refuse(
            path,
            model,
            "a PyTorch file: a pickle that only the AGPL code it was made with can read, by running it",
            "an ONNX file exported from it",
        )
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError:
        _refuse(path, model, f"a file starting with {content[:8]!r}" if content else "an empty file", "an ONNX file")
    if not proto.graph.node or not proto.opset_import:
        _refuse(path, model, "no graph in it", "an ONNX file")
    return proto


def _check_content(proto: onnx.ModelProto, path: Path, model: str) -> None:
    """Refuse what a plain convolutional network has no use for, before anything runs it."""
    graph = proto.graph
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(proto)):
        _refuse(path, model, "constants in other files", "one file that holds everything")
    domains = {entry.domain for entry in proto.opset_import} | {node.domain for node in graph.node}
    foreign = sorted(domains - {"", "ai.onnx"})
    if foreign or proto.functions or proto.training_info:
        _refuse(path, model, f"operators of {', '.join(foreign) or 'functions in the file'}", "standard ONNX operators")
    nested = [node.op_type for node in graph.node if any(a.HasField("g") or a.graphs for a in node.attribute)]
    if nested:
        _refuse(path, model, f"graphs within the graph: {', '.join(sorted(set(nested)))}", "a flat graph, nms=False")
    opset = opset_versions(proto).get("", 0)
    if opset < LEAST_OPSET:
        _refuse(path, model, f"opset {opset}", f"opset {LEAST_OPSET} or later", "opset=17")
    if any(node.op_type in _QUANTISED for node in graph.node):
        _refuse(path, model, "an int8 graph", "float32: samrt makes narrow forms itself")
    if any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in _tensors(proto)):
        _refuse(path, model, "weights in half precision", "float32: samrt makes narrow forms itself", "half=False")


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every constant of a flat graph, those in attributes too."""
    yield from proto.graph.initializer
    for sparse in proto.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _picture_input(proto: onnx.ModelProto, path: Path, model: str) -> onnx.ValueInfoProto:
    """The one input that is no constant."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(_shape(inputs[0])) != 4:
        got = "; ".join(f"{value.name} {_shown(_shape(value))}" for value in inputs) or "no inputs"
        _refuse(path, model, got, "one input, images (1, 3, S, S)")
    element = inputs[0].type.tensor_type.elem_type
    if element != TensorProto.FLOAT:
        _refuse(path, model, f"an input of {TensorProto.DataType.Name(element)}", "float32", "half=False")
    picture: onnx.ValueInfoProto = inputs[0]
    return picture


def _fix_size(value: onnx.ValueInfoProto, path: Path, model: str, default: int) -> int:
    """Give open dimensions their size, and return the side of the picture."""
    batch, channels, height, width = shape = _shape(value)
    if isinstance(batch, int) and batch != 1:
        _refuse(path, model, f"a batch of {batch} pictures", "one picture", "batch=1")
    if channels not in (3, 0) and not isinstance(channels, str):
        _refuse(path, model, f"{value.name} {_shown(shape)}", "channels first: (1, 3, S, S)")
    sides = {size for size in (height, width) if isinstance(size, int)}
    size = sides.pop() if sides else default
    if sides or size % STRIDES[-1] or not STRIDES[-1] <= size <= 4096:
        _refuse(path, model, f"{value.name} {_shown(shape)}", f"a square of a multiple of {STRIDES[-1]} pixels")
    for dim, fixed in zip(value.type.tensor_type.shape.dim, (1, 3, size, size), strict=True):
        dim.Clear()
        dim.dim_value = fixed
    return size


def _refuse_outputs(
    path: Path, model: str, found: Sequence[tuple[str, tuple[int | str, ...]]], size: int | None = None
) -> NoReturn:
    """Say what a file with such outputs seems to be."""
    shapes = [shape for _, shape in found]
    first = shapes[0] if shapes and len(shapes[0]) == 3 else (0, 0, 0)
    rows, columns = (side if isinstance(side, int) else 0 for side in first[1:])
    looks, option = "another model", ""
    if any(shape[:1] not in ((1,), ("batch",), ()) and isinstance(shape[0], int) and shape[0] != 1 for shape in shapes):
        looks, option = "a model of several pictures at once", "batch=1"
    elif len(found) == 1 and 4 < rows < columns:
        looks = f"a detection model of {rows - 4} classes, which has no masks"
    elif columns == _CHANNELS + 1 or columns == 6:
        looks, option = "an end-to-end model with the suppression of overlaps inside", "nms=False"
    elif columns == _CHANNELS and rows > columns:
        looks = "a file with anchors before channels, made by another exporter"
    elif len(found) == 2 and rows > _CHANNELS:
        looks = f"a segmentation model of {rows - 4 - COEFFICIENT_COUNT} classes; FastSAM has one"
    side = "S" if size is None else str(size)
    anchors = "A" if size is None else str(anchor_count(size))
    quarter = "S/4" if size is None else str(size // 4)
    _refuse(
        path,
        model,
        "; ".join(f"{name} {_shown(shape)}" for name, shape in found) + f": it looks like {looks}",
        f"output0 (1, {_CHANNELS}, {anchors}); output1 (1, {COEFFICIENT_COUNT}, {quarter}, {quarter}) "
        f"for images (1, 3, {side}, {side})",
        option,
    )


def _refuse(path: Path, model: str, got: str, expected: str, option: str = "") -> NoReturn:
    raise CheckpointError(
        f"{path.name} is no ONNX file of FastSAM", got=got, expected=expected, fix=_fix(model, option)
    )


def _fix(model: str, option: str = "") -> str:
    """The command that makes the right file."""
    return (
        f"in an environment of its own: yolo export model=FastSAM-{'x' if model == 'fast-sam-x' else 's'}.pt "
        f"format=onnx imgsz=1024{' ' * bool(option)}{option}"
    )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Sizes, with the name of an open one."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
