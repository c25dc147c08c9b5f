"""A bundle's graphs become TensorRT plans: built, tested against the bundle's self-test, and only then recorded.

    ONNX form ── build ──> plan ── self-test on this GPU ──> manifest.json ── load ──> executor
                                          │ wrong                  │ not recorded, stale
                                          └──> SelfTestError       └──> PlanError

A plan is code. Only plans whose checksum the manifest holds are ever loaded.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samrt.bundle import Bundle, open_bundle
from samrt.graphs import choose_form
from samrt.manifest import MANIFEST_NAME, Form, Graph, parse_manifest
from samrt.selftest import SelfTest, SelfTestRow, check_rows, usual_error
from samrt_engines.errors import BundleError, PlanError
from samrt_engines.executor import Executor
from samrt_engines.tensorrt import (
    BuildOptions,
    BuildStep,
    ExecutorOptions,
    Plan,
    PlanCache,
    PlanEntry,
    PlanKey,
    Scratch,
    TensorRTExecutor,
    build_plan,
    explain_difference,
    open_cuda,
    plan_key,
)
from samrt_engines.tensorrt.cache import FOLDER

Progress = Callable[[str, BuildStep], None]
"""Called with a graph's name and how far its build has come."""


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """One graph's plan. What is None was not measured: the plan was there already."""

    graph: str
    precision: str
    key: PlanKey
    plan_bytes: int
    parse_seconds: float | None
    build_seconds: float | None
    layers: int | None
    attentions: int | None
    decomposable: int | None
    """How many of the attentions may become several kernels: 0 says that all are fused."""

    def to_json(self) -> dict[str, Any]:
        """All fields; the key as its own JSON."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "key"} | {"key": self.key.to_json()}


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did."""

    path: Path
    graphs: tuple[BuiltGraph, ...]
    selftest: tuple[SelfTestRow, ...] = field(default=())
    """Empty for `check`, which has no GPU to test on."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "seconds": self.seconds,
            "graphs": [graph.to_json() for graph in self.graphs],
            "selftest": [row.to_json() for row in self.selftest],
        }


def check_bundle(
    path: str | os.PathLike[str], *, sm: str | None = None, progress: Progress | None = None
) -> BuildReport:
    """Build every graph through TensorRT for RTX, which needs no GPU, and throw the plans away.

    sm: compute capability, "86" for 8.6; None: the GPU at hand
    Raises BundleError, MissingExtraError, BuildError naming the nodes that do not parse or build.
    """
    started = time.perf_counter()
    bundle = open_bundle(path)
    options = BuildOptions(flavour="rtx", sm=sm)
    built = []
    for name, (graph, form) in _forms(bundle).items():
        plan = _build(bundle, name, graph, form, options, None, progress)
        built.append(_built(name, form, plan))
    return BuildReport(bundle.folder, tuple(built), seconds=time.perf_counter() - started)


def build_bundle(
    path: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    allow_unverified: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the plans that this GPU needs and a bundle lacks, test them, and record them in its manifest.

    allow_unverified: record them even if they fail the self-test, or the bundle has none

    Raises BundleError, DeviceError without a GPU, MissingExtraError, BuildError, PlanError when the disk is full,
    SelfTestError when the plans do not give the model's answers; then nothing is recorded.
    """
    started = time.perf_counter()
    options = options or BuildOptions()
    bundle = open_bundle(path)
    driver = open_cuda(options.device).describe().driver
    cache = PlanCache(bundle.folder / FOLDER)
    plans: dict[str, Plan] = {}
    built = []
    for name, (graph, form) in _forms(bundle).items():
        key = _key(graph, form, options)

        def build(name: str = name, graph: Graph = graph, form: Form = form, key: PlanKey = key) -> Plan:
            plan = _build(bundle, name, graph, form, options, cache.load_timing(key, driver), progress)
            if plan.facts is not None and plan.facts.timing_cache is not None:
                cache.save_timing(key, driver, plan.facts.timing_cache)
            return plan

        plans[name] = cache.get_or_build(name, key, build)
        built.append(_built(name, form, plans[name]))
    rows = _test(bundle, plans, options.device, allow_unverified=allow_unverified)
    record_plans(bundle.folder, plans)
    return BuildReport(bundle.folder, tuple(built), rows, time.perf_counter() - started)


