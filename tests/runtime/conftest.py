"""A bundle small enough to predict every number of.

Input 32 x 32, masks 16 x 16. The graphs segment by redness:

    logits of candidate k = mean red of the pixel - (128, 64, 128, 192)[k] + mask prompt
    score of candidate k  = (0.5, 0.6, 0.9, 0.7)[k] + 0.0001 * sum of the points' x in input pixels
    object score          = sum of the points' labels, padding included
"""

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

import samrt

INPUT, MASK = 32, 16
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
DTYPES = {FLOAT: "float32", INT32: "int32"}

IMAGE_ENCODER = {
    "inputs": [("image", FLOAT, ["images", INPUT, INPUT, 3])],
    "outputs": [
        ("image_embed", FLOAT, ["images", 3, 4, 4]),
        ("high_res_feats_0", FLOAT, ["images", 3, MASK, MASK]),
    ],
}
PROMPT_ENCODER = {
    "inputs": [
        ("point_coords", FLOAT, ["prompts", "points", 2]),
        ("point_labels", INT32, ["prompts", "points"]),
        ("mask_input", FLOAT, ["prompts", 1, MASK, MASK]),
        ("has_mask_input", FLOAT, ["prompts"]),
    ],
    "outputs": [
        ("sparse_embeddings", FLOAT, ["prompts", "points", 3]),
        ("dense_embeddings", FLOAT, ["prompts", 1, MASK, MASK]),
    ],
}
MASK_DECODER = {
    "inputs": [
        ("image_embed", FLOAT, ["images", 3, 4, 4]),
        ("high_res_feats_0", FLOAT, ["images", 3, MASK, MASK]),
        *PROMPT_ENCODER["outputs"],
    ],
    "outputs": [
        ("low_res_masks", FLOAT, ["prompts", 4, MASK, MASK]),
        ("iou_predictions", FLOAT, ["prompts", 4]),
        ("object_score_logits", FLOAT, ["prompts", 1]),
    ],
}


def _model(name: str, io: dict[str, Any], nodes: list[Any], constants: dict[str, Any]) -> bytes:
    tensors = {
        side: [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in io[side]]
        for side in ("inputs", "outputs")
    }
    values = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, tensors["inputs"], tensors["outputs"], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _pool(output: str, size: int) -> Any:
    return helper.make_node("AveragePool", ["nchw"], [output], kernel_shape=[size] * 2, strides=[size] * 2)


