"""Find and load TensorRT: 10.x, 11.x, or TensorRT for RTX. One Python API; where the three differ, it is said here.

TensorRT for RTX comes from two wheels without an installer: the bindings, and the libraries inside the wheel of ONNX
Runtime's RTX provider. That wheel is looked into and never imported: importing it edits LD_LIBRARY_PATH, writes links
into its own folder and loads ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from samrt_engines.errors import BackendError, MissingExtraError, pip_line


class Flavour(StrEnum):
    """Which TensorRT: the one for data centres and workstations, or the one for GeForce RTX."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


FLAVOURS = ("auto", *Flavour)
"""What `load_tensorrt` takes. "auto" is TensorRT where it can be imported, else TensorRT for RTX."""

FIRST_TENSORRT = (10, 14)
"""The first TensorRT whose ONNX parser knows `Attention`."""


@dataclass(frozen=True, slots=True)
class TensorRT:
    """A TensorRT that is loaded, and what it can do: the only place that knows how versions differ."""

    module: Any
    """The package: `tensorrt`, or `tensorrt_rtx_bindings`, which has the same names."""
    flavour: Flavour
    version: str

    def __str__(self) -> str:
        return f"{TITLES[self.flavour]} {self.version}"

    @property
    def builds_for_capability(self) -> bool:
        """The builder is told a compute capability, and needs no GPU. TensorRT builds for the GPU that is there."""
        return self.flavour is Flavour.RTX

    @property
    def has_timing_cache(self) -> bool:
        """RTX times nothing while it builds: it picks kernels when a plan is loaded."""
        return self.flavour is Flavour.TENSORRT

    @property
    def captures_cuda_graphs(self) -> bool:
        """RTX captures CUDA graphs by itself, with dynamic shapes too; a strategy of its runtime config says so."""
        return self.flavour is Flavour.RTX

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can be told to build for, "86" for 8.6; empty where it builds for the GPU that is there."""
        if not self.builds_for_capability:
            return ()
        return tuple(name[2:] for name in self.module.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name))


TITLES = {Flavour.TENSORRT: "TensorRT", Flavour.RTX: "TensorRT for RTX"}

_EXTRAS = {Flavour.TENSORRT: "tensorrt", Flavour.RTX: "rtx"}
_RTX_BINDINGS = "tensorrt_rtx_bindings"
_RTX_WHEEL = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_LIBRARIES = ("tensorrt_rtx", "tensorrt_onnxparser_rtx")  # in this order: the second one may need the first


def load_tensorrt(flavour: str = "auto") -> TensorRT:
    """Load a TensorRT, once per process and flavour.

    flavour: one of `FLAVOURS`

    Raises MissingExtraError when it is not installed or its libraries are not found, BackendError for a flavour that
    does not exist and a TensorRT that is too old.
    """
    if flavour not in FLAVOURS:
        raise BackendError("unknown TensorRT flavour", got=repr(flavour), expected=", ".join(FLAVOURS))
    if flavour != "auto":
        return _load(Flavour(flavour))
    try:
        return _load(Flavour.TENSORRT)
    except MissingExtraError as missing:
        try:
            return _load(Flavour.RTX)
        except MissingExtraError as also_missing:
            raise MissingExtraError.for_package(
                "tensorrt",
                extra="tensorrt",
                purpose="to build and run TensorRT plans, or TensorRT for RTX",
                got=f"{missing.got}; {also_missing.got}",
                fix=f"{pip_line('tensorrt')}, or {pip_line('rtx')}",
            ) from missing


@functools.cache
def _load(flavour: Flavour) -> TensorRT:
    if flavour is Flavour.RTX:
        preload_rtx_libraries()
        module = _import(_RTX_BINDINGS, flavour)
    else:
        module = _import("tensorrt", flavour)
    return checked_tensorrt(module, flavour)


def checked_tensorrt(module: ModuleType, flavour: Flavour) -> TensorRT:
    """A TensorRT package, once it is new enough. Raises BackendError."""
    loaded = TensorRT(module, flavour, module.__version__)
    numbers = tuple(map(int, re.findall(r"\d+", loaded.version)[:2]))
    if flavour is Flavour.TENSORRT and numbers < FIRST_TENSORRT:
        raise BackendError(
            "this TensorRT is too old: its parser does not know Attention",
            got=loaded.version,
            expected=f"{'.'.join(map(str, FIRST_TENSORRT))} or later",
            fix=pip_line("tensorrt"),
        )
    return loaded


def preload_rtx_libraries() -> tuple[Path, ...]:
    """Load the libraries of TensorRT for RTX out of the wheel that carries them, so that its bindings find them.

    Returns the files that were loaded; none when the wheel is not installed, for then the system's own are tried.
    Raises MissingExtraError when the wheel is there and a library is not, or does not load.
    """
    spec = importlib.util.find_spec(_RTX_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(spec.submodule_search_locations[0])
    files = tuple(_newest_library(folder, name) for name in _RTX_LIBRARIES)
    for file in files:
        try:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise _missing(_RTX_WHEEL, Flavour.RTX, str(error)) from error
    return files


def _newest_library(folder: Path, name: str) -> Path:
    pattern = f"{name}_*.dll" if sys.platform == "win32" else f"lib{name}.so.*"
    files = [file for file in folder.glob(pattern) if not file.is_symlink()]
    if not files:
        raise _missing(_RTX_WHEEL, Flavour.RTX, f"no {pattern} in {folder}")
    return max(files, key=lambda file: tuple(map(int, re.findall(r"\d+", file.name))))


def _import(package: str, flavour: Flavour) -> ModuleType:
    """Import a package that is there. One whose own libraries are missing counts as missing too."""
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError) as error:  # FileNotFoundError is what the bindings raise for a missing DLL
        raise _missing(package, flavour, str(error)) from error
    if not hasattr(module, "Builder"):
        raise _missing(package, flavour, f"{package} is there, without its builder")
    return module


def _missing(package: str, flavour: Flavour, got: str) -> MissingExtraError:
    purpose = f"to build and run plans with {TITLES[flavour]}"
    return MissingExtraError.for_package(package, extra=_EXTRAS[flavour], purpose=purpose, got=got)
