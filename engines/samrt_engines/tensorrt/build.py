"""One ONNX file becomes one plan: parse, set the profile, build. The same path for every TensorRT.

Networks are strongly typed, so precision is what the graph says. TensorRT for RTX builds on machines with no GPU.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samrt_engines.errors import BackendError, BuildError
from samrt_engines.tensorrt.cuda import Device, open_cuda
from samrt_engines.tensorrt.keys import ANY_GPU, BuildFacts, BuildOptions, Plan, PlanKey, Range
from samrt_engines.tensorrt.libraries import Flavour, TensorRT, load_tensorrt
from samrt_engines.tensorrt.messages import Messages, Progress, collect_errors, open_logger, open_monitor
from samrt_engines.tensorrt.network import allow_decomposition, check_inputs, profile_shapes

_NO_KERNEL = "Attention operation was not supported by a dedicated kernel"
# Relative external data of a model given as bytes is looked for in here, where nothing can be.
_NOWHERE = os.path.join(os.devnull, "model.onnx")


def plan_key(
    onnx_sha256: str,
    *,
    precision: str,
    profiles: Mapping[str, Range],
    options: BuildOptions | None = None,
) -> PlanKey:
    """The key of the plan that `build_plan` would build here and now: look it up before you build.

    Raises what `build_plan` raises before it starts: MissingExtraError, DeviceError, BackendError.
    """
    options = options or BuildOptions()
    tensorrt = load_tensorrt(options.flavour)
    gpu, capability = _target(tensorrt, options)
    return PlanKey.of(
        onnx_sha256=onnx_sha256,
        flavour=tensorrt.flavour,
        version=tensorrt.version,
        gpu=gpu,
        capability=capability,
        precision=precision,
        profiles=profiles,
        options=options,
    )


def build_plan(
    model: bytes | Path,
    *,
    profiles: Mapping[str, Range],
    precision: str,
    options: BuildOptions | None = None,
    onnx_sha256: str | None = None,
    timing_cache: bytes | None = None,
    progress: Progress | None = None,
    name: str = "graph",
) -> Plan:
    """Build a plan from an ONNX file.

    model: the file, or its bytes. A model with external data has to be a path.
    profiles: symbolic dimension -> (min, opt, max) sizes, for every symbol of the inputs; a minimum of 0 is fine
    precision: what the graph's types amount to, for the key: "fp32", "fp16"
    onnx_sha256: digest for the key, which has to cover external data; None: of the bytes, right for models without
    timing_cache: what an earlier build measured; one of another GPU or TensorRT is ignored by the builder
    progress: told of every step. What it raises cancels the build and is raised from here.
    name: what messages call the graph

    Raises BuildError when TensorRT cannot parse or build the graph, naming nodes; MissingExtraError, DeviceError and
    BackendError when this machine cannot build as asked.
    """
    options = options or BuildOptions()
    data = model if isinstance(model, bytes) else _read(model, name)
    key = plan_key(
        onnx_sha256 or hashlib.sha256(data).hexdigest(), precision=precision, profiles=profiles, options=options
    )
    path = str(model) if isinstance(model, Path) else _NOWHERE
    try:
        return _attempt(data, path, key, options, profiles, timing_cache, progress, name)
    except BuildError as error:
        if options.decomposable_attention is not None or _NO_KERNEL not in str(error):
            raise
    options = replace(options, decomposable_attention=True)  # `facts.decomposable` says that it came to this
    return _attempt(data, path, key, options, profiles, timing_cache, progress, name)


def _attempt(
    data: bytes,
    path: str,
    key: PlanKey,
    options: BuildOptions,
    profiles: Mapping[str, Range],
    timing_cache: bytes | None,
    progress: Progress | None,
    name: str,
) -> Plan:
    """Parse and build once. `path` is where external data is looked for."""
    tensorrt = load_tensorrt(options.flavour)
    trt = tensorrt.module
    with collect_errors() as messages:
        logger = open_logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        started = time.perf_counter()
        _parse(trt, data, path, network, logger, name)
        parse_seconds = time.perf_counter() - started
        attentions, decomposable = allow_decomposition(trt, network, options.decomposable_attention)
        config = builder.create_builder_config()
        _configure(tensorrt, config, options)
        _add_profile(builder, config, network, profiles, name)
        cache = _use_timing_cache(tensorrt, config, timing_cache)
        started = time.perf_counter()
        plan = _build(trt, builder, network, config, progress, name, messages)
        build_seconds = time.perf_counter() - started
    facts = BuildFacts(
        parse_seconds=parse_seconds,
        build_seconds=build_seconds,
        layers=network.num_layers,
        attentions=attentions,
        decomposable=decomposable,
        timing_cache=bytes(cache.serialize()) if cache is not None else None,
    )
    return Plan(plan, key, facts)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{name}: the ONNX file cannot be read", got=f"{path}: {error.strerror}") from error


def _target(tensorrt: TensorRT, options: BuildOptions) -> tuple[str, str]:
    """The GPU's name and compute capability for the key. Raises BackendError for options this TensorRT has not."""
    refused = [name for name in ("hardware_compatible", "version_compatible") if getattr(options, name)]
    if refused and tensorrt.flavour is Flavour.RTX:  # 1.7 wants libnvinfer_lean for the second, which it comes without
        raise BackendError(f"{tensorrt} has no such plans", got=", ".join(refused), fix="flavour='tensorrt'")
    if options.sm is not None:
        if options.sm not in tensorrt.capabilities:
            raise BackendError(
                f"{tensorrt} cannot build for compute capability {options.sm} from here",
                got=f"sm={options.sm!r}",
                expected=", ".join(tensorrt.capabilities) or "no sm: it builds for the GPU that is there",
                fix="flavour='rtx' builds for GeForce RTX with no GPU at hand" if not tensorrt.capabilities else None,
            )
        return ANY_GPU, f"{options.sm[:-1]}.{options.sm[-1]}"
    device = _device(options)
    if tensorrt.flavour is Flavour.RTX:
        return ANY_GPU, device.capability
    return (ANY_GPU, "8.0+") if options.hardware_compatible else (device.name, device.capability)


