"""The lowest floor of samrt: graphs in, tensors out. It knows tensors, not images; importing it loads numpy only.

For example::

    with open_executor(Path("mask_decoder.onnx"), device="cpu", threads=4) as executor:
        print(executor.provider, *executor.inputs, sep="\\n")
        outputs = executor.run({"image_embed": ..., ...})
"""

from samrt_engines.backends import BackendInfo, available_backends
from samrt_engines.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    ChecksumError,
    DeadOutputError,
    ExportError,
    HubError,
    ImageError,
    InputError,
    ManifestError,
    MissingExtraError,
    ParityError,
    PromptError,
    ProviderError,
    SamrtError,
    TensorError,
    UnsafePathError,
)
from samrt_engines.executor import BACKENDS, Executor, open_executor
from samrt_engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeOptions
from samrt_engines.tensors import DTYPES, Array, TensorSpec, check_feeds

__all__ = [
    "BACKENDS",
    "DTYPES",
    "Array",
    "BackendError",
    "BackendInfo",
    "BundleError",
    "CheckpointError",
    "ChecksumError",
    "DeadOutputError",
    "Executor",
    "ExportError",
    "HubError",
    "ImageError",
    "InputError",
    "ManifestError",
    "MissingExtraError",
    "OnnxRuntimeExecutor",
    "OnnxRuntimeOptions",
    "ParityError",
    "PromptError",
    "ProviderError",
    "SamrtError",
    "TensorError",
    "TensorSpec",
    "UnsafePathError",
    "available_backends",
    "check_feeds",
    "open_executor",
]