def open_plans(
    bundle: Bundle, forms: Mapping[str, Form], device: str, *, allow_unverified: bool = False
) -> tuple[dict[str, Executor], ExitStack]:
    """Open the recorded plans of the given forms on a GPU, all computing in one shared scratch block.

    Returns the executors, and what closes them and then the block.
    Raises DeviceError, MissingExtraError, PlanError: none recorded for this machine (it names how the nearest differs),
    damaged, changed; SelfTestError when the answers are wrong.
    """
    index = int(device.partition(":")[2] or 0)
    open_cuda(index)  # no GPU is the first thing to say
    cache = PlanCache(bundle.folder / FOLDER)
    plans = {name: _recorded(bundle, cache, name, form, index) for name, form in forms.items()}
    with ExitStack() as stack:
        executors = _open(bundle, plans, index, stack)
        if not allow_unverified:
            check_rows(_run_selftest(bundle, executors), f"TensorRT plans of {bundle.manifest.source.model}")
        return executors, stack.pop_all()


def record_plans(folder: Path, plans: Mapping[str, Plan]) -> None:
    """Write plans into the manifest, in place of older ones with the same key. Raises BundleError.

    The manifest is replaced whole: a reader sees the one before or the one after.
    """
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_bytes())
    fresh = {PlanEntry.of(name, plan).file: (name, plan) for name, plan in plans.items()}
    kept = [entry for entry in document.get("plans", []) if entry["file"].removeprefix(f"{FOLDER}/") not in fresh]
    document["plans"] = kept + [
        {
            "graph": name,
            "file": f"{FOLDER}/{file}",
            "sha256": plan.sha256,
            "size": len(plan.data),
            "key": plan.key.to_json(),
        }
        for file, (name, plan) in fresh.items()
    ]
    parse_manifest(document)
    temporary = path.with_name(f".{MANIFEST_NAME}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(f"cannot write {path}", got=error.strerror or str(error)) from error


def _forms(bundle: Bundle) -> dict[str, tuple[Graph, Form]]:
    graphs = bundle.manifest.graphs
    return {name: (graph, choose_form(graph, name, "tensorrt", "cuda")) for name, graph in graphs.items()}


def _key(graph: Graph, form: Form, options: BuildOptions) -> PlanKey:
    return plan_key(_digest(form), precision=form.precision, profiles=_profiles(graph), options=options)


def _digest(form: Form) -> str:
    """Of the ONNX file; where it has external data, of its digest and theirs."""
    if not form.data:
        return form.file.sha256
    import hashlib

    return hashlib.sha256("".join((form.file.sha256, *(record.sha256 for record in form.data))).encode()).hexdigest()


def _profiles(graph: Graph) -> dict[str, tuple[int, int, int]]:
    return {symbol: (profile.min, profile.opt, profile.max) for symbol, profile in graph.profiles.items()}


def _build(
    bundle: Bundle,
    name: str,
    graph: Graph,
    form: Form,
    options: BuildOptions,
    timing_cache: bytes | None,
    progress: Progress | None,
) -> Plan:
    return build_plan(
        bundle.read_model(form),
        profiles=_profiles(graph),
        precision=form.precision,
        options=options,
        onnx_sha256=_digest(form),
        timing_cache=timing_cache,
        progress=None if progress is None else lambda step: progress(name, step),
        name=name,
    )


def _built(name: str, form: Form, plan: Plan) -> BuiltGraph:
    facts = plan.facts
    return BuiltGraph(
        graph=name,
        precision=form.precision,
        key=plan.key,
        plan_bytes=len(plan.data),
        parse_seconds=None if facts is None else facts.parse_seconds,
        build_seconds=None if facts is None else facts.build_seconds,
        layers=None if facts is None else facts.layers,
        attentions=None if facts is None else facts.attentions,
        decomposable=None if facts is None else facts.decomposable,
    )


def _recorded(bundle: Bundle, cache: PlanCache, name: str, form: Form, device: int) -> Plan:
    """The plan for this machine that the manifest vouches for, with whatever options it was built. Raises PlanError."""
    graph = bundle.manifest.graphs[name]
    differences = []
    for record in bundle.manifest.plans:
        if record.graph != name:
            continue
        found = PlanKey.from_json(dict(record.key))
        options = BuildOptions(flavour=found.flavour, device=device, **dict(found.options))  # type: ignore[arg-type]
        wanted = _key(graph, form, options)
        if found == wanted:
            return cache.load(name, found, sha256=record.file.sha256)
        differences.append(explain_difference(wanted, found))
    nearest = min(differences, key=len, default=None)
    raise PlanError(
        f"{name}: no plan for this machine" if nearest is None else f"{name}: the plan is stale or foreign",
        got="none recorded in the manifest" if nearest is None else "; ".join(nearest),
        expected=f"a plan of {form.file.file} for this GPU and TensorRT",
        fix=f"samrt build {bundle.folder}",
    )


def _open(bundle: Bundle, plans: Mapping[str, Plan], device: int, stack: ExitStack) -> dict[str, Executor]:
    """Open the plans; `stack` closes them."""
    executors: dict[str, Executor] = {}
    scratch = stack.enter_context(closing(Scratch(open_cuda(device))))
    for name, plan in plans.items():
        graph = bundle.manifest.graphs[name]
        form = choose_form(graph, name, "tensorrt", "cuda")
        executors[name] = stack.enter_context(
            TensorRTExecutor(
                plan,
                scratch=scratch,
                weights=bundle.read_model(form) if plan.key.option("strip_weights") else None,
                inputs=graph.inputs,
                outputs=graph.outputs,
                ranges=graph.ranges,
                name=name,
                options=ExecutorOptions(),
            )
        )
    return executors


def _test(bundle: Bundle, plans: Mapping[str, Plan], device: int, *, allow_unverified: bool) -> tuple[SelfTestRow, ...]:
    if bundle.manifest.selftest is None:
        if allow_unverified:
            return ()
        _refuse_untested(bundle)
    with ExitStack() as stack:
        rows = _run_selftest(bundle, _open(bundle, plans, device, stack))
    if not allow_unverified:
        check_rows(rows, f"TensorRT plans of {bundle.manifest.source.model}")
    return rows


def _run_selftest(bundle: Bundle, executors: Mapping[str, Executor]) -> tuple[SelfTestRow, ...]:
    if bundle.manifest.selftest is None:
        _refuse_untested(bundle)
    assert bundle.manifest.selftest is not None
    rows = SelfTest.from_bytes(bundle.read_file(bundle.manifest.selftest)).run(executors)
    return tuple(replace(row, usual=_usual(bundle, row)) for row in rows)


def _usual(bundle: Bundle, row: SelfTestRow) -> float | None:
    """What the manifest lets one expect of an output."""
    form = choose_form(bundle.manifest.graphs[row.graph], row.graph, "tensorrt", "cuda")
    measured = form.parity.get(row.output, {}).get("relative_l2")
    return None if measured is None else usual_error(measured)


def _refuse_untested(bundle: Bundle) -> None:
    raise BundleError(
        "this bundle has no self-test, so its plans cannot be judged",
        got=f"{bundle.folder}, exported by samrt {bundle.manifest.source.samrt}",
        fix="export it again with this samrt; or --allow-unverified",
    )


def with_device(options: BuildOptions, device: str) -> BuildOptions:
    """Options for "cuda", "cuda:1"."""
    return replace(options, device=int(device.partition(":")[2] or 0))
