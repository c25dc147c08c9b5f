"""Segment-Anything models at run time, without PyTorch.

    import samrt

    model = samrt.load("bundles/sam2.1-tiny")
    features = model.encode(samrt.read_image("picture.jpg"))
    result = model.decode(features, samrt.Prompts(points=[[500, 375]], labels=[1])).best()
    result.masks  # bool (P, C, H, W), original pixels

Importing it loads numpy and nothing heavier; engines and Pillow are imported where they are used, whole pictures,
folders, video and 3D when first named.
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
    from samrt import assets, media, proposals, reconstruct, video
    from samrt.automatic import AutomaticMaskGenerator
    from samrt.detections import Boxes, read_boxes
    from samrt.folder import JobReport, segment_boxes, segment_everything
    from samrt.media import track_video
    from samrt.proposals import ProposalModel
    from samrt.reconstruct import Reconstruction, Reconstructor
    from samrt.segments import Segments
    from samrt.video import VideoPredictor, VideoTracker

__version__ = "0.1.0"

__all__ = [
    "AutomaticMaskGenerator",
    "BackendError",
    "Boxes",
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
    "JobReport",
    "ManifestError",
    "MissingExtraError",
    "Model",
    "ParityError",
    "PromptError",
    "Prompts",
    "ProposalModel",
    "ProviderError",
    "Reconstruction",
    "Reconstructor",
    "Result",
    "SamrtError",
    "Segments",
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
    "proposals",
    "read_boxes",
    "read_image",
    "reconstruct",
    "segment_boxes",
    "segment_everything",
    "track_video",
    "video",
]

_LATER = {
    "AutomaticMaskGenerator": "samrt.automatic",
    "Boxes": "samrt.detections",
    "JobReport": "samrt.folder",
    "ProposalModel": "samrt.proposals",
    "Reconstruction": "samrt.reconstruct",
    "Reconstructor": "samrt.reconstruct",
    "Segments": "samrt.segments",
    "VideoPredictor": "samrt.video",
    "VideoTracker": "samrt.video",
    "read_boxes": "samrt.detections",
    "segment_boxes": "samrt.folder",
    "segment_everything": "samrt.folder",
    "track_video": "samrt.media",
}


def __getattr__(name: str) -> Any:
    """Most of what there is to import, most processes never need: it is loaded when first named."""
    if name in {"assets", "media", "proposals", "reconstruct", "video"}:
        return import_module(f"samrt.{name}")
    if home := _LATER.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
