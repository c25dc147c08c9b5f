"""The lowest floor of samrt: graphs in, tensors out. It knows tensors, not images; importing it loads numpy only.

For example::

    with open_executor(Path("mask_decoder.onnx"), device="cpu", threads=4) as executor:
        print(executor.provider, *executor.inputs, sep="\\n")
        outputs = executor.run({"image_embed": ..., ...})
"""

from samrt_engines.backends import BackendInfo, available_backends, look_at_backend
from samrt_engines.choice import Decision, DecisionStore, Option, cache_folder, open_fastest, sample_feeds
from samrt_engines.device import DeviceArray
from samrt_engines.errors import (
    BackendError,
    BuildError,
    BundleError,
    CheckpointError,
    ChecksumError,
    DeadOutputError,
    DeviceError,
    ExportError,
    HubError,
    ImageError,
    InputError,
    ManifestError,
    MissingExtraError,
    ParityError,
    PlanError,
    PromptError,
    ProviderError,
    SamrtError,
    SelfTestError,
    TensorError,
    UnsafePathError,
)
from samrt_engines.executor import BACKENDS, DeviceExecutor, Executor, open_executor
from samrt_engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeOptions
from samrt_engines.openvino import OpenVinoExecutor
from samrt_engines.tensors import DTYPES, Array, TensorSpec, check_feeds

__all__ = [
    "BACKENDS",
    "DTYPES",
    "Array",
    "BackendError",
    "BackendInfo",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "ChecksumError",
    "DeadOutputError",
    "Decision",
    "DecisionStore",
    "DeviceArray",
    "DeviceError",
    "DeviceExecutor",
    "Executor",
    "ExportError",
    "HubError",
    "ImageError",
    "InputError",
    "ManifestError",
    "MissingExtraError",
    "OnnxRuntimeExecutor",
    "OnnxRuntimeOptions",
    "OpenVinoExecutor",
    "Option",
    "ParityError",
    "PlanError",
    "PromptError",
    "ProviderError",
    "SamrtError",
    "SelfTestError",
    "TensorError",
    "TensorSpec",
    "UnsafePathError",
    "available_backends",
    "cache_folder",
    "check_feeds",
    "look_at_backend",
    "open_executor",
    "open_fastest",
    "sample_feeds",
]
