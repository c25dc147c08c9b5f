"""SAM 2 through bundle and runtime against transformers' implementation, on live random weights."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import hf_image_model, hf_video_state, oracle_masks, preprocess
from safetensors.torch import save_file

import samrt
from samrt_export.checkpoint import load_checkpoint
from samrt_export.export import export_model
from samrt_export.families.sam2 import CONFIGS, FAMILY, Sam2, build
from samrt_export.nano.evaluate import iou
from samrt_export.source import load_weights

SIZES = {"wide": (120, 400), "tall": (300, 90), "dot": (1, 1), "thread": (17, 2000), "large": (1200, 900)}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[samrt.Model, Any]:
    """nano's architecture with random weights: through the bundle, and in transformers."""
    path = tmp_path_factory.mktemp("live") / "bundle"
    export_model("nano", path, random_seed=5)
    module = load_weights(FAMILY, "nano", random_seed=5).module
    assert isinstance(module, Sam2)
    return samrt.load(path, threads=2), hf_image_model(module, "nano")


def picture(hw: tuple[int, int]) -> np.ndarray:
    """Noise over colour fields."""
    rng = np.random.default_rng(hw)
    fields = rng.integers(0, 256, (4, 4, 3)).repeat(-(-hw[0] // 4), 0).repeat(-(-hw[1] // 4), 1)[: hw[0], : hw[1]]
    return np.clip(fields + rng.normal(0, 15, (*hw, 3)), 0, 255).astype(np.uint8)


def prompt_kinds(count: int, hw: tuple[int, int], mask_side: int) -> dict[str, dict[str, Any]]:
    """The prompts of the official predictor, for ``count`` prompts on a picture of this size."""
    rng = np.random.default_rng(count)
    far = np.array([hw[1], hw[0]])
    points, labels = rng.uniform(0, 1, (count, 3, 2)) * far, np.tile([1, 0, 1], (count, 1))
    low, extent = rng.uniform(0, 0.5, (count, 2)), rng.uniform(0.1, 0.5, (count, 2))
    boxes = np.concatenate((low * far, (low + extent) * far), axis=1)
    kinds: dict[str, dict[str, Any]] = {
        "click": {"points": points[:, :1], "labels": labels[:, :1]},
        "points": {"points": points, "labels": labels},
        "box": {"boxes": boxes},
        "both": {"points": points[:, :1], "labels": labels[:, :1], "boxes": boxes},
    }
    if count == 1:
        mask = rng.normal(0, 5, (mask_side // 8, mask_side // 8)).repeat(8, 0).repeat(8, 1).astype(np.float32)
        kinds["mask and click"] = kinds["click"] | {"mask": mask}
    return kinds


def compare(model: samrt.Model, oracle: Any, image: np.ndarray, prompts: dict[str, Any], multimask: bool) -> float:
    """The smallest mask IoU between the two, after checking the scores."""
    ours = dict(prompts)
    if "mask" in ours:
        ours["masks"] = ours.pop("mask")
    result = model.decode(model.encode(image), samrt.Prompts(**ours), multimask)
    masks, scores = oracle_masks(oracle, image, **prompts, multimask=multimask)
    assert result.masks.shape == masks.shape
    np.testing.assert_allclose(result.scores, scores, atol=1e-3)
    return min(iou(a, b) for pair in zip(result.masks, masks, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("multimask", [True, False])
def test_masks_equal_the_oracle(live: tuple[samrt.Model, Any], name: str, multimask: bool) -> None:
    model, oracle = live
    image = picture(SIZES[name])
    if name == "dot":  # torch 2.13's antialiased resize of a one-pixel picture is exact: one colour
        assert preprocess(image, 256).std(dim=(2, 3)).max() < 1e-6
    for count in (1, 2, 7):
        for kind, prompts in prompt_kinds(count, SIZES[name], 64).items():
            assert compare(model, oracle, image, prompts, multimask) >= 0.999, (kind, count)


def test_prompts_matter(live: tuple[samrt.Model, Any]) -> None:
    """The comparison above is not between two models that ignore what they are asked."""
    model, _ = live
    image = picture((200, 300))
    features = model.encode(image)
    points = np.array([[[20.0, 20.0]], [[250.0, 150.0]]])
    masks = model.decode(features, samrt.Prompts(points=points, labels=[[1], [1]])).masks
    assert iou(masks[0, 0], masks[1, 0]) < 0.98
    other = model.decode(model.encode(255 - image), samrt.Prompts(points=points, labels=[[1], [1]])).masks
    assert iou(masks[0, 0], other[0, 0]) < 0.98


def test_a_mask_alone_is_a_prompt(live: tuple[samrt.Model, Any]) -> None:
    """The official predictor gives the decoder no prompt token at all then; transformers would add padding ones."""
    model, oracle = live
    image = picture((256, 256))
    mask = prompt_kinds(1, (256, 256), 64)["mask and click"]["mask"]
    result = model.decode(model.encode(image), samrt.Prompts(masks=mask))
    with torch.inference_mode():
        embeddings = oracle.get_image_embeddings(preprocess(image, 256))
        _, dense = oracle.prompt_encoder(None, None, None, torch.from_numpy(mask)[None, None])
        masks, scores, _, _ = oracle.mask_decoder(
            image_embeddings=embeddings[-1],
            image_positional_embeddings=oracle.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=torch.zeros(1, 1, 0, 128),
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=list(embeddings[:-1]),
        )
    np.testing.assert_allclose(result.scores[0], scores[0, 0].numpy(), atol=1e-4)
    np.testing.assert_allclose(result.mask_logits[0], masks[0, 0].numpy(), atol=2e-3)


def test_official_and_hugging_face_files_are_one_model(tmp_path: Path) -> None:
    """One set of full-size random weights, written in both layouts, loads strictly to the same parameters."""
    name = "sam2.1-hiera-tiny"
    module = build(name)
    FAMILY.randomize(module, 3)
    official = module.state_dict()
    torch.save({"model": official}, tmp_path / "official.pt")
    save_file({key: value.clone() for key, value in hf_video_state(official).items()}, tmp_path / "hub.safetensors")
    for file, layout in (("official.pt", "official"), ("hub.safetensors", "huggingface")):
        loaded = build(name)
        assert load_checkpoint(loaded, tmp_path / file, FAMILY, name).layout == layout
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, official[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "nano"])
def test_full_size(name: str, tmp_path: Path) -> None:
    """Every official variant at its full size. SAMRT_RECORD names a file that takes the measured figures, a line each."""
    started = time.perf_counter()
    report = export_model(name, tmp_path / "bundle", random_seed=0)
    module = load_weights(FAMILY, name, random_seed=0).module
    assert isinstance(module, Sam2)
    oracle = hf_image_model(module, name)
    image = picture((720, 1280))
    with samrt.load(tmp_path / "bundle") as model:
        kinds = prompt_kinds(1, (720, 1280), 256)
        ious = {kind: compare(model, oracle, image, prompts, True) for kind, prompts in kinds.items()}
    figures = {
        "model": name,
        "worst_relative_l2": max(row.relative_l2 for row in report.parity),
        "smallest_change": min(row.alive for row in report.parity),
        "smallest_iou": ious,
        "export_s": round(report.seconds, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if record := os.environ.get("SAMRT_RECORD"):
        with Path(record).open("a") as file:
            file.write(json.dumps(figures) + "\n")
    assert min(ious.values()) >= 0.999, figures
