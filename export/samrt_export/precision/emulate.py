"""A typed graph's arithmetic on a CPU: fp32 operators, and every tensor that the typed graph stores narrow is rounded.

ONNX Runtime itself will not do: on a CPU it widens fp16 operators to fp32 and drops the conversions between two of them,
so that nothing is rounded (1.31, at every optimisation level; measured), and it has hardly any bf16 operator. An explicit
pair of Casts is kept by it at every level.

What is emulated is storage: overflow, underflow and rounding of every tensor between operators, and of scores and weights
inside ``Attention``. What is not: sums that a GPU accumulates in fp16. Parity is measured again where a plan is built.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from samrt_export.external import converted, data_files, is_external, load_graph, openable, place_of, scratch_folder
from samrt_export.precision.attention import expanded_attention
from samrt_export.precision.elements import ELEMENT, EXACT, FLOAT, element_types, node_key

_PRECISION = {element: precision for precision, element in ELEMENT.items()}


def is_typed(model: onnx.ModelProto) -> bool:
    """Whether a graph has narrow constants or Casts to narrow types: whether it needs `emulated` on a CPU."""
    casts = (helper.get_node_attr_value(node, "to") for node in model.graph.node if node.op_type == "Cast")
    return any(tensor.data_type in _PRECISION for tensor in model.graph.initializer) or any(
        element in _PRECISION for element in casts
    )


def runnable(content: bytes | Path) -> bytes | Path:
    """What to run on a CPU for an ONNX file whose constants it holds: a typed graph's emulation, any other graph itself."""
    model = load_graph(content)
    return emulated(model).SerializeToString() if is_typed(model) else content


@contextmanager
def open_runnable(content: bytes | Path, beside: Path | None = None) -> Iterator[bytes | Path]:
    """`runnable` for any graph. What a large typed one needs is there until the end.

    beside: a folder to write to, on a disk with room for the graph's constants; None is the system's for temporary files
    """
    model = load_graph(content)
    if not is_external(model) or not is_typed(model):
        yield runnable(content)
        return
    assert isinstance(content, Path)
    # ONNX Runtime reads no constants from outside a graph's own folder, and a bundle's is not for writing.
    with scratch_folder(beside or Path(tempfile.gettempdir())) as folder:
        for file in (content, *data_files(model)):
            shutil.copyfile(file, folder / file.name)
        with openable(emulated(load_graph(folder / content.name))) as path:
            yield path


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The fp32 graph that computes what a typed graph computes. Tensors keep their names."""
    types = element_types(model)
    new = onnx.ModelProto()
    new.ir_version = model.ir_version
    new.opset_import.extend(model.opset_import)
    graph = new.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    stored = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in _PRECISION and place_of(tensor) is not None:
            stored[tensor.name] = _renamed(tensor, f"{tensor.name}/stored")
            graph.initializer.append(stored[tensor.name])
        else:
            graph.initializer.append(_widened(tensor))
    for node in model.graph.node:
        for name in node.input:
            if name in stored:  # widened where it is first used: not all of a large graph's constants at once
                cast = helper.make_node("Cast", [stored.pop(name).name], [name], name=f"{name}/cast", to=FLOAT)
                graph.node.append(cast)
        graph.node.extend(_emulated_node(node, types))
    return new


def _widened(tensor: TensorProto) -> TensorProto:
    return converted(tensor, np.dtype(np.float32), tensor.name) if tensor.data_type in _PRECISION else tensor


def _renamed(tensor: TensorProto, name: str) -> TensorProto:
    new = TensorProto()
    new.CopyFrom(tensor)
    new.name = name
    return new


def _emulated_node(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    narrow = [name for name in node.output if name and types[name] in _PRECISION]
    new = onnx.NodeProto()
    new.CopyFrom(node)
    if node.op_type == "Cast":
        return _emulated_cast(new, types)
    if not narrow or node.op_type in EXACT:
        return [new]
    element = types[narrow[0]]
    if node.op_type == "Attention":
        return expanded_attention(node, element)
    roundings = []
    for index, name in enumerate(node.output):
        if name in narrow:
            new.output[index] = f"{name}/exact"
            roundings += rounding(new.output[index], name, element)
    return [new, *roundings]


def _emulated_cast(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    source, target = types[node.input[0]], types[node.output[0]]
    if target in _PRECISION:
        return rounding(node.input[0], node.output[0], target)
    if source in _PRECISION and target == FLOAT:
        return [helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node_key(node))]
    return [node]


def rounding(source: str, target: str, element: int) -> list[onnx.NodeProto]:
    """float32 -> narrow -> float32."""
    stored = f"{target}/stored"
    return [
        helper.make_node("Cast", [source], [stored], name=f"{stored}/cast", to=element),
        helper.make_node("Cast", [stored], [target], name=f"{target}/cast", to=FLOAT),
    ]