def _device(options: BuildOptions) -> Device:
    return open_cuda(options.device).describe()


def _parse(trt: Any, data: bytes, path: str, network: Any, logger: Any, name: str) -> None:
    """Fill the network. Raises one BuildError with every node that the parser refused."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse(data, path):
        if network.num_outputs == 0:
            raise BuildError(f"{name}: this is no ONNX graph", got="no outputs", expected="an ONNX file")
        return
    faults = [_fault(parser.get_error(index)) for index in range(parser.num_errors)]
    raise BuildError(
        f"{name}: TensorRT cannot parse the graph",
        got="; ".join(dict.fromkeys(faults)) or "the parser gave no reason",
        expected="operators and forms of TensorRT's ONNX support table",
    )


def _fault(parser_error: Any) -> str:
    operator = parser_error.node_operator()
    where = f"node '{parser_error.node_name()}' ({operator})" if operator else "the file"
    return f"{where}: {' '.join(parser_error.desc().split())}"


def _configure(tensorrt: TensorRT, config: Any, options: BuildOptions) -> None:
    trt, flag = tensorrt.module, tensorrt.module.BuilderFlag
    if tensorrt.builds_for_capability:
        config.num_compute_capabilities = 1
        wanted = "CURRENT" if options.sm is None else f"SM{options.sm}"
        config.set_compute_capability(trt.ComputeCapability.__members__[wanted], 0)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(flag.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(flag.STRIP_PLAN)
        config.set_flag(flag.REFIT_IDENTICAL)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = (
        trt.ProfilingVerbosity.DETAILED
    )  # layer names and sizes, for `samrt bench`; costs no time


def _add_profile(builder: Any, config: Any, network: Any, profiles: Mapping[str, Range], name: str) -> None:
    shapes = profile_shapes(check_inputs(network, name), profiles, name)
    if not shapes:  # every size is fixed
        return
    profile = builder.create_optimization_profile()
    for tensor, (smallest, usual, largest) in shapes.items():
        profile.set_shape(tensor, smallest, usual, largest)
    config.add_optimization_profile(profile)


def _use_timing_cache(tensorrt: TensorRT, config: Any, data: bytes | None) -> Any | None:
    """A timing cache that the build reads and adds to; None where there is no such thing."""
    if not tensorrt.has_timing_cache:
        return None
    cache = config.create_timing_cache(data or b"")
    if data and not config.set_timing_cache(cache, False):  # of another GPU or TensorRT: start anew
        cache = config.create_timing_cache(b"")
        data = None
    if not data:
        config.set_timing_cache(cache, False)
    return cache


def _build(
    trt: Any, builder: Any, network: Any, config: Any, progress: Progress | None, name: str, messages: Messages
) -> bytes:
    failures: list[BaseException] = []
    if progress is not None:
        config.progress_monitor = open_monitor(trt, progress, failures)
    try:
        plan = builder.build_serialized_network(network, config)
    except (RuntimeError, MemoryError) as error:
        raise BuildError(f"{name}: TensorRT cannot build the graph", got=f"{error}; {messages.text()}") from error
    if failures:
        raise failures[0]
    if plan is None:
        text = messages.text()
        raise BuildError(f"{name}: TensorRT cannot build the graph", got=text, fix=_build_fix(text))
    return bytes(plan)


def _build_fix(text: str) -> str | None:
    if _NO_KERNEL in text:
        return "BuildOptions(decomposable_attention=True) lets it become several kernels, slower than a fused one"
    if "workspace limit" in text:
        return "a larger BuildOptions(workspace_bytes=...), or None for all there is"
    if "out of memory" in text.lower():
        return "a smaller max in the profiles, or a limit: BuildOptions(workspace_bytes=...)"
    return None
