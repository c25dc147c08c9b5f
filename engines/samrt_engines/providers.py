"""Which of ONNX Runtime's providers a session gets, and whether it really got it.

CUDA is the provider of a GPU unless another is asked for: TensorRT, which ONNX Runtime's GPU build brings, or TensorRT
for RTX, a plugin in a wheel of its own (the extra rtx). Nothing falls back: a provider that is missing, has no device,
or is dropped while a model is loaded is an error.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from samrt_engines.backends import CPU_PROVIDER, CUDA_PROVIDER, GET_CUDA_PROVIDER, cuda_device_count
from samrt_engines.errors import BackendError, MissingExtraError, ProviderError
from samrt_engines.sessions import error_types, one_line

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
GPU_PROVIDERS = (CUDA_PROVIDER, TENSORRT_PROVIDER, RTX_PROVIDER)
"""What may be asked for on a GPU."""

_FIX = "samrt doctor, or device='cpu'"
_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True, slots=True)
class ProviderChoice:
    """What a session is asked to run on."""

    name: str
    device: str
    """ "cpu" or "cuda:N"."""
    providers: tuple[tuple[str, dict[str, str]], ...]
    """Names and options, the wanted one first; empty for a plugin, whose devices stand in the session's settings."""


def choose_provider(
    ort: ModuleType, device: str, wanted: str | None, options: Mapping[str, str], settings: Any, name: str
) -> ProviderChoice:
    """Choose the provider for a device, and prepare it: CUDA's libraries loaded, a plugin registered.

    wanted: one of `GPU_PROVIDERS`, or None for the device's usual one
    options: the provider's own, by its own names
    settings: onnxruntime.SessionOptions, to which a plugin's devices are added
    name: what messages call the graph
    Raises BackendError for arguments that make no sense, ProviderError for what cannot be had, MissingExtraError.
    """
    if wanted is not None and wanted not in (CPU_PROVIDER, *GPU_PROVIDERS):
        raise BackendError(
            f"{name}: unknown provider", got=repr(wanted), expected=", ".join((CPU_PROVIDER, *GPU_PROVIDERS))
        )
    index = _gpu_index(ort, device, wanted, name)
    if (wanted == CPU_PROVIDER and index is not None) or (wanted in GPU_PROVIDERS and index is None):
        without = ", no GPU" if device == "auto" else ""
        raise BackendError(f"{name}: {wanted} does not run on this device", got=f"device={device!r}{without}")
    if index is None:
        return ProviderChoice(CPU_PROVIDER, "cpu", ((CPU_PROVIDER, dict(options)),))
    place = f"cuda:{index}"
    if wanted == RTX_PROVIDER:
        _add_rtx_device(ort, settings, index, options, name)
        return ProviderChoice(RTX_PROVIDER, place, ())
    wanted = wanted or CUDA_PROVIDER
    _check_offered(ort, wanted, name)
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find; stdout belongs to the caller
        ort.preload_dlls()
    chosen = (wanted, {"device_id": str(index), **options})
    # What TensorRT cannot run goes to CUDA, on the same GPU. Small shape computations stay on the CPU in any case.
    more = [(CUDA_PROVIDER, {"device_id": str(index)})] * (wanted == TENSORRT_PROVIDER)
    return ProviderChoice(wanted, place, (chosen, *more, (CPU_PROVIDER, {})))


def checked_provider(session: Any, wanted: str, name: str) -> str:
    """The provider a session runs on, once it is the wanted one. Raises ProviderError."""
    running = session.get_providers()
    if running[:1] != [wanted]:
        raise ProviderError(
            f"{name}: ONNX Runtime dropped {wanted} while loading the model",
            got=", ".join(running),
            expected=wanted,
            fix="the reason is in ONNX Runtime's log above, most often a CUDA or cuDNN library that is missing or of "
            "another version; device='cpu' runs without",
        )
    return wanted


def _gpu_index(ort: ModuleType, device: str, wanted: str | None, name: str) -> int | None:
    """The GPU a device string means, None for the CPU."""
    if device == "auto":
        usable = wanted in GPU_PROVIDERS or (wanted is None and CUDA_PROVIDER in ort.get_available_providers())
        return 0 if usable and cuda_device_count() > 0 else None
    if device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"{name}: unknown device", got=repr(device), expected="auto, cpu, cuda or cuda:N")
    return int(match[1] or 0)


def _check_offered(ort: ModuleType, wanted: str, name: str) -> None:
    offered = ort.get_available_providers()
    if wanted not in offered:
        short = "CUDA" if wanted == CUDA_PROVIDER else "TensorRT"
        raise ProviderError(
            f"{name}: this ONNX Runtime has no {short} provider",
            got=", ".join(offered),
            expected=wanted,
            fix=f"{GET_CUDA_PROVIDER}, or device='cpu'",
        )


def _add_rtx_device(ort: ModuleType, settings: Any, index: int, options: Mapping[str, str], name: str) -> None:
    """Register the plugin, once for the process, and add its device for a GPU to a session's settings."""
    library = _import_rtx_plugin().get_library_path()
    if cuda_device_count() == 0:
        raise ProviderError(f"{name}: {RTX_PROVIDER} needs a GPU", got="no NVIDIA driver or no GPU", fix=_FIX)
    if not _rtx_devices(ort):
        try:
            _register(ort, library)
        except error_types(ort) as error:
            raise ProviderError(f"{name}: ONNX Runtime cannot load {RTX_PROVIDER}", got=one_line(error)) from error
    found = _rtx_devices(ort)
    if index >= len(found):
        raise ProviderError(
            f"{name}: {RTX_PROVIDER} does not have this GPU",
            got=f"cuda:{index}, where it has {len(found)} in all",
            expected="an NVIDIA RTX GPU, Ampere or later, with a driver for CUDA 13",
            fix=_FIX,
        )
    settings.add_provider_for_devices([found[index]], dict(options))


@cache
def _register(ort: ModuleType, library: str) -> None:
    """A second registration would fail, even where the first found no device."""
    ort.register_execution_provider_library(RTX_PROVIDER, library)


def _rtx_devices(ort: ModuleType) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == RTX_PROVIDER]


def _import_rtx_plugin() -> ModuleType:
    try:
        return import_module(_RTX_PACKAGE)
    except (ImportError, OSError) as error:
        raise MissingExtraError.for_package(
            f"{_RTX_PACKAGE.replace('_', '-')}-cu13",
            extra="rtx",
            purpose=f"for ONNX Runtime's {RTX_PROVIDER}",
            got=str(error),
        ) from error
