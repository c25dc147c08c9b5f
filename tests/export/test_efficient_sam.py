"""EfficientSAM against its published arithmetic, written out here by the official file's names alone, on live random weights."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from full_size import answer_once, check_full_size
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import samrt
from samrt import CheckpointError, PromptError
from samrt.bundle import open_bundle
from samrt.transforms import Frame, image_to_input
from samrt_engines import ParityError
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.two_way import TwoWayTransformer
from samrt_export.checkpoint import load_checkpoint
from samrt_export.export import ExportReport, export_model
from samrt_export.families.efficient_sam import CONFIGS, FAMILY, EfficientSam, build
from samrt_export.forms import make_form
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs, run_module
from samrt_export.precision.narrow import checked_narrow, narrow_form
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

TOY = "efficient-sam-ti-toy"
SIZE = CONFIGS[TOY].image_size
SIZES = {
    "wide": (90, 400),
    "tall": (333, 120),
    "tiny": (5, 7),
    "larger": (300, 520),
    "exact": (256, 256),
    "dot": (1, 1),
}
ATTENTIONS = {"image_encoder": 2, "prompt_encoder": 0, "mask_decoder": 7}
FORBIDDEN = {"If", "Loop", "NonZero", "OneHot", "Tile", "Resize", "ScatterND", "ScatterElements", "GroupNormalization"}
SWOLLEN = 3000.0
"""Times what the first upscaling gives, its squares overflow fp16; the norm behind it takes the factor out again."""


@cache
def toy() -> EfficientSam:
    """The toy with live random weights."""
    module = load_weights(FAMILY, TOY, random_seed=5).module
    assert isinstance(module, EfficientSam)
    return module


def spec_named(name: str, module: EfficientSam | None = None, model: str = TOY) -> GraphSpec:
    """A graph's description."""
    return next(spec for spec in FAMILY.graphs(module or toy(), model) if spec.name == name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Its bundle, in fp16 for GPUs: what runs on a CPU is fp32, and the fp32 form for any target is compared on the way."""
    out, targets = tmp_path_factory.mktemp("efficient-sam") / "bundle", ("onnxruntime-cpu", "tensorrt")
    return export_model(TOY, out, random_seed=5, precision="fp16", targets=targets)


class Oracle:
    """The model as its authors' code reads: one prompt at a time, channels first, nothing shared with ours but the weights."""

    def __init__(self, state: dict[str, Tensor], size: int, heads: int) -> None:
        self.state, self.size, self.heads = state, size, heads

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        """Over the last axis."""
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Each (tokens, channels)."""
        width = q.shape[1] // heads
        parts = []
        for i in range(heads):
            own = slice(i * width, (i + 1) * width)
            parts.append((q[:, own] @ k[:, own].T / math.sqrt(width)).softmax(-1) @ v[:, own])
        return torch.cat(parts, dim=1)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> (1, 3, S, S), stretched, 0..1."""
        picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        return F.interpolate(picture, (self.size, self.size), mode="bilinear", align_corners=False)

    def embed(self, image: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> (C, h, w)."""
        name = "image_encoder"
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (self.preprocess(image) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        x = F.conv2d(x, *(self.state[f"{name}.patch_embed.proj.{part}"] for part in ("weight", "bias")), stride=16)
        table = self.state[f"{name}.pos_embed"][0, 1:].T.reshape(1, -1, 14, 14)
        x = x + F.interpolate(table, x.shape[2:], mode="bicubic", align_corners=False)
        h, w = x.shape[2:]
        x = x[0].flatten(1).T
        for i in range(sum(key.endswith("norm1.weight") for key in self.state if key.startswith(f"{name}.blocks."))):
            block = f"{name}.blocks.{i}"
            q, k, v = self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=1)
            x = x + self.linear(self.attention(q, k, v, self.heads), f"{block}.attn.proj")
            hidden = F.gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.linear(hidden, f"{block}.mlp.fc2")
        x = self.norm(x @ self.state[f"{name}.neck.0.weight"].flatten(1).T, f"{name}.neck.1", 1e-6)
        x = F.conv2d(x.T.reshape(1, -1, h, w), self.state[f"{name}.neck.2.weight"], padding=1)
        return self.norm(x[0].permute(1, 2, 0), f"{name}.neck.3", 1e-6).permute(2, 0, 1)

    def fourier(self, norm_xy: Tensor) -> Tensor:
        """(..., 2) in 0..1 -> (..., C)."""
        matrix = self.state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        turns = (2 * norm_xy - 1) @ matrix
        return torch.cat((torch.sin(2 * math.pi * turns), torch.cos(2 * math.pi * turns)), dim=-1)

    def prompt(self, points: np.ndarray, labels: np.ndarray, hw: tuple[int, int]) -> Tensor:
        """points (N, 2) in original pixels, labels (N,) -> (6, C)."""
        names = {-1: "invalid_points", 1: "point_embeddings"}
        names |= {2: "bbox_top_left_embeddings", 3: "bbox_bottom_right_embeddings"}
        rows = []
        for i in range(6):
            label = int(labels[i]) if i < len(labels) else -1
            x, y = (-1.0, -1.0)
            if label != -1:
                x, y = (
                    value * self.size / side if value >= 0 else -1.0
                    for value, side in zip(points[i].tolist(), (hw[1], hw[0]), strict=True)
                )
            place = self.fourier((torch.tensor([x, y]) + 0.5) / self.size)
            rows.append(place + self.state[f"prompt_encoder.{names[label]}.weight"][0])
        return torch.stack(rows)

    def attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """An attention of the decoder."""
        parts = (self.linear(x, f"{name}.{part}_proj") for x, part in ((q, "q"), (k, "k"), (v, "v")))
        return self.linear(self.attention(*parts, 8), f"{name}.out_proj")

    def head(self, x: Tensor, name: str, hidden: int) -> Tensor:
        for i in range(hidden):
            x = F.gelu(self.linear(x, f"{name}.layers.{i}.0"))
        return self.linear(x, f"{name}.fc")

    def decode(self, embed: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """embed: (C, h, w), prompt: (6, C) -> logits (3, 4h, 4w), scores (3,)."""
        c, h, w = embed.shape
        image = embed.flatten(1).T
        grid = [[((x + 0.5) / w, (y + 0.5) / h) for x in range(w)] for y in range(h)]
        places = self.fourier(torch.tensor(grid)).flatten(0, 1)
        name = "mask_decoder"
        start = torch.cat((self.state[f"{name}.iou_token.weight"], self.state[f"{name}.mask_tokens.weight"], prompt))
        tokens = start
        for i in range(2):
            layer = f"{name}.transformer.layers.{i}"
            if i > 0:
                tokens = tokens + start
            tokens = tokens + self.attend(f"{layer}.self_attn", tokens, tokens, tokens)
            tokens = self.norm(tokens, f"{layer}.norm1", 1e-5)
            seen = self.attend(f"{layer}.cross_attn_token_to_image", tokens + start, image + places, image)
            tokens = self.norm(tokens + seen, f"{layer}.norm2", 1e-5)
            tokens = self.norm(tokens + self.head(tokens, f"{layer}.mlp", 1), f"{layer}.norm3", 1e-5)
            said = self.attend(f"{layer}.cross_attn_image_to_token", image + places, tokens + start, tokens)
            image = self.norm(image + said, f"{layer}.norm4", 1e-5)
        final = self.attend(f"{name}.transformer.final_attn_token_to_image", tokens + start, image + places, image)
        tokens = self.norm(tokens + final, f"{name}.transformer.norm_final_attn", 1e-5)
        up, norm, last = (f"{name}.final_output_upscaling_layers.{part}" for part in ("0.0", "0.1", "1.0"))
        x = F.conv_transpose2d(
            image.T.reshape(1, c, h, w), self.state[f"{up}.weight"], self.state[f"{up}.bias"], stride=2
        )
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()  # one group: over all channels and pixels
        x = F.gelu(x * self.state[f"{norm}.weight"][:, None, None] + self.state[f"{norm}.bias"][:, None, None])
        x = F.gelu(F.conv_transpose2d(x, self.state[f"{last}.weight"], self.state[f"{last}.bias"], stride=2))[0]
        filters = [self.head(tokens[1 + i], f"{name}.output_hypernetworks_mlps.{i}", 2) for i in (1, 2, 3)]
        logits = torch.stack([torch.einsum("c,chw->hw", one, x) for one in filters])
        return logits, self.head(tokens[0], f"{name}.iou_prediction_head", 2)[1:]

    def masks(self, image: np.ndarray, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        """points (P, N, 2), labels (P, N) -> masks bool (P, 3, H, W), scores (P, 3), logits (P, 3, S/4, S/4)."""
        hw = (image.shape[0], image.shape[1])
        with torch.inference_mode():
            embed = self.embed(image)
            made = [self.decode(embed, self.prompt(*one, hw)) for one in zip(points, labels, strict=True)]
            logits, scores = (torch.stack(parts) for parts in zip(*made, strict=True))
            large = F.interpolate(logits, hw, mode="bilinear", align_corners=False)
        return (large > 0).numpy(), scores.numpy(), logits.numpy()


@cache
def oracle() -> Oracle:
    """The toy's."""
    return Oracle(dict(toy().state_dict()), SIZE, CONFIGS[TOY].heads)


def picture(hw: tuple[int, int]) -> np.ndarray:
    """Noise over colour fields."""
    rng = np.random.default_rng(hw)
    fields = rng.integers(0, 256, (4, 4, 3)).repeat(-(-hw[0] // 4), 0).repeat(-(-hw[1] // 4), 1)[: hw[0], : hw[1]]
    return np.clip(fields + rng.normal(0, 15, (*hw, 3)), 0, 255).astype(np.uint8)


def prompt_kinds(count: int, hw: tuple[int, int]) -> dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Kind -> samrt's prompts, and the same as the oracle's points (P, N, 2) and labels (P, N)."""
    rng = np.random.default_rng(count)
    far = np.array([hw[1], hw[0]])
    points, ones = rng.uniform(0, 1, (count, 6, 2)) * far, np.ones((count, 6), int)
    low, extent = rng.uniform(0, 0.5, (count, 2)), rng.uniform(0.1, 0.5, (count, 2))
    corners = np.stack((low, low + extent), axis=1) * far
    boxes, sides = corners.reshape(count, 4), np.tile([2, 3], (count, 1))
    kinds: dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray]] = {
        f"{n} points": ({"points": points[:, :n], "labels": ones[:, :n]}, points[:, :n], ones[:, :n])
        for n in range(1, 7)
    }
    kinds["box"] = ({"boxes": boxes}, corners, sides)
    kinds["box and 4 points"] = (
        {"points": points[:, :4], "labels": ones[:, :4], "boxes": boxes},
        np.concatenate((corners, points[:, :4]), axis=1),
        np.concatenate((sides, ones[:, :4]), axis=1),
    )
    return kinds


def compare(
    model: samrt.Model, oracle: Oracle, image: np.ndarray, kind: tuple[dict[str, Any], np.ndarray, np.ndarray]
) -> float:
    """The smallest mask IoU between the two, after checking scores and logits."""
    prompts, points, labels = kind
    result = model.decode(model.encode(image), samrt.Prompts(**prompts))
    masks, scores, logits = oracle.masks(image, points, labels)
    assert result.masks.shape == masks.shape
    np.testing.assert_allclose(result.scores, scores, atol=1e-4)
    assert np.linalg.norm(result.mask_logits - logits) / np.linalg.norm(logits) < 1e-4
    both, either = (result.masks & masks).sum((2, 3)), (result.masks | masks).sum((2, 3))
    return float(np.min(both / np.maximum(either, 1), where=either > 0, initial=1.0))


def test_parameters_are_the_published_ones() -> None:
    for model, total, encoder in (
        ("efficient-sam-ti", 10_223_204, 6_163_840),
        ("efficient-sam-s", 26_413_028, 22_353_664),
    ):
        with torch.device("meta"):
            module = build(model)
        assert sum(value.numel() for value in module.parameters()) == total
        assert sum(value.numel() for value in module.image_encoder.parameters()) == encoder
    names = toy().state_dict().keys()
    assert {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.qkv.bias",
        "image_encoder.neck.3.weight",
        "prompt_encoder.bbox_bottom_right_embeddings.weight",
        "mask_decoder.transformer.layers.1.mlp.layers.0.0.weight",
        "mask_decoder.transformer.layers.1.mlp.fc.bias",
        "mask_decoder.final_output_upscaling_layers.0.1.weight",
        "mask_decoder.output_hypernetworks_mlps.0.layers.1.0.weight",
        "mask_decoder.iou_prediction_head.fc.bias",
    } <= names


def test_the_official_file_loads_strictly(tmp_path: Path) -> None:
    state = toy().state_dict()
    torch.save({"model": state}, tmp_path / "official.pt")
    torch.save(state, tmp_path / "plain.pt")
    save_file(dict(state), tmp_path / "plain.safetensors")
    for file in ("official.pt", "plain.pt", "plain.safetensors"):
        loaded = build(TOY)
        assert load_checkpoint(loaded, tmp_path / file, FAMILY, TOY).layout == "official"
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, state[key]), key


def test_sizes_mixed_up_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samrt_export.checkpoint.families", lambda: {FAMILY.name: FAMILY})  # the others take seconds
    ti = build("efficient-sam-ti")
    FAMILY.randomize(ti, 0)
    torch.save({"model": ti.state_dict()}, tmp_path / "ti.pt")
    with pytest.raises(
        CheckpointError, match=r"does not fit efficient-sam-s.*looks like efficient-sam-ti: samrt export"
    ):
        load_checkpoint(build("efficient-sam-s"), tmp_path / "ti.pt", FAMILY, "efficient-sam-s")


def test_every_form_is_within_tolerance_and_alive(exported: ExportReport) -> None:
    forms = {(row.graph, row.form) for row in exported.parity}
    assert forms == {
        ("image_encoder", "fp32 for onnxruntime-cpu"),
        ("image_encoder", "fp16"),
        ("prompt_encoder", "fp32 for onnxruntime-cpu, openvino"),
        ("prompt_encoder", "fp16"),
        ("mask_decoder", "fp32 for onnxruntime-cpu, openvino"),
        ("mask_decoder", "fp16"),
    }
    for row in exported.parity:
        assert row.relative_l2 <= (5e-3 if row.form == "fp16" else 1e-5), row
        assert row.form != "fp16" or row.relative_l2 > 1e-5  # narrow indeed
        assert row.alive > 0.01


def test_graphs_hold_no_forbidden_operators(exported: ExportReport) -> None:
    for path in exported.path.glob("*.onnx"):
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert not FORBIDDEN & set(operators), path.name
        if path.stem in ATTENTIONS:
            assert operators.count("Attention") == ATTENTIONS[path.stem]
    on_cpu = onnx.load(exported.path / "image_encoder.onnxruntime-cpu.onnx").graph.node
    assert sum(node.op_type == "MultiHeadAttention" for node in on_cpu) == 2


@pytest.mark.parametrize("name", SIZES)
def test_preprocessing_equals_the_oracle(exported: ExportReport, name: str) -> None:
    """Stretched without antialiasing, value by value."""
    numbers = open_bundle(exported.path).manifest.numbers
    image = picture(SIZES[name])
    ours = image_to_input(image, numbers.image)
    theirs = 255 * oracle().preprocess(image)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert Frame(SIZES[name], numbers.image).content_hw == (SIZE, SIZE)


@pytest.mark.parametrize("name", SIZES)
def test_masks_equal_the_oracle(exported: ExportReport, name: str) -> None:
    image = picture(SIZES[name])
    with samrt.load(exported.path, threads=1) as model:
        for count in (1, 3) if name == "wide" else (1,):
            for kind, prompts in prompt_kinds(count, SIZES[name]).items():
                assert compare(model, oracle(), image, prompts) >= 0.999, (kind, count)


def test_prompts_matter(exported: ExportReport) -> None:
    """The comparison above is not between two models that ignore what they are asked."""
    image = picture((200, 300))
    with samrt.load(exported.path, threads=1) as model:
        features = model.encode(image)
        kinds = {kind: prompts for kind, (prompts, _, _) in prompt_kinds(1, (200, 300)).items()}
        answers = {kind: model.decode(features, samrt.Prompts(**prompts)) for kind, prompts in kinds.items()}
        other = model.decode(model.encode(255 - image), samrt.Prompts(**kinds["box"]))
    logits = [answer.mask_logits for answer in (*answers.values(), other)]
    for i, a in enumerate(logits):
        for b in logits[:i]:
            assert np.linalg.norm(a - b) / np.linalg.norm(b) > 0.01


def test_what_fills_up_a_prompt_has_no_place(exported: ExportReport) -> None:
    """Upstream's padding lies at (-1, -1), wherever the runtime leaves it; short lists are filled up in the same way."""
    image, point = picture((200, 300)), [[120.0, 80.0]]
    spec = spec_named("prompt_encoder")
    feeds = spec.sample({"prompts": 3}, 0)
    assert set(feeds["point_labels"].ravel()) == {-1, 1, 2, 3}
    moved = feeds["point_coords"] + 50 * (feeds["point_labels"] == -1)[..., None].astype(np.float32)
    with torch.inference_mode():
        (before,) = spec.module(*map(torch.from_numpy, feeds.values()))
        (after,) = spec.module(torch.from_numpy(moved), torch.from_numpy(feeds["point_labels"]))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with samrt.load(exported.path, threads=1) as model:
        features = model.encode(image)
        short = model.decode(features, samrt.Prompts(points=point, labels=[1]))
        filled = model.decode(features, samrt.Prompts(points=[*point, [7.0, 9.0]], labels=[1, -1]))
    np.testing.assert_array_equal(short.logits, filled.logits)


def test_one_picture_each(exported: ExportReport) -> None:
    """Prompts with a picture of their own give what they give alone."""
    images = [picture((200, 300)), picture((90, 400))]
    points = np.array([[[100.0, 50.0]], [[30.0, 60.0]]])
    with samrt.load(exported.path, threads=1) as model:
        together = model.decode(model.encode(images), samrt.Prompts(points=points, labels=[[1], [1]]))
        for i, image in enumerate(images):
            alone = model.decode(model.encode(image), samrt.Prompts(points=points[i], labels=[1]))
            np.testing.assert_allclose(together.logits[i], alone.logits[0], atol=1e-4)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [[5, 5], [9, 9]], "labels": [1, 0]}, r"no negative points.*got label 0"),
        ({"points": [[5, 5]], "labels": [1], "masks": np.zeros((64, 64))}, r"takes no mask prompts.*got 1 masks"),
        (
            {"points": np.ones((7, 2)), "labels": np.ones(7, int)},
            r"more points than the model takes.*got 7 points.*at most 6",
        ),
        (
            {"points": np.ones((5, 2)), "labels": np.ones(5, int), "boxes": [1, 1, 9, 9]},
            r"more points than.*got 5 points and 2 corners of the box.*at most 6",
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused(exported: ExportReport, prompts: dict[str, Any], message: str) -> None:
    with samrt.load(exported.path, threads=1) as model, pytest.raises(PromptError) as raised:
        model.decode(model.encode(picture((20, 30))), samrt.Prompts(**prompts))
    assert raised.match("(?s)" + message.replace("got ", r"got:?\s+"))


def test_the_self_attention_is_not_sams() -> None:
    """What is the same in all else, SAM's transformer, gives something else: the difference is no detail."""
    ours = toy().mask_decoder.transformer
    sams = TwoWayTransformer(2, 64, 8, 128, make_mlp=lambda: torch.nn.Identity()).eval()
    for i, layer in enumerate(ours.layers):
        sams.layers[i].mlp = layer.mlp
    sams.load_state_dict(ours.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(0)
    keys, key_pe, tokens = (torch.randn(1, n, 64, generator=generator) for n in (64, 64, 11))
    with torch.inference_mode():
        for a, b in zip(ours(keys, key_pe, tokens), sams(keys, key_pe, tokens), strict=True):
            assert (a - b).norm() / a.norm() > 0.1


@pytest.mark.parametrize("graph", ATTENTIONS)
def test_the_fp16_graphs_build_for_rtx(exported: ExportReport, graph: str) -> None:
    spec = spec_named(graph)
    content = (exported.path / f"{graph}.fp16.onnx").read_bytes()
    options = BuildOptions(flavour="rtx", sm="86")
    plan = build_plan(content, profiles=dict(spec.profiles), precision="fp16", options=options, name=graph)
    assert plan.facts is not None
    assert plan.facts.attentions == ATTENTIONS[graph]


@pytest.mark.slow
@pytest.mark.parametrize("graph", ATTENTIONS)
def test_bf16_holds_its_bar_and_builds(graph: str, tmp_path: Path) -> None:
    spec = spec_named(graph)
    stored = make_form(spec, spec.forms[-1], "bf16", reference_runs(spec), tmp_path)
    assert isinstance(stored.content, bytes)
    assert 1e-5 < max(row.relative_l2 for row in stored.parity) <= 4e-2
    options = BuildOptions(flavour="rtx", sm="86")
    build_plan(stored.content, profiles=dict(spec.profiles), precision="bf16", options=options, name=graph)


def test_the_norm_over_the_image_survives_fp16() -> None:
    """Large activations before it change nothing in fp32; a plain fp16 graph loses its masks; ours keeps what it must."""
    module = load_weights(FAMILY, TOY, random_seed=5).module
    assert isinstance(module, EfficientSam)
    up = module.mask_decoder.final_output_upscaling_layers.get_submodule("0.0")
    assert isinstance(up, torch.nn.ConvTranspose2d)
    assert up.bias is not None
    up.weight.mul_(SWOLLEN)
    up.bias.mul_(SWOLLEN)
    spec = spec_named("mask_decoder", module)
    runs, usual = (
        reference_runs(spec),
        run_module(spec_named("mask_decoder"), spec.sample({"prompts": 1, "images": 1}, 0)),
    )
    np.testing.assert_allclose(runs[0].outputs[0]["low_res_masks"], usual["low_res_masks"], atol=1e-3)
    model = onnx_from_spec(spec, spec.forms[-1].module)
    cast = typed_graph(model, "fp16", {}).SerializeToString()
    with pytest.raises(ParityError, match="low_res_masks"):
        checked_narrow(spec, cast, "fp16", runs, fp32=model)
    narrow = narrow_form(model, spec, "fp16", runs)
    rows = checked_narrow(spec, narrow.model.SerializeToString(), "fp16", runs, fp32=model)
    assert max(row.relative_l2 for row in rows) <= 5e-3
    reasons = {(group["op"], group["reason"]) for group in narrow.kept_fp32}
    for op in ("Mul", "ReduceMean"):
        assert any(kept == op and "fp16 ends at 6.55e+04" in reason for kept, reason in reasons), reasons


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.endswith("-toy")])
def test_full_size(name: str, tmp_path: Path) -> None:
    def masks(model: samrt.Model) -> dict[str, float]:
        module = load_weights(FAMILY, name, random_seed=0).module
        oracle, image = Oracle(dict(module.state_dict()), 1024, CONFIGS[name].heads), picture((720, 1280))
        oracle.embed = answer_once(oracle.embed)
        kinds = prompt_kinds(1, (720, 1280))
        return {kind: compare(model, oracle, image, prompts) for kind, prompts in kinds.items()}

    check_full_size(name, tmp_path, masks, {"image_encoder": 12, "prompt_encoder": 0, "mask_decoder": 7})
