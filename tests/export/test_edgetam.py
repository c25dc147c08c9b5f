"""EdgeTAM against transformers' implementation and timm's trunk, on live random weights.

Half the official picture size, the same parameters: nothing in the model depends on it. The full size is marked slow.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgetam_oracle import bank_feeds, hf_state, image_oracle, oracle_memory, session, video_config, with_weights
from safetensors.torch import save_file
from test_sam2_oracle import compare, picture, prompt_kinds
from torch import Tensor
from transformers import EdgeTamVideoModel

import samrt
from samrt import CheckpointError
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.repvit import M1, RepVit
from samrt_export.checkpoint import load_checkpoint
from samrt_export.export import ExportReport, export_model
from samrt_export.families.edgetam import CONFIGS, FAMILY, EdgeTam, build
from samrt_export.families.sam2 import build as build_sam2
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

HALF = replace(CONFIGS["edgetam"], image_size=512)
SEED = 5
ATTENTIONS = {"image_encoder": 0, "memory_encoder": 6, "memory_attention": 4}
"""Attention operators of the graphs that are not SAM 2's."""
FORBIDDEN = {"If", "Loop", "NonZero", "OneHot", "Tile", "ScatterND", "ScatterElements", "BatchNormalization"}
# What timm 1.0.20's repvit_m1 (features_only) makes of `numbered_weights` and `numbered_picture`: per map its mean, its standard
# deviation, and the values at (0, 0, 0, 0), (0, 7, 2, 1), (0, -1, -1, -1).
TIMM = (
    (0.795895, 0.475146, 0.954638, 1.07762, 1.12505),
    (0.911454, 0.704286, 1.33875, 3.2083, 0.197236),
    (1.42216, 1.6649, 0.363931, 0.476161, 0.881232),
    (0.830345, 0.979057, -0.753335, 2.64303, 0.368422),
)


def set_size(patch: pytest.MonkeyPatch) -> None:
    """Have the family build the smaller model."""
    patch.setitem(CONFIGS, "edgetam", HALF)


@pytest.fixture(scope="module")
def half() -> EdgeTam:
    """The smaller model with live random weights."""
    with pytest.MonkeyPatch.context() as patch:
        set_size(patch)
        module = load_weights(FAMILY, "edgetam", random_seed=SEED).module
    assert isinstance(module, EdgeTam)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Its bundle."""
    with pytest.MonkeyPatch.context() as patch:
        set_size(patch)
        return export_model("edgetam", tmp_path_factory.mktemp("edgetam") / "bundle", random_seed=SEED)


@pytest.fixture(scope="module")
def video_oracle(half: EdgeTam) -> EdgeTamVideoModel:
    """transformers' video model with our weights."""
    return with_weights(EdgeTamVideoModel(video_config(512)), half)


def numbered_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a trunk that depend on the names alone: numpy's generator gives the same numbers everywhere."""
    filled = {}
    for key in sorted(state):
        value, rng = state[key], np.random.default_rng(zlib.crc32(key.encode()))
        noise = rng.normal(0, 1, tuple(value.shape))
        if key.endswith("num_batches_tracked"):
            numbers = noise * 0
        elif key.endswith("running_var"):
            numbers = 1 + 0.4 * np.tanh(noise)
        elif key.endswith("bn.weight"):
            numbers = 0.5 + 0.1 * noise
        elif value.ndim == 1:
            numbers = 0.3 + 0.1 * noise
        else:
            numbers = noise / np.sqrt(value[0].numel())
        filled[key] = torch.from_numpy(np.asarray(numbers)).to(value.dtype)
    return filled


def numbered_picture() -> Tensor:
    """(1, 3, 96, 128), about normal."""
    return torch.from_numpy(np.random.default_rng(9).normal(0, 1, (1, 3, 96, 128)).astype(np.float32))


def fingerprint(maps: list[Tensor]) -> list[list[float]]:
    """Of each map (B, C, H, W): mean, standard deviation, three values."""
    return [
        [level.mean().item(), level.std().item()]
        + [level[place].item() for place in ((0, 0, 0, 0), (0, 7, 2, 1), (0, -1, -1, -1))]
        for level in maps
    ]


@pytest.mark.parametrize("fused", [False, True])
def test_trunk_equals_timm(fused: bool) -> None:
    trunk = RepVit(M1).eval()
    trunk.load_state_dict(numbered_weights(trunk.state_dict()), strict=True)
    with torch.inference_mode():
        maps = (trunk.fused() if fused else trunk)(numbered_picture())
    assert [tuple(level.shape[1:]) for level in maps] == [(48, 24, 32), (96, 12, 16), (192, 6, 8), (384, 3, 4)]
    np.testing.assert_allclose(fingerprint(maps), TIMM, rtol=2e-4, atol=2e-5)


