"""``Attention`` written out, so that its scores and weights are tensors that can be looked at and rounded."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from samrt_engines.errors import ExportError
from samrt_export.precision.elements import FLOAT, node_key

_HANDLED = {"scale", "softmax_precision", "is_causal", "qk_matmul_output_mode", "softcap"}


def expanded_attention(node: onnx.NodeProto, element: int = FLOAT) -> list[onnx.NodeProto]:
    """The nodes of one opset-23 ``Attention`` on 4-D queries, keys and values, as its definition has them.

    element: the ONNX type in which scores, weights and result are stored between the products; the softmax is fp32. The
    inner tensors are called ``<output>/scores`` and ``<output>/weights``.
    Raises ExportError for forms that no graph of ours has (caches, causal masks, 3-D inputs).
    """
    values: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    odd = {name: value for name, value in values.items() if name not in _HANDLED}
    odd |= {name: values[name] for name in ("is_causal", "qk_matmul_output_mode", "softcap") if values.get(name)}
    inputs = [*node.input, "", "", "", ""]
    if odd or any(inputs[4:6]) or sum(bool(name) for name in node.output) != 1:
        raise ExportError(
            f"the Attention node '{node_key(node)}' has a form that cannot be emulated",
            got=", ".join(f"{name}={value}" for name, value in odd.items()) or "a key-value cache",
            expected="queries, keys and values (B, heads, N, d), at most a mask",
        )
    return _Expansion(node_key(node), node.output[0], element).run(inputs, values.get("scale"))


class _Expansion:
    """Builds the nodes of one expansion."""

    def __init__(self, name: str, output: str, element: int) -> None:
        self.name, self.output, self.element = name, output, element
        self.nodes: list[onnx.NodeProto] = []

    def run(self, inputs: list[str], scale: float | None) -> list[onnx.NodeProto]:
        """inputs: q, k, v, mask, by name; no scale means 1 / sqrt(d)."""
        q, k, v, mask = inputs[:4]
        factor = self._root_of_scale(q, scale)
        keys = self.add("Transpose", [k], "keys_transposed", perm=[0, 1, 3, 2], rounded=False)
        scaled_q, scaled_k = self.add("Mul", [q, factor], "q_scaled"), self.add("Mul", [keys, factor], "k_scaled")
        scores = self.add("MatMul", [scaled_q, scaled_k], "scores")
        if mask:
            scores = self.add("Add", [scores, mask], "scores_masked")
        weights = self.add("Softmax", [scores], "weights", axis=-1)
        self.add("MatMul", [weights, v], "")
        return self.nodes

    def _root_of_scale(self, q: str, scale: float | None) -> str:
        """The definition scales queries and keys by the square root each, which keeps the scores small."""
        if scale is not None:
            return self.constant("root_of_scale", [scale**0.5])
        shape = self.add("Shape", [q], "shape", start=3, end=4, rounded=False)
        size = self.add("Cast", [shape], "head_dim", to=FLOAT, rounded=False)
        return self.add("Pow", [size, self.constant("power", [-0.25])], "root_of_scale", rounded=True)

    def constant(self, part: str, values: list[float]) -> str:
        output = f"{self.output}/{part}"
        tensor = helper.make_tensor(output, TensorProto.FLOAT, [len(values)], values)
        self.nodes.append(helper.make_node("Constant", [], [output], name=f"{self.name}/{part}", value=tensor))
        return output

    def add(self, op: str, inputs: list[str], part: str, *, rounded: bool = True, **attributes: Any) -> str:
        """Append a node; its result is rounded to the element type unless told otherwise. Returns the result's name."""
        output = f"{self.output}/{part}" if part else self.output
        narrow = rounded and self.element != FLOAT
        made = f"{output}/exact" if narrow else output
        self.nodes.append(helper.make_node(op, inputs, [made], name=f"{self.name}/{part or 'result'}", **attributes))
        if narrow:
            stored = f"{output}/stored"
            self.nodes.append(helper.make_node("Cast", [made], [stored], name=f"{stored}/cast", to=self.element))
            self.nodes.append(helper.make_node("Cast", [stored], [output], name=f"{output}/cast", to=FLOAT))
        return output
