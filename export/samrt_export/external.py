"""Graphs too large to be one file: protobuf ends at 2 GB, so their constants lie in a file beside the graph.

In memory such a graph is an ``onnx.ModelProto`` whose large constants only say where they are: an absolute path, an offset and
a length. It can be copied and changed like any other, and never holds more than its nodes. `values_of` reads a constant,
`openable` gives what an executor opens, `store` writes the two files of a bundle, where paths are relative.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from samrt_engines.errors import ExportError

LIMIT_BYTES = 1 << 30
"""Of all constants of a graph together, above which they leave it. Half of protobuf's limit: some graphs that are only measured
hold constants twice."""
INLINE_BYTES = 4096
"""Constants up to this size stay in the graph. Shape inference reads sizes among them."""
_ALIGNMENT = 4096  # of each constant in a data file: readers map it into memory by pages
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Place:
    """Where a constant lies."""

    file: Path
    offset: int
    length: int


def is_external(model: onnx.ModelProto) -> bool:
    """Whether any constant of a graph lies in another file."""
    return any(place_of(tensor) is not None for tensor in model.graph.initializer)


def place_of(tensor: TensorProto) -> Place | None:
    """Where a constant lies, None for one in the graph itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    facts = {entry.key: entry.value for entry in tensor.external_data}
    return Place(Path(facts["location"]), int(facts.get("offset", 0)), int(facts["length"]))


def external_tensor(name: str, data_type: int, dims: Iterable[int], place: Place) -> TensorProto:
    """A constant that lies elsewhere."""
    tensor = TensorProto(name=name, data_type=data_type, dims=list(dims), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place.file), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def values_of(tensor: TensorProto) -> NDArray[Any]:
    """A constant's values; of one that lies elsewhere a read-only view of the file."""
    place = place_of(tensor)
    if place is None:
        return numpy_helper.to_array(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(place.file, dtype, "r", place.offset, tuple(tensor.dims))


def largest_of(tensor: TensorProto) -> float:
    """The largest finite absolute value of a float constant; of one that lies elsewhere it is looked for once."""
    place = place_of(tensor)
    return _largest(numpy_helper.to_array(tensor)) if place is None else _largest_at(place, tensor.data_type)


@lru_cache(maxsize=1 << 14)
def _largest_at(place: Place, data_type: int) -> float:
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    return _largest(np.memmap(place.file, dtype, "r", place.offset, (place.length // dtype.itemsize,)))


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def converted(tensor: TensorProto, dtype: np.dtype[Any], name: str) -> TensorProto:
    """A constant in another type. What lies elsewhere stays there: the result is a file beside the first, written once."""
    place = place_of(tensor)
    if place is None:
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), name)
    file = place.file.with_name(f"{place.file.name}.{place.offset}.{dtype.name}")
    if not file.exists():
        unfinished = file.with_name(f"{file.name}.partial")
        values_of(tensor).astype(dtype).tofile(unfinished)
        os.replace(unfinished, file)
    data_type = helper.np_dtype_to_tensor_dtype(dtype)
    return external_tensor(name, data_type, tensor.dims, Place(file, 0, file.stat().st_size))


def append_aligned(file: BinaryIO) -> int:
    """Pad a data file to where the next constant begins, and return that offset."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    return file.tell()


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder for files that are only needed for a while, in the folder ``beside``; it vanishes in the end."""
    folder = Path(tempfile.mkdtemp(prefix=".scratch.", dir=beside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def openable(model: onnx.ModelProto) -> Iterator[bytes | Path]:
    """What an executor opens: a graph's bytes; where constants lie elsewhere a file near them, for as long as it takes."""
    places = [place for tensor in model.graph.initializer if (place := place_of(tensor)) is not None]
    if not places:
        yield model.SerializeToString(deterministic=True)
        return
    folder = Path(os.path.commonpath([place.file.parent for place in places]))
    descriptor, name = tempfile.mkstemp(prefix=".graph.", suffix=".onnx", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_relative(model, folder).SerializeToString(deterministic=True))
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def store(model: onnx.ModelProto, path: Path) -> bytes | Path:
    """The stored form of a graph: its bytes; where constants lie elsewhere ``path``, written with a data file of the same
    name beside it. Constants that are already there, in that order, stay as they are.
    """
    if not is_external(model):
        content: bytes = model.SerializeToString(deterministic=True)
        return content
    data = path.with_suffix(".data")
    if {place.file for tensor in model.graph.initializer if (place := place_of(tensor)) is not None} != {data}:
        model = _gathered(model, data)
    path.write_bytes(_relative(model, data.parent).SerializeToString(deterministic=True))
    return path


def load_graph(content: bytes | Path) -> onnx.ModelProto:
    """A stored graph, its large constants left where they are."""
    if isinstance(content, bytes):
        return onnx.load_model_from_string(content)
    model = onnx.load_model(content, load_external_data=False)
    for tensor in model.graph.initializer:
        place = place_of(tensor)
        if place is not None:
            _point(tensor, content.parent / place.file)
    return model


def data_files(model: onnx.ModelProto) -> list[Path]:
    """The files that a graph's constants lie in, each once."""
    places = (place_of(tensor) for tensor in model.graph.initializer)
    return list(dict.fromkeys(place.file for place in places if place is not None))


def _gathered(model: onnx.ModelProto, data: Path) -> onnx.ModelProto:
    """The graph with all its external constants copied into one new file."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    with data.open("xb") as target:
        for tensor in new.graph.initializer:
            place = place_of(tensor)
            if place is None:
                continue
            offset = append_aligned(target)
            _copy(place, target)
            tensor.CopyFrom(
                external_tensor(tensor.name, tensor.data_type, tensor.dims, Place(data, offset, place.length))
            )
    return new


def _copy(place: Place, target: BinaryIO) -> None:
    with place.file.open("rb") as source:
        source.seek(place.offset)
        left = place.length
        while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
            target.write(chunk)
            left -= len(chunk)
    if left:
        raise ExportError("a file of constants is too short", got=str(place.file), expected=f"{left} bytes more")


def _relative(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph as written into a folder: paths relative to it."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        place = place_of(tensor)
        if place is not None:
            _point(tensor, place.file.relative_to(folder))
    return new


def _point(tensor: TensorProto, file: Path) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = str(file)
