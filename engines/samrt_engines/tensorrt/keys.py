"""What a plan was built from and for. Two keys are equal exactly when one plan serves both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samrt_engines.errors import PlanError
from samrt_engines.tensorrt.libraries import TITLES, Flavour

Range = tuple[int, int, int]
"""Smallest, usual and largest size of a symbolic dimension: TensorRT's min, opt and max."""

ANY_GPU = "any"
"""The GPU's name in the key of a plan that runs on every GPU of its compute capability, or above."""

KEY_VERSION = 1


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build. The defaults give the fastest plan for this machine."""

    flavour: str = "auto"
    """One of `libraries.FLAVOURS`."""
    device: int = 0
    """The GPU to build on, as CUDA counts them. TensorRT for RTX with `sm` needs none."""
    sm: str | None = None
    """Build for this compute capability, "86" for 8.6, with no GPU. TensorRT for RTX only; None: the GPU at hand."""
    workspace_bytes: int | None = None
    """Largest scratch memory a layer may use, None for all there is."""
    hardware_compatible: bool = False
    """A plan for every GPU from Ampere on, at some cost in speed. TensorRT only."""
    version_compatible: bool = False
    """A plan that later TensorRT versions load too, at some cost in speed."""
    strip_weights: bool = False
    """Leave the weights out of the plan; loading takes them from the ONNX file."""
    decomposable_attention: bool | None = None
    """May an Attention that no fused kernel fits become several kernels? None: only where the graph does not build
    otherwise, which `BuildFacts.decomposable` then says; in fp32, which has hardly any fused kernel, at once."""
    optimization_level: int | None = None
    """0 (builds fastest) to 5 (runs fastest), None for TensorRT's default."""

    def for_key(self) -> dict[str, int | bool | None]:
        """Those that a key does not already hold under another name."""
        return {
            "workspace_bytes": self.workspace_bytes,
            "hardware_compatible": self.hardware_compatible,
            "version_compatible": self.version_compatible,
            "strip_weights": self.strip_weights,
            "decomposable_attention": self.decomposable_attention,
            "optimization_level": self.optimization_level,
        }


@dataclass(frozen=True, slots=True)
class PlanKey:
    """What a plan was built from and for."""

    onnx_sha256: str
    flavour: Flavour
    version: str
    """Of TensorRT."""
    gpu: str
    """Its name as CUDA says it, or `ANY_GPU`."""
    capability: str
    """Compute capability, "8.6"; "8.0+" where later ones will do too."""
    precision: str
    """As the manifest names it: "fp32", "fp16", ..."""
    profiles: tuple[tuple[str, Range], ...]
    """(symbol, (min, opt, max)), sorted."""
    options: tuple[tuple[str, int | bool | None], ...]
    """(name, value), sorted."""

    @classmethod
    def of(
        cls,
        *,
        onnx_sha256: str,
        flavour: Flavour,
        version: str,
        gpu: str,
        capability: str,
        precision: str,
        profiles: Mapping[str, Range],
        options: BuildOptions,
    ) -> PlanKey:
        ordered = tuple(sorted((symbol, (low, usual, high)) for symbol, (low, usual, high) in profiles.items()))
        chosen = tuple(sorted(options.for_key().items()))
        return cls(onnx_sha256, flavour, version, gpu, capability, precision, ordered, chosen)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits, the same for equal keys on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def option(self, name: str) -> int | bool | None:
        """One build option by its name."""
        return dict(self.options)[name]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": KEY_VERSION,
            "onnx_sha256": self.onnx_sha256,
            "tensorrt": {"flavour": self.flavour.value, "version": self.version},
            "gpu": self.gpu,
            "capability": self.capability,
            "precision": self.precision,
            "profiles": {symbol: list(sizes) for symbol, sizes in self.profiles},
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, entry: object) -> PlanKey:
        """Read the form that `to_json` writes, trusting nothing about it. Raises PlanError."""
        try:
            key = cls._from_trusted(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError("a plan's key is malformed", got=f"{type(error).__name__}: {error}") from error
        if key.to_json() != entry:  # catches extra fields and values of another type
            raise PlanError("a plan's key is malformed", got=repr(entry), expected=repr(key.to_json()))
        return key

    @classmethod
    def _from_trusted(cls, entry: Any) -> PlanKey:
        if entry["version"] != KEY_VERSION:
            raise ValueError(f"version {entry['version']!r} instead of {KEY_VERSION}")
        texts = (entry["onnx_sha256"], entry["tensorrt"]["version"], entry["gpu"], entry["capability"])
        if not all(isinstance(text, str) for text in (*texts, entry["precision"])):
            raise TypeError("a name is no text")
        ranges = {symbol: _read_range(sizes) for symbol, sizes in entry["profiles"].items()}
        return cls(
            onnx_sha256=entry["onnx_sha256"],
            flavour=Flavour(entry["tensorrt"]["flavour"]),
            version=entry["tensorrt"]["version"],
            gpu=entry["gpu"],
            capability=entry["capability"],
            precision=entry["precision"],
            profiles=tuple(sorted(ranges.items())),
            options=tuple(sorted(BuildOptions(**entry["options"]).for_key().items())),
        )


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """What is known about a build once it is done."""

    parse_seconds: float
    build_seconds: float
    layers: int
    """Of the network before TensorRT fuses it."""
    attentions: int
    """How many of them are `Attention`."""
    decomposable: int
    """How many of those may become several kernels where no fused one fits."""
    timing_cache: bytes | None
    """What the builder measured, for the next build on this GPU, driver and TensorRT. None where it measures nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A built engine, serialised. It is code: load only plans you built, or whose checksum you trust."""

    data: bytes
    key: PlanKey
    facts: BuildFacts | None = None
    """None for a plan that was read, not built."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def explain_difference(wanted: PlanKey, found: PlanKey) -> list[str]:
    """In words, each with both sides, how two keys differ; empty for equal ones."""
    sides = [
        ("ONNX file", wanted.onnx_sha256[:12], found.onnx_sha256[:12], wanted.onnx_sha256 == found.onnx_sha256),
        *((name, one, other, one == other) for name, one, other in _named_sides(wanted, found)),
    ]
    return [f"{name}: wanted {one}, found {other}" for name, one, other, same in sides if not same]


def _named_sides(wanted: PlanKey, found: PlanKey) -> list[tuple[str, str, str]]:
    pairs = [
        ("TensorRT", f"{TITLES[wanted.flavour]} {wanted.version}", f"{TITLES[found.flavour]} {found.version}"),
        ("GPU", wanted.gpu, found.gpu),
        ("compute capability", wanted.capability, found.capability),
        ("precision", wanted.precision, found.precision),
    ]
    ours, theirs = dict(wanted.profiles), dict(found.profiles)
    for symbol in sorted(ours | theirs):
        pairs.append((f"profile of '{symbol}'", str(ours.get(symbol, "none")), str(theirs.get(symbol, "none"))))
    options, others = dict(wanted.options), dict(found.options)
    pairs += [(f"option {name}", str(options.get(name)), str(others.get(name))) for name in sorted(options | others)]
    return pairs


def _read_range(sizes: Any) -> Range:
    smallest, usual, largest = sizes
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"a profile's sizes are {sizes!r}")
    return smallest, usual, largest
