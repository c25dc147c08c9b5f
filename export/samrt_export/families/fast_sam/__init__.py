"""FastSAM (CASIA-IVA-Lab): every mask of a picture at once, from a detector with mask prototypes.

Its code and weights are AGPL-3.0, and samrt holds none of either. The user brings an ONNX file, exported in an environment of
his own (``yolo export model=FastSAM-s.pt format=onnx imgsz=1024``), with images (1, 3, S, S) 0..1, output0 (1, 37, A) and
output1 (1, 32, S/4, S/4). What runs after it is samrt's own: `samrt.proposals`.

| graph    | inputs                             | outputs                                                             |
|----------|------------------------------------|---------------------------------------------------------------------|
| detector | image (1, S, S, 3) float32 0..255  | boxes (1, 4, A): centre and size in input pixels; scores (1, 1, A); |
|          |                                    | coefficients (1, 32, A); prototypes (1, 32, S / 4, S / 4)           |

A = (S / 8)^2 + (S / 16)^2 + (S / 32)^2 anchors. The reference that every form is compared with is the file itself, in
ONNX Runtime with nothing optimised. ``fast-sam-s-toy`` is a small network of samrt's own with the same interface, for
trying out the path; it is not YOLOv8's architecture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from samrt_engines.errors import CheckpointError, ExportError
from samrt_export.families.fast_sam.brought import BroughtDetector, open_file
from samrt_export.families.fast_sam.detector import DetectorGraph, StandIn, detector_spec
from samrt_export.randomize import randomize_live
from samrt_export.registry import Family, GraphSpec

__all__ = ["FAMILY", "StandIn", "build", "graphs", "numbers", "randomize"]

SIZES = {"fast-sam-s": 1024, "fast-sam-x": 1024, "fast-sam-s-toy": 256}
"""Model -> side of its input in pixels, where a file leaves it open."""
LICENCE_NOTE = (
    "FastSAM's code and weights are under AGPL-3.0. A file that was made from these weights, this bundle among them, carries "
    "that licence; samrt itself holds none of either."
)
_GAIN = 1.8
"""By which weights are drawn wider: each SiLU passes on about a third of the variance."""


class FromFile(nn.Module):
    """Stands for a network that only a user's file holds."""


def build(model: str) -> nn.Module:
    """The stand-in of a toy; nothing for the others, whose network comes with the file."""
    return DetectorGraph(StandIn(SIZES[model])) if model.endswith("-toy") else FromFile()


def randomize(module: nn.Module, seed: int) -> None:
    """Live random weights of the stand-in, in place. Raises ExportError for a network that is not here."""
    if not isinstance(module, DetectorGraph):
        raise ExportError(
            "FastSAM has no random weights here: samrt holds no copy of its network, which is AGPL-3.0",
            got="--random-weights",
            expected="--checkpoint FastSAM-s.onnx, an ONNX file that you exported",
            fix="to try out the path: samrt export fast-sam-s --toy --random-weights 0 -o DIR",
        )
    randomize_live(module, seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight *= _GAIN


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """The graph of a loaded model."""
    return (detector_spec(module, _size(module)),)


def numbers(model: str) -> dict[str, Any]:
    """The manifest's, of the usual input. Thresholds: what FastSAM's own script uses."""
    return _numbers(SIZES[model])


def _numbers(size: int) -> dict[str, Any]:
    return {
        "proposals": {
            "size_hw": [size, size],
            "pad_value": 114,
            "confidence": 0.4,
            "iou": 0.9,
            "max_detections": 300,
            "full_frame_iou": 0.9,
            "full_frame_edge_px": 20,
        }
    }


def _size(module: nn.Module) -> int:
    """Side of the input of a loaded model."""
    if isinstance(module, BroughtDetector):
        return module.file.size
    assert isinstance(module, DetectorGraph)
    assert isinstance(module.network, StandIn)
    return module.network.size


def _open(path: Path, model: str) -> nn.Module:
    if model.endswith("-toy"):  # a toy's licence is ours to give, a file's is not
        raise CheckpointError(
            f"{model} takes no file", fix=f"samrt export {model[:-4]} --checkpoint {path.name} -o DIR"
        )
    return open_file(path, model, SIZES[model])


FAMILY = Family(
    name="fast-sam",
    models=tuple(SIZES),
    build=build,
    graphs=graphs,
    numbers=numbers,
    abilities=lambda model: ("automatic", "points", "boxes"),
    official_from_hf=dict,
    randomize=randomize,
    licence=lambda model: ("Apache-2.0", "") if model.endswith("-toy") else ("AGPL-3.0", LICENCE_NOTE),
    hub_id=lambda model: None,
    shipped_checkpoint=lambda model: None,
    open_file=_open,
    module_numbers=lambda module: _numbers(_size(module)),
)
