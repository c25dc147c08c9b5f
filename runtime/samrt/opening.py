"""Opening the graphs of a bundle: which backend runs each, and in which of its stored forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from samrt.bundle import Bundle
from samrt.graphs import PROMPT_ENCODER, choose_form, find_form, runs_on_cuda
from samrt.machine import cpu_name, usable_cores
from samrt.manifest import Form, Graph
from samrt_engines.choice import TOLERANCE, Decision, Option, installed_version, open_fastest, sample_feeds
from samrt_engines.errors import DeviceError
from samrt_engines.executor import Executor, open_executor
from samrt_engines.tensors import Array

CPU_BACKENDS = ("onnxruntime", "openvino")
"""What "auto" chooses from on a CPU, by measuring; the first is the reference."""

_NARROW_TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}  # of the export gate


@dataclass(frozen=True, slots=True)
class OpenGraph:
    """A graph of a bundle, ready to run."""

    executor: Executor
    form: Form
    decision: Decision | None
    """Why this backend, where "auto" had a choice."""

    @property
    def precision(self) -> str:
        """What it computes in: the form's, unless the backend chooses."""
        return self.executor.precision or self.form.precision


def open_graph(
    bundle: Bundle, name: str, *, backend: str, device: str, threads: int | None, precision: str | None
) -> OpenGraph:
    """Open one graph. Arguments and errors: see `samrt.load`."""
    graph = bundle.manifest.graphs[name]
    # One thread for so small a graph: a pool of its own would still spin for work while the mask decoder's runs, and a
    # click on SAM 2.1 tiny took 52 ms instead of 19 (4 cores, ONNX Runtime 1.31). Nor is there anything to gain elsewhere.
    small = name == PROMPT_ENCODER
    threads = 1 if small else threads

    def open_on(backend: str, form: Form, device: str = device) -> Executor:
        return open_executor(
            bundle.read_model(form),
            backend=backend,
            device=device,
            threads=threads,
            precision=precision,
            inputs=graph.inputs,
            outputs=graph.outputs,
            ranges=graph.ranges,
            name=name,
        )

    if backend != "auto" or small or precision is not None or runs_on_cuda(device):
        form = choose_form(graph, name, backend, device)
        return OpenGraph(open_on(backend, form), form, None)
    installed = [one for one in CPU_BACKENDS if one == CPU_BACKENDS[0] or installed_version(one) is not None]
    suited = [one for one in installed if find_form(graph, one, "cpu")] or installed[:1]
    forms = {one: choose_form(graph, name, one, "cpu") for one in suited}
    options = [Option(one, form.file.sha256, partial(open_on, one, form, "cpu")) for one, form in forms.items()]
    executor, decision = open_fastest(
        options,
        lambda: _feeds(graph),
        graph=name,
        machine=f"{cpu_name()}, {usable_cores()} cores",
        threads=threads,
        tolerance=max(_NARROW_TOLERANCE.get(form.precision, TOLERANCE) for form in forms.values()),
    )
    return OpenGraph(executor, forms[decision.chosen], decision)


def open_plan_graphs(
    bundle: Bundle, names: Sequence[str], *, device: str, allow_unverified: bool
) -> tuple[dict[str, OpenGraph], ExitStack]:
    """Open the recorded TensorRT plans of several graphs, and what closes them and the memory they share.

    Errors: see `samrt.load`.
    """
    from samrt.build import open_plans  # here: nobody else needs it, and `import samrt` is quick

    if device not in ("auto", "cuda") and not device.startswith("cuda:"):
        raise DeviceError("TensorRT runs on GPUs", got=f"device={device!r}", expected="auto, cuda or cuda:N")
    forms = {name: choose_form(bundle.manifest.graphs[name], name, "tensorrt", "cuda") for name in names}
    executors, resources = open_plans(
        bundle, forms, "cuda" if device == "auto" else device, allow_unverified=allow_unverified
    )
    return {name: OpenGraph(executors[name], forms[name], None) for name in names}, resources


def _feeds(graph: Graph) -> Mapping[str, Array]:
    """What to measure with: the sizes the graph is made for, and a picture's values where there is a picture."""
    sizes = {symbol: profile.opt for symbol, profile in graph.profiles.items()}
    pictures = {spec.name: (0.0, 255.0) for spec in graph.inputs if len(spec.shape) == 4 and spec.shape[3] == 3}
    return sample_feeds(graph.inputs, sizes, pictures)
