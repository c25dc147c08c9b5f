"""Every error samrt raises on purpose, in one tree, with their codes.

::

    SamrtError                              samrt             whatever samrt raises on purpose
    ├── InputError (ValueError)             input             what a caller passed in
    │   ├── ImageError                      image             a picture: unreadable, empty, too large, wrong dtype
    │   ├── PromptError                     prompt            points, labels, boxes, masks
    │   └── TensorError                     tensor            a graph's feeds: names, dtypes, shapes
    ├── BundleError                         bundle            a bundle on disk cannot be used
    │   ├── ManifestError                   bundle.manifest   missing, malformed, of an unknown version
    │   ├── ChecksumError                   bundle.checksum   a file differs from the manifest
    │   └── UnsafePathError                 bundle.path       absolute, traversing or linked
    ├── CheckpointError                     checkpoint        unreadable, unsafe, of another family or size
    │   └── HubError                        checkpoint.hub    offline, gated, unknown id
    ├── BackendError                        backend           an engine cannot be created or run
    │   ├── MissingExtraError (ImportError) backend.extra     a package is not installed; names the pip line
    │   ├── ProviderError                   backend.provider  asked-for provider absent or silently dropped
    │   ├── DeviceError                     backend.device    no GPU, a driver too old, a CUDA call that failed
    │   ├── BuildError                      backend.build     TensorRT cannot parse or build a graph
    │   ├── PlanError                       backend.plan      a plan is stale, foreign, damaged or not vouched for
    │   └── SelfTestError                   backend.selftest  an engine's answers are not the model's
    ├── ExportError                         export            a model cannot be exported
    │   ├── ParityError                     export.parity     above tolerance
    │   └── DeadOutputError                 export.dead       an output ignores its input
    └── Cancelled                           cancelled         the caller asked work under way to stop

A message has four parts, of which the last three may be absent::

    what failed | got: ... | expected: ... | fix: the command or call that mends it

Programs match on the class or on `code`, which never changes; people read the message.
"""

from __future__ import annotations

from typing import ClassVar, Self


class SamrtError(Exception):
    """Root of the tree: `except SamrtError` catches all that samrt raises on purpose, and nothing else."""

    code: ClassVar[str] = "samrt"

    def __init__(self, what: str, *, got: str | None = None, expected: str | None = None, fix: str | None = None):
        super().__init__(what)
        self.what = what
        self.got = got
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        parts = {"got": self.got, "expected": self.expected, "fix": self.fix}
        return " | ".join([self.what, *(f"{name}: {text}" for name, text in parts.items() if text is not None)])


class InputError(SamrtError, ValueError):
    """What a caller passed in cannot be used."""

    code = "input"


class ImageError(InputError):
    """A picture is unreadable, empty, too large, or has the wrong dtype or channels."""

    code = "image"


class PromptError(InputError):
    """Points, labels, boxes or masks do not make a prompt."""

    code = "prompt"


class TensorError(InputError):
    """The names, dtypes or shapes fed to a graph, or the outputs asked of it, are not the graph's."""

    code = "tensor"


class BundleError(SamrtError):
    """A bundle on disk cannot be used."""

    code = "bundle"


class ManifestError(BundleError):
    """The manifest is missing, malformed, or of an unknown version."""

    code = "bundle.manifest"


class ChecksumError(BundleError):
    """A file of the bundle differs from what the manifest says about it."""

    code = "bundle.checksum"


class UnsafePathError(BundleError):
    """A path of the bundle is absolute, leaves the folder, or is a link."""

    code = "bundle.path"


class CheckpointError(SamrtError):
    """A checkpoint is unreadable, unsafe, or of another family or size."""

    code = "checkpoint"


class HubError(CheckpointError):
    """A checkpoint cannot be fetched: offline, gated, or an unknown id."""

    code = "checkpoint.hub"


class BackendError(SamrtError):
    """An engine cannot be created or run."""

    code = "backend"


class MissingExtraError(BackendError, ImportError):
    """A package that comes with an extra of samrt is not installed."""

    code = "backend.extra"

    @classmethod
    def for_package(
        cls, package: str, *, extra: str, purpose: str, got: str = "not installed", fix: str | None = None
    ) -> Self:
        """The one wording for all of them. `purpose` reads after "is needed": "to run graphs on ONNX Runtime"."""
        return cls(f"the package {package} is needed {purpose}", got=got, fix=fix or pip_line(extra))


class ProviderError(BackendError):
    """The provider that was asked for is absent, or the backend dropped it without a word."""

    code = "backend.provider"


class DeviceError(BackendError):
    """There is no GPU, its driver is too old, its memory is short, or a CUDA call failed."""

    code = "backend.device"


class BuildError(BackendError):
    """TensorRT cannot parse a graph or build a plan from it."""

    code = "backend.build"


class PlanError(BackendError):
    """A built plan cannot be used: of another graph, GPU or TensorRT, damaged, or not vouched for."""

    code = "backend.plan"


class SelfTestError(BackendError):
    """An engine runs, and its answers are not the model's: it must not be used."""

    code = "backend.selftest"


class ExportError(SamrtError):
    """A model cannot be exported."""

    code = "export"


class ParityError(ExportError):
    """An exported graph differs from PyTorch by more than its tolerance."""

    code = "export.parity"


class DeadOutputError(ExportError):
    """An output does not vary with the input, so comparing it would prove nothing."""

    code = "export.dead"


class Cancelled(SamrtError):
    """The caller asked for work under way to stop, and it did."""

    code = "cancelled"


def pip_line(extra: str) -> str:
    """The command that installs an extra: `pip_line("cpu")` is `pip install "samrt[cpu]"`."""
    return f'pip install "samrt[{extra}]"'
