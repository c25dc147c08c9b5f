"""Segment-Anything models at run time, without PyTorch.

    import samrt

    model = samrt.load("bundles/sam2.1-tiny")
    features = model.encode(samrt.read_image("picture.jpg"))
    result = model.decode(features, samrt.Prompts(points=[[500, 375]], labels=[1])).best()
    result.masks  # bool (P, C, H, W), original pixels

Importing it loads numpy and nothing heavier; engines and Pillow are imported where they are used, video and 3D when first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samrt.draw import grid, overlay
from samrt.features import Features
from samrt.images import as_rgb_uint8, read_image
from samrt.model import Model, load
from samrt.predictor import ImagePredictor
from samrt.prompts import Prompts
from samrt.result import Result
from samrt_engines.errors import (
    BackendError,
    BundleError,
    Cancelled,
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

if TYPE_CHECKING:
    from samrt import assets, media, reconstruct, video
    from samrt.media import track_video
    from samrt.reconstruct import Reconstruction, Reconstructor
    from samrt.video import VideoPredictor, VideoTracker

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "ChecksumError",
    "DeadOutputError",
    "ExportError",
    "Features",
    "HubError",
    "ImageError",
    "ImagePredictor",
    "InputError",
    "ManifestError",
    "MissingExtraError",
    "Model",
    "ParityError",
    "PromptError",
    "Prompts",
    "ProviderError",
    "Reconstruction",
    "Reconstructor",
    "Result",
    "SamrtError",
    "TensorError",
    "UnsafePathError",
    "VideoPredictor",
    "VideoTracker",
    "__version__",
    "as_rgb_uint8",
    "assets",
    "grid",
    "load",
    "media",
    "overlay",
    "read_image",
    "reconstruct",
    "track_video",
    "video",
]

_LATER = {
    "Reconstruction": "samrt.reconstruct",
    "Reconstructor": "samrt.reconstruct",
    "VideoPredictor": "samrt.video",
    "VideoTracker": "samrt.video",
    "track_video": "samrt.media",
}


def __getattr__(name: str) -> Any:
    """Video and 3D are most of what there is to import, and most processes need neither: they are loaded when first named."""
    if name in {"assets", "media", "reconstruct", "video"}:
        return import_module(f"samrt.{name}")
    if home := _LATER.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
