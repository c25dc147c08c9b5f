"""A user's file as the bundle's graph: the picture's layout before it, the parts of its first output apart after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from samrt.proposals.detections import BOXES, COEFFICIENTS, IMAGE, PROTOTYPES, SCORES
from samrt_engines.backends import CPU_PROVIDER, import_onnxruntime
from samrt_engines.errors import CheckpointError
from samrt_engines.sessions import LOG_ERRORS, load_session
from samrt_engines.tensors import Array
from samrt_export.families.fast_sam.detector import PARTS
from samrt_export.families.fast_sam.file import DetectorFile, check_answers, read_file
from samrt_export.onnx_module import OnnxModule
from samrt_export.samples import sample_image

SMALLEST_X = 40_000_000
"""Parameters: FastSAM-x has 68 million of them, FastSAM-s less than 12."""


class BroughtDetector(OnnxModule):
    """A user's file. `forward` runs it as it came."""

    def __init__(self, file: DetectorFile) -> None:
        super().__init__(_wrapped(file))
        self.file = file
        ort = import_onnxruntime()
        settings = ort.SessionOptions()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = LOG_ERRORS
        self._session: Any = load_session(
            ort, file.content, settings, providers=[(CPU_PROVIDER, {})], name="the file as it came"
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the family's table."""
        everything, prototypes = self.answers(image.numpy()).values()
        return *torch.from_numpy(everything).split(PARTS, 1), torch.from_numpy(prototypes)

    def answers(self, image: Array) -> dict[str, Array]:
        """The file's outputs. image: float32 (1, S, S, 3), 0..255"""
        images = np.ascontiguousarray(image.transpose(0, 3, 1, 2)) / np.float32(255)
        names = list(self.file.outputs)
        return dict(zip(names, self._session.run(names, {self.file.image: images}), strict=True))


def open_file(path: Path, model: str, default_size: int) -> nn.Module:
    """Read a user's file as the module of a model. Raises CheckpointError."""
    file = read_file(path, model, default_size)
    _check_which(file.folded, path, model)
    module = BroughtDetector(file)
    check_answers(path, model, file.size, module.answers(sample_image(1, file.size, 0)))
    return module


def _check_which(graph: onnx.ModelProto, path: Path, model: str) -> None:
    """Refuse the large model's file for the small one, and the other way round: only the number of parameters tells."""
    count = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer)
    looks = "fast-sam-x" if count >= SMALLEST_X else "fast-sam-s"
    if model in ("fast-sam-s", "fast-sam-x") and looks != model:
        raise CheckpointError(
            f"{path.name} is not the file of {model}",
            got=f"{count / 1e6:.1f} million parameters",
            expected="about 12 million for fast-sam-s, 68 for fast-sam-x",
            fix=f"it looks like {looks}: samrt export {looks} --checkpoint {path.name} ...",
        )


def _wrapped(file: DetectorFile) -> onnx.ModelProto:
    """The folded graph between the picture as bundles have it and outputs that parity is measured on one by one.

    In one tensor, boxes of a thousand pixels would hide any error in scores from 0 to 1.
    """
    graph, (first, second) = file.folded.graph, file.outputs
    ours = {IMAGE, BOXES, SCORES, COEFFICIENTS, PROTOTYPES}
    names = {name: f"file/{name}" for node in graph.node for name in (*node.input, *node.output) if name in ours}
    names |= {second: PROTOTYPES}
    nodes = [
        helper.make_node("Transpose", [IMAGE], ["samrt/channels_first"], perm=(0, 3, 1, 2)),
        helper.make_node("Div", ["samrt/channels_first", "samrt/levels"], [names.get(file.image, file.image)]),
        *(_renamed(node, names) for node in graph.node),
        helper.make_node("Split", [names.get(first, first), "samrt/parts"], [BOXES, SCORES, COEFFICIENTS], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array(255, np.float32), "samrt/levels"),
        numpy_helper.from_array(np.array(PARTS, np.int64), "samrt/parts"),
    ]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
        constants.append(tensor)
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output}
    anchors = sizes[first][2] if len(sizes[first]) == 3 else 0
    outputs = [
        *((name, [1, part, anchors]) for name, part in zip((BOXES, SCORES, COEFFICIENTS), PARTS, strict=True)),
        (PROTOTYPES, sizes[second]),
    ]
    wrapped = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info(IMAGE, onnx.TensorProto.FLOAT, [1, file.size, file.size, 3])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs],
        constants,
    )
    opsets = [entry for entry in file.folded.opset_import if entry.domain in ("", "ai.onnx")]
    return helper.make_model(wrapped, producer_name="samrt", opset_imports=opsets, ir_version=file.folded.ir_version)


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A node with other tensor names, and without traces of the exporter."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    new.input[:] = [names.get(name, name) for name in node.input]
    new.output[:] = [names.get(name, name) for name in node.output]
    new.doc_string = ""
    del new.metadata_props[:]
    return new