def test_fused_trunk_is_plain_convolutions(half: EdgeTam) -> None:
    body = half.image_encoder.trunk.get_submodule("body")
    assert isinstance(body, RepVit)
    fused = body.fused()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in fused.modules())
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in body.modules())  # the trunk itself stays as it was
    pictures = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for ours, theirs in zip(fused(pictures), body(pictures), strict=True):
            assert theirs.std() > 0.1
            assert (ours - theirs).norm() / theirs.norm() < 1e-6


def test_parameters_are_the_published_ones() -> None:
    module = build("edgetam")
    assert sum(value.numel() for value in module.parameters()) == 13_895_794
    assert not {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight"} & module.state_dict().keys()


def test_official_and_hugging_face_files_are_one_model(half: EdgeTam, tmp_path: Path) -> None:
    official = half.state_dict()
    with torch.device("meta"):
        template = EdgeTamVideoModel(video_config(512)).state_dict()
    template = {key: value for key, value in template.items() if ".backbone." not in key}
    trunk = "image_encoder.trunk.body."
    for key, value in official.items():
        if key.startswith(trunk):
            template["vision_encoder.backbone.timm_model." + key.removeprefix(trunk)] = value
    torch.save({"model": official}, tmp_path / "official.pt")
    save_file(hf_state(template, official), tmp_path / "hub.safetensors")
    for file, layout in (("official.pt", "official"), ("hub.safetensors", "huggingface")):
        loaded = build("edgetam")
        assert load_checkpoint(loaded, tmp_path / file, FAMILY, "edgetam").layout == layout
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, official[key]), key


def test_files_of_sam2_and_edgetam_are_told_apart(half: EdgeTam, tmp_path: Path) -> None:
    torch.save({"model": half.state_dict()}, tmp_path / "edgetam.pt")
    with pytest.raises(CheckpointError, match=r"does not fit sam2\.1-hiera-tiny.*looks like edgetam"):
        load_checkpoint(build_sam2("sam2.1-hiera-tiny"), tmp_path / "edgetam.pt", FAMILY, "sam2.1-hiera-tiny")
    state = half.state_dict()
    del state["spatial_perceiver.layers.1.attn.to_kv.weight"]
    torch.save({"model": state}, tmp_path / "part.pt")
    with pytest.raises(
        CheckpointError, match=r"1 missing: spatial_perceiver\.layers\.1\.attn\.to_kv\.weight.*edgetam all"
    ):
        load_checkpoint(build("edgetam"), tmp_path / "part.pt", FAMILY, "edgetam")


def test_every_form_is_within_tolerance_and_alive(exported: ExportReport) -> None:
    assert {row.graph for row in exported.parity} == {
        "image_encoder",
        "prompt_encoder",
        "mask_decoder",
        "memory_attention",
        "memory_encoder",
        "mask_downsampler",
    }
    for row in exported.parity:
        assert row.relative_l2 <= 1e-5
        assert row.alive > 0.01


def test_graphs_hold_no_forbidden_operators(exported: ExportReport) -> None:
    counts = {}
    for path in exported.path.glob("*.onnx"):
        counts[path.stem] = Counter(node.op_type for node in onnx.load(path).graph.node)
        assert not FORBIDDEN & counts[path.stem].keys(), path.name
    # stem 2; 20 blocks and 3 before the halvings with 3 each, 3 halvings with 4, 10 squeezes with 2
    assert counts["image_encoder"]["Conv"] == 2 + 23 * 3 + 3 * 4 + 10 * 2
    assert counts["memory_encoder"]["Attention"] == ATTENTIONS["memory_encoder"]


@pytest.mark.parametrize("hw", [(120, 400), (1200, 900)])
def test_masks_equal_the_oracle(exported: ExportReport, half: EdgeTam, hw: tuple[int, int]) -> None:
    """Bundle and runtime, which know nothing of EdgeTAM, against transformers' image model."""
    oracle, image = image_oracle(half), picture(hw)
    with samrt.load(exported.path, threads=2) as model:
        for kind, prompts in prompt_kinds(1, hw, 128).items():
            assert compare(model, oracle, image, prompts, True) >= 0.999, kind


def spec_named(module: EdgeTam, name: str) -> GraphSpec:
    """A graph's description."""
    return next(spec for spec in FAMILY.graphs(module, "edgetam") if spec.name == name)


def run(spec: GraphSpec, feeds: dict[str, np.ndarray]) -> list[Tensor]:
    """The module on feeds."""
    with torch.inference_mode():
        return list(spec.module(*(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs)))


