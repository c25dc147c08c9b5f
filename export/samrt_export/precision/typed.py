"""A strongly typed fp16 or bf16 graph from an fp32 one: every tensor has a width, and Casts stand only between widths.

The surface stays float32. A bundle's tensors are declared once for all forms of a graph, so that a runtime may run the
encoder on one form and the decoder on another; the two Casts are fused into their neighbours by every GPU backend.

An operator is narrow or fp32 as a whole. ``LayerNormalization`` sums in fp32 in either case and says so (``stash_type``).
``Attention`` cannot say it: TensorRT (RTX 1.7) refuses a graph that sets ``softmax_precision``. Its fused kernels keep the
softmax in fp32 by themselves, and the parity gate on the target looks at what they really did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper

from samrt_engines.errors import ExportError
from samrt_export.external import converted, largest_of
from samrt_export.precision.elements import (
    ELEMENT,
    FLOAT,
    LARGEST,
    MOVES,
    NUMPY,
    element_types,
    narrow_slots,
    node_key,
    opset_versions,
)


def typed_graph(model: onnx.ModelProto, precision: str, keep_fp32: Mapping[str, str]) -> onnx.ModelProto:
    """The typed form of an fp32 graph.

    precision: "fp16" or "bf16". keep_fp32: node -> reason, the nodes that compute in fp32; those of `forced_fp32` do so
    too, and moves between two of them. Raises ExportError for a node that is not there.
    """
    unknown = keep_fp32.keys() - {node_key(node) for node in model.graph.node}
    if unknown:
        raise ExportError(f"{model.graph.name}: no such node to keep in fp32", got=", ".join(sorted(unknown)))
    forced = forced_fp32(model, precision)
    return _Typing(model, precision, frozenset(keep_fp32) | frozenset(forced)).run()


def forced_fp32(model: onnx.ModelProto, precision: str) -> dict[str, str]:
    """Node -> reason, for nodes that have no narrow form: the operator lacks it, or a constant would become infinite."""
    types, opsets = element_types(model), opset_versions(model)
    too_large = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            largest = largest_of(tensor)
            if largest > LARGEST[precision]:
                too_large[tensor.name] = largest
    forced = {}
    for node in model.graph.node:
        slots = narrow_slots(node, types, opsets, precision)
        floats = [name for name in (*node.input, *node.output) if name and types[name] == FLOAT]
        if slots is None and floats:
            forced[node_key(node)] = f"no {precision} form of {node.op_type}"
        for name in node.input:
            if name in too_large:
                limit = LARGEST[precision]
                forced[node_key(node)] = f"a constant reaches {too_large[name]:.3g}, {precision} ends at {limit:.4g}"
    return forced


def redundant_casts(model: onnx.ModelProto) -> list[str]:
    """Casts that a better graph would not have: to the type a tensor has, twice the same, or there and back."""
    types = element_types(model)
    made_by = {output: node for node in model.graph.node for output in node.output}
    seen: set[tuple[str, int]] = set()
    found = []
    for node in model.graph.node:
        if node.op_type != "Cast":
            continue
        target = types[node.output[0]]
        source = made_by.get(node.input[0])
        back = source is not None and source.op_type == "Cast" and types[source.input[0]] == target
        if (node.input[0], target) in seen or types[node.input[0]] == target or back:
            found.append(node_key(node))
        seen.add((node.input[0], target))
    return found


@dataclass
class _Typing:
    """One conversion under way."""

    model: onnx.ModelProto
    precision: str
    wide: frozenset[str]
    """Nodes that compute in fp32."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    """The new graph's nodes so far."""
    casts: dict[tuple[str, bool], str] = field(default_factory=dict)
    """(tensor, whether narrow) -> the name under which it is there in that width."""

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        self.types = element_types(self.model)
        self.opsets = opset_versions(self.model)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.slots = {
            node_key(node): narrow_slots(node, self.types, self.opsets, self.precision) for node in graph.node
        }
        self.wide |= self._wide_moves()
        self.narrow: set[str] = set()  # tensors that are narrow where they are made
        self.used: dict[str, TensorProto] = {}  # constants, in the widths that are used
        for node in graph.node:
            self._add(node)
        return self._finished()

    def _wide_moves(self) -> frozenset[str]:
        """Moves on a way from fp32 to fp32: narrow, they would round what needs no rounding."""
        from_wide = {value.name for value in self.model.graph.input if self.types[value.name] == FLOAT}
        candidates = []
        for node in self.model.graph.node:
            moved = self._follows(node) and any(name in from_wide for name in node.input)
            if moved or self._is_conversion(node):
                candidates.append(node)
            if moved or self._is_conversion(node) or node_key(node) in self.wide:
                from_wide.update(name for name in node.output if self.types.get(name) == FLOAT)
        to_wide = set(self.outputs)
        for node in self.model.graph.node:
            if node_key(node) in self.wide:
                to_wide.update(node.input)
        moves = set()
        for node in reversed(candidates):
            if any(name in to_wide for name in node.output):
                moves.add(node_key(node))
                to_wide.update(node.input)
        return frozenset(moves)

    def _follows(self, node: onnx.NodeProto) -> bool:
        return node.op_type in MOVES and node_key(node) not in self.wide

    def _is_conversion(self, node: onnx.NodeProto) -> bool:
        """A Cast from integers to float: like a move, of something exact."""
        return node.op_type == "Cast" and self.types[node.input[0]] != FLOAT == self.types[node.output[0]]

    def _add(self, node: onnx.NodeProto) -> None:
        """Append a node, after the Casts it needs."""
        slots = self.slots[node_key(node)]
        makes_float = any(name and self.types[name] == FLOAT for name in node.output)
        if slots is None or node_key(node) in self.wide:
            narrow_inputs, narrow_outputs = frozenset[int](), frozenset[int]()
        elif makes_float:
            narrow_inputs, narrow_outputs = slots
        else:  # comparisons, shapes: no reason to convert what they look at
            floats = [name for name in node.input if name and self.types[name] == FLOAT]
            as_narrow = all(name in self.narrow for name in floats if name not in self.initializers)
            narrow_inputs, narrow_outputs = slots[0] if as_narrow else frozenset[int](), frozenset[int]()
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name and self.types[name] == FLOAT:
                new.input[index] = self._in_width(name, narrow=index in narrow_inputs)
            elif name in self.initializers:
                self.used[name] = self.initializers[name]
        for index in narrow_outputs:
            name = node.output[index]
            self.narrow.add(name)
            if name in self.outputs:
                new.output[index] = self._fresh(name, narrow=True)
        if narrow_outputs:
            self._retype(new)
        self.nodes.append(new)
        for index in narrow_outputs:
            if node.output[index] in self.outputs:
                self.casts[node.output[index], True] = new.output[index]
                self._cast(new.output[index], node.output[index], narrow=False)
                self.casts[node.output[index], False] = node.output[index]

    def _retype(self, node: onnx.NodeProto) -> None:
        """Attributes that name a type."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = ELEMENT[self.precision]

    def _in_width(self, name: str, *, narrow: bool) -> str:
        """The name under which a float tensor is there in a width; a constant is converted, another gets one Cast."""
        if name in self.initializers:
            key = self._fresh(name, narrow=True) if narrow else name
            if key not in self.used:
                self.used[key] = self._narrow_constant(name, key) if narrow else self.initializers[name]
            return key
        if (name, narrow) in self.casts:
            return self.casts[name, narrow]
        if (name in self.narrow) == narrow:
            return name
        fresh = self._fresh(name, narrow=narrow)
        self._cast(name, fresh, narrow=narrow)
        self.casts[name, narrow] = fresh
        return fresh

    def _cast(self, source: str, target: str, *, narrow: bool) -> None:
        element = ELEMENT[self.precision] if narrow else FLOAT
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=element))

    def _fresh(self, name: str, *, narrow: bool) -> str:
        return f"{name}/{self.precision if narrow else 'fp32'}"

    def _narrow_constant(self, name: str, key: str) -> TensorProto:
        return converted(self.initializers[name], NUMPY[self.precision], key)

    def _finished(self) -> onnx.ModelProto:
        new = onnx.ModelProto()
        new.CopyFrom(onnx.ModelProto(ir_version=self.model.ir_version, producer_name=self.model.producer_name))
        new.opset_import.extend(self.model.opset_import)
        graph = new.graph
        graph.name = self.model.graph.name
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.used.values())
        return new
