"""Chooses the nodes of a narrow graph that stay in fp32: the smallest set found with which it holds its tolerance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx

from samrt_engines.errors import ParityError
from samrt_engines.executor import open_executor
from samrt_export.external import openable
from samrt_export.flops import COUNTED
from samrt_export.parity import ReferenceRun
from samrt_export.precision.divergence import error_by_node, first_divergence
from samrt_export.precision.elements import node_key
from samrt_export.precision.emulate import emulated
from samrt_export.precision.hazards import find_hazards
from samrt_export.precision.ranges import measure_ranges
from samrt_export.precision.tolerance import NARROW_TOLERANCE, SHARE, worst_output
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec

MAX_TRIALS = 32


@dataclass(frozen=True)
class Choice:
    """A typed graph and how it came about.

    kept: node -> reason, in the graph's order. error: the largest relative error of an output. trials: how many sets of
    nodes were measured.
    """

    typed: onnx.ModelProto
    kept: dict[str, str]
    error: float
    trials: int

    def to_json(self) -> list[dict[str, Any]]:
        """The manifest's ``kept_fp32``: one entry for each operator and reason."""
        ops = {node_key(node): node.op_type for node in self.typed.graph.node}
        groups: dict[tuple[str, str], list[str]] = {}
        for node, reason in self.kept.items():
            groups.setdefault((ops[node], reason), []).append(node)
        return [
            {"op": op, "reason": reason, "count": len(nodes), "nodes": nodes} for (op, reason), nodes in groups.items()
        ]


def choose_islands(model: onnx.ModelProto, spec: GraphSpec, precision: str, runs: tuple[ReferenceRun, ...]) -> Choice:
    """Make the typed form of an fp32 graph with as few fp32 nodes as hold `SHARE` of the tolerance on every run.

    What `find_hazards` calls binding stays. Of the rest nothing, then everything is tried; what is not needed is dropped
    again, group by group and then, but for groups that are one thing, in halves; when all hazards do not suffice, the nodes
    that add most error join them.
    Of each run the first feeds serve: at its usual sizes a graph may not see all that it can, such as mask prompts.
    Raises ParityError, naming the first node that differs, when no set found within `MAX_TRIALS` holds the tolerance.
    """
    hazards = find_hazards(model, measure_ranges(model, [run.feeds[0] for run in runs], precision), precision)
    whole = frozenset(frozenset(hazard.nodes) for hazard in hazards if hazard.whole)
    search = _Search(model, spec, precision, runs, whole)
    reasons = {node: hazard.reason for hazard in hazards for node in hazard.nodes}
    binding = frozenset(node for hazard in hazards if hazard.binding for node in hazard.nodes)
    groups = [frozenset(hazard.nodes) for hazard in hazards if not hazard.binding]
    kept = binding
    if not search.holds(kept):
        kept = binding.union(*groups)
        if not search.holds(kept):
            added = search.grow(kept)
            groups.append(added)
            reasons |= dict.fromkeys(added, "adds more error than its share")
            kept |= added
        kept = search.shrink(kept, groups)
    chosen = {key: reasons[key] for node in model.graph.node if (key := node_key(node)) in kept}
    typed = typed_graph(model, precision, chosen)
    return Choice(typed, chosen, search.measured[kept], len(search.measured))


@dataclass
class _Search:
    """Measures sets of fp32 nodes, each once."""

    model: onnx.ModelProto
    spec: GraphSpec
    precision: str
    runs: tuple[ReferenceRun, ...]
    whole: frozenset[frozenset[str]] = frozenset()
    """Groups that are not divided."""
    measured: dict[frozenset[str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bar = SHARE * NARROW_TOLERANCE[self.precision]

    @property
    def exhausted(self) -> bool:
        return len(self.measured) >= MAX_TRIALS

    def holds(self, kept: frozenset[str]) -> bool:
        """Whether the graph with these fp32 nodes is within the bar."""
        if kept not in self.measured:
            self.measured[kept] = self._measure(kept)
        return self.measured[kept] <= self.bar

    def _measure(self, kept: frozenset[str]) -> float:
        model = emulated(typed_graph(self.model, self.precision, dict.fromkeys(kept, "")))
        with (
            openable(model) as content,
            open_executor(
                content, device="cpu", inputs=self.spec.inputs, outputs=self.spec.outputs, name=self.spec.name
            ) as executor,
        ):
            ours = [executor.run(run.feeds[0]) for run in self.runs]
        return worst_output(ours, self.spec, self.runs)

    def grow(self, kept: frozenset[str]) -> frozenset[str]:
        """The fewest of the worst nodes, doubled each time, that hold the bar with what is kept.

        Products and attention are tried when all else has been: their speed is what narrow types are for, and TensorRT
        for RTX 1.7 does not build an fp32 ``Attention`` with a mask between fp16 neighbours.
        """
        typed = typed_graph(self.model, self.precision, dict.fromkeys(kept, ""))
        added = error_by_node(self.model, typed, self.runs[-1].feeds[0])
        others = [node for node in self.model.graph.node if node_key(node) not in kept]
        light = [node_key(node) for node in others if node.op_type not in COUNTED]
        for nodes in (light, [node_key(node) for node in others]):
            # In the end all of them: a steep function blames its input.
            worst = sorted(nodes, key=lambda key: -added.get(key, 0.0))
            count = 1
            while worst and not self.exhausted:
                some = frozenset(worst[:count])
                if self.holds(kept | some):
                    return some
                if count >= len(worst):
                    break
                count *= 2
        raise ParityError(
            f"{self.spec.name}: no {self.precision} form found within tolerance",
            got=f"relative error {min(self.measured.values()):.1e}; {self._first_difference(typed)}",
            expected=f"at most {self.bar:.1e} ({SHARE:.0%} of the tolerance) on the CPU",
            fix="--precision bf16 has fp32's range; --precision fp32 always holds",
        )

    def _first_difference(self, typed: onnx.ModelProto) -> str:
        first = first_divergence(self.model, typed, self.runs[-1].feeds[0], NARROW_TOLERANCE[self.precision])
        return f"first out of tolerance: {first}" if first else "no node alone is out of tolerance"

    def shrink(self, kept: frozenset[str], groups: Iterable[frozenset[str]]) -> frozenset[str]:
        """Drop groups, then halves of groups, as long as the bar holds."""
        order = {node_key(node): index for index, node in enumerate(self.model.graph.node)}
        pending = sorted(groups, key=len, reverse=True)
        while pending and not self.exhausted:
            group = pending.pop(0)
            if self.holds(kept - group):
                kept -= group
            elif len(group) > 1 and group not in self.whole:
                nodes = sorted(group, key=lambda node: order[node])
                half = len(nodes) // 2
                pending += [frozenset(nodes[:half]), frozenset(nodes[half:])]
        return kept