def test_memory_equals_the_oracle(half: EdgeTam, video_oracle: Any) -> None:
    spec = spec_named(half, "memory_encoder")
    feeds = spec.sample({"objects": 3}, 0)
    memory, pointer = run(spec, feeds)
    embed = torch.from_numpy(feeds["image_embed"]) - half.no_mem_embed
    assert memory.shape == (3, 512, 64)
    assert set(feeds["binarize"]) == {0, 1}
    for index in range(3):
        logits = torch.from_numpy(feeds["mask_logits"][index : index + 1])
        theirs, _ = oracle_memory(video_oracle, embed.detach(), logits, bool(feeds["binarize"][index]))
        assert (memory[index] - theirs[0]).norm() / theirs.norm() < 2e-6
    there = torch.from_numpy(feeds["object_score_logits"]) > 0
    assert there.flatten().tolist() == [True, False, True]
    with torch.inference_mode():
        wanted = video_oracle.object_pointer_proj(torch.from_numpy(feeds["object_token"]))
        wanted = torch.where(there, wanted, video_oracle.no_object_pointer)
    torch.testing.assert_close(pointer, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frame", [1, 4, 9])
def test_conditioning_equals_the_oracle(half: EdgeTam, video_oracle: Any, frame: int) -> None:
    """The prompted frame, at most six frames before, at most fifteen pointers more; slots and pointers in any order."""
    bank = session(video_oracle, frame)
    embed = torch.from_numpy(np.random.default_rng(frame).normal(0, 2, (1, 1024, 256)).astype(np.float32))
    encoding = video_oracle.vision_encoder.neck.position_encoding(torch.Size((1, 256, 32, 32)), "cpu", torch.float32)
    with torch.inference_mode():
        wanted = video_oracle._prepare_memory_conditioned_features(
            bank, frame, 0, False, embed.transpose(0, 1), encoding.flatten(2).permute(2, 0, 1), 100
        )
    spec = spec_named(half, "memory_attention")
    feeds = bank_feeds(bank, frame) | {"image_embed": (embed + half.no_mem_embed).detach().numpy()}
    ours = run(spec, feeds)
    for key in ("memory", "memory_time", "memory_valid"):
        feeds[key] = feeds[key][:, ::-1].copy()
    for form in spec.forms:
        again = run(replace(spec, module=form.module), feeds)
        for a, b in zip(again, ours, strict=True):
            assert (a - b).norm() / b.norm() < 2e-6
    theirs = wanted.flatten(2).transpose(1, 2)
    assert (ours[0] - theirs).norm() / theirs.norm() < 2e-6


def test_mask_prompt_equals_the_oracle(half: EdgeTam, video_oracle: Any) -> None:
    spec = spec_named(half, "mask_downsampler")
    feeds = spec.sample({"objects": 2}, 0)
    with torch.inference_mode():
        wanted = video_oracle.mask_downsample(torch.from_numpy(feeds["mask"]))
    assert wanted.std() > 0.1
    torch.testing.assert_close(run(spec, feeds)[0], wanted)


@pytest.fixture(scope="module")
def full() -> EdgeTam:
    """The official size, random weights."""
    module = load_weights(FAMILY, "edgetam", random_seed=0).module
    assert isinstance(module, EdgeTam)
    return module


@pytest.mark.parametrize("graph", list(ATTENTIONS))
def test_full_size_builds_for_rtx(full: EdgeTam, graph: str) -> None:
    """The graphs that are not SAM 2's, in fp16, with the manifest's profiles."""
    spec = spec_named(full, graph)
    content = typed_graph(onnx_from_spec(spec, spec.forms[-1].module), "fp16", {}).SerializeToString()
    options = BuildOptions(flavour="rtx", sm="86")
    plan = build_plan(content, profiles=dict(spec.profiles), precision="fp16", options=options, name=graph)
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (ATTENTIONS[graph], 0)  # all of them fused
    assert len(plan.data) > 0.9 * len(content)


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """Export and masks at the official size."""
    report = export_model("edgetam", tmp_path / "bundle", random_seed=0)
    assert max(row.relative_l2 for row in report.parity) <= 1e-5
    module = load_weights(FAMILY, "edgetam", random_seed=0).module
    assert isinstance(module, EdgeTam)
    oracle, image = image_oracle(module), picture((720, 1280))
    with samrt.load(tmp_path / "bundle") as model:
        ious = {
            kind: compare(model, oracle, image, prompts, True)
            for kind, prompts in prompt_kinds(1, (720, 1280), 256).items()
        }
    assert min(ious.values()) >= 0.999, ious