def _models() -> dict[str, bytes]:
    node = helper.make_node
    encoder = [
        node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        _pool("image_embed", INPUT // 4),
        _pool("high_res_feats_0", INPUT // MASK),
    ]
    prompter = [
        node("Cast", ["point_labels"], ["float_labels"], to=FLOAT),
        node("Unsqueeze", ["float_labels", "last"], ["label_column"]),
        node("Concat", ["point_coords", "label_column"], ["sparse_embeddings"], axis=-1),
        node("Reshape", ["has_mask_input", "column"], ["has_column"]),
        node("Mul", ["mask_input", "has_column"], ["dense_embeddings"]),
    ]
    decoder = [
        node("Slice", ["high_res_feats_0", "zero", "one", "one"], ["red"]),
        node("Sub", ["red", "levels"], ["redness"]),
        node("Add", ["redness", "dense_embeddings"], ["low_res_masks"]),
        node("ReduceSum", ["sparse_embeddings", "one"], ["sums"], keepdims=0),
        node("Slice", ["sums", "zero", "one", "one"], ["x_sum"]),
        node("Mul", ["x_sum", "x_weight"], ["x_score"]),
        node("Add", ["base_scores", "x_score"], ["iou_predictions"]),
        node("Slice", ["sums", "two", "three", "one"], ["object_score_logits"]),
    ]
    numbers = {name: np.array([value]) for value, name in enumerate(("zero", "one", "two", "three"))}
    levels = np.array([128, 64, 128, 192], np.float32).reshape(1, 4, 1, 1)
    scores = np.array([[0.5, 0.6, 0.9, 0.7]], np.float32)
    shapes = {"last": np.array([-1]), "column": np.array([-1, 1, 1, 1])}
    return {
        "image_encoder": _model("image_encoder", IMAGE_ENCODER, encoder, {}),
        "prompt_encoder": _model("prompt_encoder", PROMPT_ENCODER, prompter, shapes),
        "mask_decoder": _model(
            "mask_decoder",
            MASK_DECODER,
            decoder,
            {"levels": levels, "base_scores": scores, "x_weight": np.float32(1e-4), **numbers},
        ),
    }


def _graph(name: str, io: dict[str, Any], model: bytes, profiles: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    def tensors(side: str) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": DTYPES[dtype], "shape": shape} for name, dtype, shape in io[side]]

    return {
        "inputs": tensors("inputs"),
        "outputs": tensors("outputs"),
        "profiles": {key: dict(zip(("min", "opt", "max"), sizes, strict=True)) for key, sizes in profiles.items()},
        "forms": [
            {
                "file": f"{name}.onnx",
                "sha256": hashlib.sha256(model).hexdigest(),
                "size": len(model),
                "data": [],
                "precision": "fp32",
                "targets": [],
                "opset": 18,
                "parity": {"out": {"max_abs": 1e-6, "relative_l2": 1e-7, "cosine": 1.0}},
            }
        ],
    }


def _manifest(models: dict[str, bytes]) -> dict[str, Any]:
    prompts = {"prompts": (1, 1, 4), "points": (0, 2, 9)}
    return {
        "format": "samrt-bundle",
        "version": 1,
        "source": {
            "model": "redness",
            "checkpoint": {"kind": "random", "sha256": None, "seed": 0},
            "licence": {"name": "Apache-2.0", "note": ""},
            "samrt": "0.1.0",
            "opset": 18,
            "torch": "2.13.0",
            "onnx": "1.23.2",
        },
        "graphs": {
            "image_encoder": _graph("image_encoder", IMAGE_ENCODER, models["image_encoder"], {"images": (1, 1, 2)}),
            "prompt_encoder": _graph("prompt_encoder", PROMPT_ENCODER, models["prompt_encoder"], prompts),
            "mask_decoder": _graph(
                "mask_decoder", MASK_DECODER, models["mask_decoder"], {**prompts, "images": (1, 1, 4)}
            ),
        },
        "numbers": {
            "image": {
                "size_hw": [INPUT, INPUT],
                "mean": [0.5, 0.25, 0.75],
                "std": [0.25, 0.25, 0.25],
                "resize": "stretch",
                "antialias": True,
                "value_range": [0, 255],
            },
            "prompts": {
                "labels": {"negative": 0, "positive": 1, "box_top_left": 2, "box_bottom_right": 3, "padding": -1},
                "padding_point": "always",
                "max_points": 8,
                "mask_size_hw": [MASK, MASK],
            },
            "masks": {
                "threshold": 0.0,
                "logits_clamp": 32.0,
                "size_hw": [MASK, MASK],
                "single": [0],
                "multi": [1, 2, 3],
                "stability": {"delta": 0.05, "threshold": 0.98},
            },
        },
        "abilities": ["points", "boxes", "masks", "multimask"],
    }


@pytest.fixture(scope="session")
def models() -> dict[str, bytes]:
    """The ONNX files of the fake model."""
    return _models()


@pytest.fixture
def manifest(models: dict[str, bytes]) -> dict[str, Any]:
    """The manifest of the fake model, as JSON, to change at will."""
    return copy.deepcopy(_manifest(models))


@pytest.fixture(scope="session")
def write_bundle(models: dict[str, bytes]) -> Callable[..., Path]:
    """Writes the fake bundle into a folder: write_bundle(folder, manifest=...)."""

    def write(folder: Path, manifest: dict[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, model in models.items():
            (folder / f"{name}.onnx").write_bytes(model)
        (folder / "manifest.json").write_text(json.dumps(manifest or _manifest(models)))
        return folder

    return write


@pytest.fixture
def bundle_path(tmp_path: Path, write_bundle: Callable[..., Path]) -> Path:
    """A sound bundle of one's own, to damage."""
    return write_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, write_bundle: Callable[..., Path]) -> Iterator[samrt.Model]:
    """The fake model, loaded once."""
    with samrt.load(write_bundle(tmp_path_factory.mktemp("shared") / "bundle"), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def hq_bundle_path(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, bytes], write_bundle: Callable[..., Path]
) -> Path:
    """The fake model with what SAM-HQ's decoder gives besides: an HQ mask, mean red of the pixel + mask prompt. Read only."""
    decoder = onnx.load_from_string(models["mask_decoder"])
    decoder.graph.node.append(helper.make_node("Add", ["red", "dense_embeddings"], ["low_res_hq_masks"]))
    shape = ["prompts", 1, MASK, MASK]
    decoder.graph.output.append(helper.make_tensor_value_info("low_res_hq_masks", FLOAT, shape))
    manifest = _manifest(models | {"mask_decoder": decoder.SerializeToString()})
    output = {"name": "low_res_hq_masks", "dtype": "float32", "shape": shape}
    manifest["graphs"]["mask_decoder"]["outputs"].append(output)
    folder = write_bundle(tmp_path_factory.mktemp("hq") / "bundle", manifest)
    (folder / "mask_decoder.onnx").write_bytes(decoder.SerializeToString())
    return folder


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """uint8 (48, 64, 3): a red square at rows 12..35, columns 16..47, on black."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[12:36, 16:48, 0] = 255
    return image
