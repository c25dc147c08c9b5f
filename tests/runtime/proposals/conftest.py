"""A bundle that proposes masks, small enough to predict every number of.

Input 32 x 32, 21 anchors, three prototypes of 8 x 8: mean red, green and blue of the pixels there, minus 128. Boxes, scores and
coefficients are constants.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samrt.proposals import ProposalModel

SIDE, ANCHORS, MAP = 32, 21, 8
SHAPES = {
    "boxes": [1, 4, ANCHORS],
    "scores": [1, 1, ANCHORS],
    "coefficients": [1, 3, ANCHORS],
    "prototypes": [1, 3, MAP, MAP],
}


def constants() -> dict[str, np.ndarray]:
    """What the detector says whatever the picture: boxes of all kinds, some of them over each other."""
    random = np.random.default_rng(3)
    boxes = np.concatenate((random.uniform(4, 28, (2, ANCHORS)), random.uniform(3, 30, (2, ANCHORS))))
    boxes[:, 1] = boxes[:, 0] + 0.25  # almost the same box
    boxes[:, 2] = (16, 16, 32, 30)  # almost everything
    scores = random.permutation(np.linspace(0.05, 0.95, ANCHORS))
    scores[:3] = (0.9, 0.8, 0.7)
    return {
        "boxes": boxes[None].astype(np.float32),
        "scores": scores[None, None].astype(np.float32),
        "coefficients": random.normal(size=(1, 3, ANCHORS)).astype(np.float32),
    }


def _model() -> bytes:
    values = constants() | {"half": np.array(128, np.float32)}
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["means"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["means", "half"], ["prototypes"]),
        *(helper.make_node("Identity", [f"stored {name}"], [name]) for name in constants()),
    ]
    stored = [
        numpy_helper.from_array(value, name if name == "half" else f"stored {name}") for name, value in values.items()
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in SHAPES.items()],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _manifest(model: bytes) -> dict[str, Any]:
    form = {
        "file": "detector.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
        "size": len(model),
        "data": [],
        "precision": "fp32",
        "targets": [],
        "opset": 18,
        "parity": {},
    }
    return {
        "format": "samrt-bundle",
        "version": 1,
        "source": {
            "model": "colours",
            "checkpoint": {"kind": "random", "sha256": None, "seed": 0},
            "licence": {"name": "Apache-2.0", "note": ""},
            "samrt": "0.1.0",
            "opset": 18,
        },
        "graphs": {
            "detector": {
                "inputs": [{"name": "image", "dtype": "float32", "shape": [1, SIDE, SIDE, 3]}],
                "outputs": [{"name": name, "dtype": "float32", "shape": shape} for name, shape in SHAPES.items()],
                "profiles": {},
                "forms": [form],
            }
        },
        "numbers": {
            "proposals": {
                "size_hw": [SIDE, SIDE],
                "pad_value": 114,
                "confidence": 0.4,
                "iou": 0.9,
                "max_detections": 300,
                "full_frame_iou": 0.9,
                "full_frame_edge_px": 2,
            }
        },
        "abilities": ["automatic", "points", "boxes"],
    }


@pytest.fixture
def proposal_manifest() -> dict[str, Any]:
    """The manifest, as JSON, to change at will."""
    return copy.deepcopy(_manifest(_model()))


@pytest.fixture(scope="session")
def write_proposal_bundle() -> Callable[[Path, dict[str, Any] | None], Path]:
    """Writes the bundle into a folder."""

    def write(folder: Path, manifest: dict[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "detector.onnx").write_bytes(_model())
        (folder / "manifest.json").write_text(json.dumps(manifest or _manifest(_model())))
        return folder

    return write


@pytest.fixture(scope="session")
def proposal_bundle(tmp_path_factory: pytest.TempPathFactory, write_proposal_bundle: Callable[..., Path]) -> Path:
    """The bundle. Read only."""
    return write_proposal_bundle(tmp_path_factory.mktemp("colours") / "bundle")


@pytest.fixture(scope="session")
def proposer(proposal_bundle: Path) -> Iterator[ProposalModel]:
    """The model, loaded once."""
    with ProposalModel(proposal_bundle, "onnxruntime", "cpu", 1) as model:
        yield model


@pytest.fixture(scope="session")
def detector_constants() -> dict[str, np.ndarray]:
    """What the detector always says."""
    return constants()
