"""ONNX graphs of a node or two, whose answers numpy knows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from samrt_engines.tensors import Array, TensorSpec

OPSET = 23

LINEAR_INPUTS = (TensorSpec("x", "float32", ("rows", 3)), TensorSpec("shift", "float32", (2,)))
LINEAR_OUTPUTS = (TensorSpec("product", "float32", ("rows", 2)), TensorSpec("y", "float32", ("rows", 2)))
WEIGHT = np.array([[1, -2], [0.5, 4], [-3, 0.25]], np.float32)

ELEMENTS = [
    (TensorProto.FLOAT, "float32"),
    (TensorProto.FLOAT16, "float16"),
    (TensorProto.UINT8, "uint8"),
    (TensorProto.INT32, "int32"),
    (TensorProto.INT64, "int64"),
    (TensorProto.BOOL, "bool"),
]
"""Every element type samrt uses, with numpy's name."""


def model_bytes(nodes: Sequence[onnx.NodeProto], inputs: Any, outputs: Any, **initializers: Array) -> bytes:
    """An ONNX file from nodes and (name, element type, shape) triples."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString())


def linear() -> bytes:
    """product = x @ WEIGHT; y = product + shift."""
    return model_bytes(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "shift"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["rows", 3]), ("shift", TensorProto.FLOAT, [2])],
        [("product", TensorProto.FLOAT, ["rows", 2]), ("y", TensorProto.FLOAT, ["rows", 2])],
        weight=WEIGHT,
    )


def rows(count: int, seed: int = 0) -> dict[str, Array]:
    """Feeds of `linear`."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(count, 3)).astype(np.float32), "shift": rng.normal(size=2).astype(np.float32)}


def square(seed: int = 0, size: int = 64) -> bytes:
    """y = relu(x) @ weight: enough arithmetic for a precision to show."""
    weight = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    return model_bytes(
        [helper.make_node("Relu", ["x"], ["positive"]), helper.make_node("MatMul", ["positive", "weight"], ["y"])],
        [("x", TensorProto.FLOAT, ["rows", size])],
        [("y", TensorProto.FLOAT, ["rows", size])],
        weight=weight,
    )


def identity(element: int, shape: Sequence[int | str | None]) -> bytes:
    """same = t."""
    return model_bytes(
        [helper.make_node("Identity", ["t"], ["same"])], [("t", element, shape)], [("same", element, shape)]
    )


def threes() -> bytes:
    """y = x in rows of three: fails at run time unless the number of elements is a multiple of three."""
    return model_bytes(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["count"])],
        [("y", TensorProto.FLOAT, ["rows", 3])],
        shape=np.array([-1, 3]),
    )
