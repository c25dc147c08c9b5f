"""A plan becomes an engine: checked against this machine first, then deserialised; and what the engine says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samrt_engines.errors import BackendError, PlanError
from samrt_engines.tensorrt.cuda import Device
from samrt_engines.tensorrt.keys import ANY_GPU, Plan, PlanKey
from samrt_engines.tensorrt.libraries import TITLES, TensorRT
from samrt_engines.tensorrt.messages import collect_errors, open_logger
from samrt_engines.tensorrt.network import DTYPE_FROM_TRT
from samrt_engines.tensors import TensorSpec, agree

_REBUILD = "samrt build"


@dataclass(frozen=True, slots=True)
class Engine:
    """A deserialised plan. The runtime has to live as long as the engine."""

    runtime: Any
    engine: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, tuple[int, int]]
    """Symbolic dimension -> (smallest, largest) size of the profile."""


def check_fits(key: PlanKey, tensorrt: TensorRT, device: Device, name: str) -> None:
    """Raise one PlanError that names both sides of everything that keeps a plan from running here."""
    here = [
        ("built by", f"{TITLES[key.flavour]} {key.version}", str(tensorrt), _version_fits(key, tensorrt)),
        ("GPU", key.gpu, device.name, key.gpu in (ANY_GPU, device.name)),
        ("compute capability", key.capability, device.capability, _capability_fits(key.capability, device.capability)),
    ]
    misfits = [(title, built, found) for title, built, found, fits in here if not fits]
    if misfits:
        raise PlanError(
            f"{name}: the plan was built for another machine",
            got="; ".join(f"{title} {built}" for title, built, _ in misfits),
            expected="; ".join(f"{title} {found}" for title, _, found in misfits),
            fix=_REBUILD,
        )


def open_engine(
    plan: Plan,
    tensorrt: TensorRT,
    *,
    inputs: Sequence[TensorSpec] | None,
    outputs: Sequence[TensorSpec] | None,
    weights: bytes | Path | None,
    name: str,
) -> Engine:
    """Deserialise a plan. Only after a GPU has answered: a TensorRT runtime without a driver ends the process.

    inputs, outputs: what the manifest says about them; the engine has to agree
    weights: the ONNX file a stripped plan was built from

    Raises PlanError for a plan that TensorRT refuses, or that is not what the manifest says.
    """
    trt = tensorrt.module
    with collect_errors() as messages:
        logger = open_logger(trt)
        runtime = trt.Runtime(logger)
        # A version-compatible plan brings the TensorRT it was built with, as code for the host.
        runtime.engine_host_code_allowed = bool(plan.key.option("version_compatible"))
        engine = runtime.deserialize_cuda_engine(plan.data)
        if engine is None:
            raise PlanError(f"{name}: TensorRT cannot read the plan", got=messages.text(), fix=_REBUILD)
        if plan.key.option("strip_weights"):
            _restore_weights(trt, engine, logger, weights, name)
    mine = [_spec(engine, engine.get_tensor_name(index), name) for index in range(engine.num_io_tensors)]
    modes = {spec.name: engine.get_tensor_mode(spec.name) for spec in mine}
    engine_inputs = [spec for spec in mine if modes[spec.name] == trt.TensorIOMode.INPUT]
    engine_outputs = [spec for spec in mine if modes[spec.name] == trt.TensorIOMode.OUTPUT]
    chosen = agree(engine_inputs, inputs, f"{name}: the plan's inputs", error=PlanError, fix=_REBUILD)
    return Engine(
        runtime=runtime,
        engine=engine,
        inputs=chosen,
        outputs=agree(engine_outputs, outputs, f"{name}: the plan's outputs", error=PlanError, fix=_REBUILD),
        ranges=_profile_ranges(engine, chosen),
    )


def _restore_weights(trt: Any, engine: Any, logger: Any, weights: bytes | Path | None, name: str) -> None:
    if weights is None:
        raise PlanError(f"{name}: the plan was built without weights", got="no ONNX file", fix="pass weights=")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    found = parser.refit_from_bytes(weights) if isinstance(weights, bytes) else parser.refit_from_file(str(weights))
    if not (found and refitter.refit_cuda_engine()):
        missing = ", ".join(refitter.get_missing_weights()) or "weights of another shape or type"
        raise PlanError(f"{name}: the plan's weights cannot be put back", got=missing, fix=_REBUILD)


def _spec(engine: Any, tensor: str, name: str) -> TensorSpec:
    """What the engine knows of an input or output. A dimension without a fixed size gets a name of its own."""
    dtype = engine.get_tensor_dtype(tensor).name
    if dtype not in DTYPE_FROM_TRT:
        raise BackendError(
            f"{name}: '{tensor}' is of a type samrt does not use", got=dtype, expected=", ".join(DTYPE_FROM_TRT)
        )
    shape = tuple(engine.get_tensor_shape(tensor))
    symbols = (size if size >= 0 else f"{tensor}.{axis}" for axis, size in enumerate(shape))
    return TensorSpec(tensor, DTYPE_FROM_TRT[dtype], tuple(symbols))


def _profile_ranges(engine: Any, inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """The sizes that the first profile allows each symbol, in every input that has it."""
    ranges: dict[str, tuple[int, int]] = {}
    for spec in inputs:
        if all(isinstance(size, int) for size in spec.shape):
            continue
        smallest, _, largest = engine.get_tensor_profile_shape(spec.name, 0)
        for symbol, low, high in zip(spec.shape, smallest, largest, strict=True):
            if isinstance(symbol, str):
                ranges[symbol] = narrowed((low, high), ranges.get(symbol))
    return ranges


def narrowed(one: tuple[int, int], other: tuple[int, int] | None) -> tuple[int, int]:
    """The sizes that both ranges allow."""
    return one if other is None else (max(one[0], other[0]), min(one[1], other[1]))


def all_ranges(
    profile: Mapping[str, tuple[int, int]], wanted: Mapping[str, tuple[int, int]] | None
) -> dict[str, tuple[int, int]]:
    """The profile's ranges, narrowed by the caller's."""
    wanted = wanted or {}
    return {symbol: narrowed(sizes, wanted.get(symbol)) for symbol, sizes in profile.items()}


def _version_fits(key: PlanKey, tensorrt: TensorRT) -> bool:
    """The same TensorRT; a version-compatible plan runs in later ones too."""
    if key.flavour is not tensorrt.flavour:
        return False
    if key.option("version_compatible"):
        return _numbers(key.version) <= _numbers(tensorrt.version)
    return key.version == tensorrt.version


def _capability_fits(built: str, found: str) -> bool:
    if built.endswith("+"):
        return _numbers(found) >= _numbers(built)
    return built == found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
