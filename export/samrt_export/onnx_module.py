"""A model that comes as ONNX, where samrt holds no network of its own to trace."""

from __future__ import annotations

import onnx
from torch import nn


class OnnxModule(nn.Module):
    """What stands where a traced module stands: `graph` is stored, and `forward` says what it has to compute.

    ``forward`` runs the file as it came, unchanged and unoptimised, so that parity tells whether the stored graph, and
    every narrow form of it, still is that file.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        """graph: with the inputs and outputs of its `GraphSpec`"""
        super().__init__()
        self.graph = graph

    def copy_graph(self) -> onnx.ModelProto:
        """The graph, for the caller to change."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.graph)
        return copy
