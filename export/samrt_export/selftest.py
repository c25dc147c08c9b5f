"""Makes a bundle's self-test: what fp32 PyTorch answers to one picture and one prompt, kept for GPUs that have no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from samrt.selftest import Expected, SelfTest, expected_from_output
from samrt_engines.executor import Executor, open_executor
from samrt_engines.tensors import Array
from samrt_export.parity import TOLERANCE, run_module
from samrt_export.precision.emulate import open_runnable
from samrt_export.registry import GraphSpec

SEED = 100
"""Of the inputs; not one of those that parity is measured on."""
_MARGIN = 4
"""How much larger an error may be on the target than here: another order of sums, other kernels."""
_LEAST = TOLERANCE["fp16"]
"""Of any precision: fp32 products run in TF32 on a GPU, which has the digits of fp16."""


def make_selftest(specs: Sequence[GraphSpec], contents: Mapping[str, bytes | Path]) -> SelfTest:
    """Run the modules in their chain, and the stored graphs beside them to see how far apart they may be.

    specs: in the order in which they run; contents: graph -> ONNX file of the form that targets without one of their own get
    An output's tolerance is that of fp16, or what the chain of stored graphs measures here with a margin: errors of one
    graph go through the next.
    """
    inputs = _inputs(specs)
    right = dict(inputs)
    wanted: dict[str, dict[str, Expected]] = {}
    for spec in specs:
        made = run_module(spec, {tensor.name: right[tensor.name] for tensor in spec.inputs})
        right |= made
        wanted[spec.name] = {name: expected_from_output(output, _LEAST) for name, output in made.items()}
    with ExitStack() as stack:
        executors = _OneAtATime(specs, contents, stack)
        errors = {(row.graph, row.output): row.relative_l2 for row in SelfTest(inputs, wanted).run(executors)}
    expected = {
        graph: {
            name: Expected(output.samples, max(output.tolerance, _MARGIN * errors[graph, name]))
            for name, output in outputs.items()
        }
        for graph, outputs in wanted.items()
    }
    return SelfTest(inputs, expected)


def _inputs(specs: Sequence[GraphSpec]) -> dict[str, Array]:
    """What no graph makes, at the sizes of the usual check. Pictures are whole numbers: they take a quarter of the room."""
    made = {tensor.name for spec in specs for tensor in spec.outputs}
    inputs: dict[str, Array] = {}
    for spec in specs:
        if all(tensor.name in made for tensor in spec.inputs):
            continue
        for name, values in spec.sample(spec.checks[0], SEED).items():
            if name not in made:
                picture = values.ndim == 4 and values.shape[-1] == 3 and values.max() > 1  # of 0..255
                inputs[name] = values.round() if picture else values
    return inputs


class _OneAtATime(Mapping[str, Executor]):
    """Executors of stored graphs, of which the last asked for is open: all together may be larger than the memory."""

    def __init__(self, specs: Sequence[GraphSpec], contents: Mapping[str, bytes | Path], stack: ExitStack) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._contents = contents
        self._open = stack

    def __getitem__(self, graph: str) -> Executor:
        spec, content = self._specs[graph], self._contents[graph]
        self._open.close()
        beside = content.parent if isinstance(content, Path) else None
        model = self._open.enter_context(open_runnable(content, beside))
        return self._open.enter_context(
            open_executor(
                model, backend="onnxruntime", device="cpu", inputs=spec.inputs, outputs=spec.outputs, name=spec.name
            )
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
