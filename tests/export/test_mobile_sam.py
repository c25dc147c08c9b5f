"""MobileSAM against its encoder written a second time, window by window, and transformers' SAM behind it; live random weights.

No package has MobileSAM for this PyTorch: the second encoder is written from the paper and the names in its file.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from full_size import answer_once, check_full_size
from onnx import numpy_helper
from precision_cases import constant, replace_constant
from sam_oracle import hf_config, hf_state, oracle_masks
from test_sam2_oracle import picture, prompt_kinds
from torch import Tensor
from torch.nn import functional as F
from transformers import SamModel

import samrt
from samrt import CheckpointError, ParityError
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.tiny_vit import TinyVit
from samrt_export.checkpoint import load_checkpoint
from samrt_export.export import ExportReport, export_model
from samrt_export.families import sam
from samrt_export.families.mobile_sam import CONFIGS, FAMILY, build
from samrt_export.families.sam import Sam
from samrt_export.families.sam.specs import run
from samrt_export.forms import checked_parity
from samrt_export.nano.evaluate import iou
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.narrow import checked_narrow, narrow_form
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

TOY = "mobile-sam-toy"
SEED = 5
FORBIDDEN = {"If", "Loop", "NonZero", "OneHot", "Tile", "ScatterND", "ScatterElements", "Gather", "BatchNormalization"}
HOT = 2e4
"""Times what a depthwise convolution gives, fp16 overflows."""
State = dict[str, Tensor]


class ByHand:
    """TinyViT from a state dict, with nothing of ours in it."""

    def __init__(self, state: State, model: str) -> None:
        encoder, config = CONFIGS[model]
        self.state = {key.removeprefix("image_encoder."): value for key, value in state.items()}
        self.config, self.size = encoder, config.image_size

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (1, 3, S, S) normalised -> embedding (1, C, h, w), the second stage's end (1, early, h, w)."""
        x = F.gelu(self.conv(pixels, "patch_embed.seq.0", stride=2))
        x = self.conv(x, "patch_embed.seq.2", stride=2)
        for i in range(self.config.depths[0]):
            block = f"layers.0.blocks.{i}"
            y = F.gelu(self.conv(x, f"{block}.conv1"))
            y = F.gelu(self.conv(y, f"{block}.conv2"))
            x = F.gelu(x + self.conv(y, f"{block}.conv3"))
        x = self.merge(x, 0, 2)
        early = x
        for stage in (1, 2, 3):
            for i in range(self.config.depths[stage]):
                x = self.block(x, stage, i)
            if stage < 3:
                x = self.merge(x, stage, 2 if stage == 1 else 1)
            early = x if stage == 1 else early
        for conv, norm in (("neck.0", "neck.1"), ("neck.2", "neck.3")):
            weight = self.state[f"{conv}.weight"]
            x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
            x = self.norm(x.movedim(1, -1), norm, 1e-6).movedim(-1, 1)
        return x, early

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """Convolution, then batch norm."""
        weight = self.state[f"{name}.c.weight"]
        groups = x.shape[1] // weight.shape[1]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        mean, var, gain, bias = (
            self.state[f"{name}.bn.{part}"].reshape(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * gain + bias

    def merge(self, x: Tensor, stage: int, stride: int) -> Tensor:
        name = f"layers.{stage}.downsample"
        y = F.gelu(self.conv(x, f"{name}.conv1"))
        return self.conv(F.gelu(self.conv(y, f"{name}.conv2", stride)), f"{name}.conv3")

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        """Over the last axis."""
        apart = x - x.mean(-1, keepdim=True)
        x = apart / (apart.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def block(self, x: Tensor, stage: int, index: int) -> Tensor:
        """x: (1, C, H, W), the same out; one window after the other."""
        name, side = f"layers.{stage}.blocks.{index}", self.config.windows[stage]
        tokens = x[0].movedim(0, -1)  # (H, W, C)
        attended = torch.zeros_like(tokens)
        height, width, channels = tokens.shape
        for top in range(0, height, side):
            for left in range(0, width, side):
                part = tokens[top : top + side, left : left + side]
                window = torch.zeros(side, side, channels)
                window[: part.shape[0], : part.shape[1]] = part
                answer = self.attention(window.reshape(-1, channels), f"{name}.attn", stage).reshape(window.shape)
                attended[top : top + side, left : left + side] = answer[: part.shape[0], : part.shape[1]]
        x = self.conv((tokens + attended).movedim(-1, 0)[None], f"{name}.local_conv")
        y = x.movedim(1, -1)
        y = y + self.linear(F.gelu(self.linear(self.norm(y, f"{name}.mlp.norm"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        return y.movedim(-1, 1)

    def attention(self, window: Tensor, name: str, stage: int) -> Tensor:
        """window: (side * side, C), the same out."""
        heads, side = self.config.heads[stage], self.config.windows[stage]
        width = window.shape[1] // heads
        rows = self.linear(self.norm(window, f"{name}.norm"), f"{name}.qkv")
        index = distances(side)
        answers = []
        for head in range(heads):
            q, k, v = rows[:, head * 3 * width : (head + 1) * 3 * width].split(width, dim=1)
            scores = q @ k.T / width**0.5 + self.state[f"{name}.attention_biases"][head][index]
            answers.append(scores.softmax(1) @ v)
        return self.linear(torch.cat(answers, 1), f"{name}.proj")


def distances(side: int) -> Tensor:
    """Which bias belongs to two tokens of a window: distances are numbered as they are first met."""
    places = [(y, x) for y in range(side) for x in range(side)]
    numbers: dict[tuple[int, int], int] = {}
    for a in places:
        for b in places:
            numbers.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(numbers))
    return torch.tensor([[numbers[abs(a[0] - b[0]), abs(a[1] - b[1])] for b in places] for a in places])


class Oracle:
    """The encoder by hand, the rest of SAM by transformers; called as ``SamModel`` is."""

    def __init__(self, module: Sam, model: str) -> None:
        self.encode = ByHand(module.state_dict(), model)
        self.sam = SamModel(hf_config(f"sam-vit-b{'-toy' * model.endswith('toy')}")).eval()
        template = {key: value for key, value in self.sam.state_dict().items() if not key.startswith("vision_")}
        loaded = self.sam.load_state_dict(hf_state(template, module.state_dict()), strict=False)
        assert all(key.startswith("vision_encoder.") for key in loaded.missing_keys)
        self.config = self.sam.config

    def __call__(self, pixel_values: Tensor, **feeds: Any) -> Any:
        return self.sam(image_embeddings=self.encode(pixel_values)[0], **feeds)


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return ((a - b).norm() / b.norm()).item()


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


@pytest.fixture(scope="module")
def toy() -> Sam:
    """The toy with live random weights."""
    module = load_weights(FAMILY, TOY, random_seed=SEED).module
    assert isinstance(module, Sam)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Its bundle for ONNX Runtime on a CPU. Read only."""
    out = tmp_path_factory.mktemp("mobile-sam") / "bundle"
    return export_model(TOY, out, random_seed=SEED, targets=("onnxruntime-cpu",))


@pytest.fixture(scope="module")
def general(toy: Sam) -> bytes:
    """The image encoder in the form for all else."""
    spec = encoder_spec(toy)
    return onnx_from_spec(spec, spec.forms[-1].module).SerializeToString()


def encoder_spec(module: Sam, model: str = TOY) -> GraphSpec:
    """The image encoder's description."""
    return FAMILY.graphs(module, model)[0]


def test_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        module = build("mobile-sam")
    encoder = module.get_submodule("image_encoder")
    unused = ("norm_head", "head")
    counts = [sum(value.numel() for value in encoder.get_submodule(name).parameters()) for name in unused]
    total = sum(value.numel() for value in encoder.parameters())
    assert (round(total / 1e6, 2), round((total - sum(counts)) / 1e6, 2)) == (6.07, 5.74)
    assert encoder.get_parameter("layers.2.blocks.5.attn.attention_biases").shape == (5, 196)
    assert encoder.get_parameter("layers.3.blocks.1.attn.attention_biases").shape == (10, 49)
    assert encoder.get_parameter("layers.1.downsample.conv1.c.weight").shape == (160, 128, 1, 1)
    assert encoder.get_parameter("head.weight").shape == (1000, 320)


def test_encoder_equals_the_second_one(toy: Sam) -> None:
    image = torch.from_numpy(encoder_spec(toy).sample({"images": 2}, 3)["image"])
    by_hand = ByHand(toy.state_dict(), TOY)
    assert isinstance(toy.image_encoder, TinyVit)
    with torch.inference_mode():
        pixels = toy.normalize(image)
        ours = toy.image_encoder.maps(pixels)
        theirs = [torch.cat(parts) for parts in zip(*(by_hand(one[None]) for one in pixels), strict=True)]
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b.movedim(1, -1)) < 3e-6
        assert relative(b[:1], b[1:]) > 0.05


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("part", ["attention_biases", "norm.bias"])
def test_forms_without_a_part_would_be_found_out(toy: Sam, stage: int, part: str) -> None:
    """Biases of distances; the norm's bias, which is also what windows are filled up with. Forms made of weights without them
    are far from the model."""
    changed = build(TOY).eval().requires_grad_(False)
    changed.load_state_dict(toy.state_dict())
    changed.get_parameter(f"image_encoder.layers.{stage}.blocks.0.attn.{part}").zero_()
    spec = encoder_spec(toy)
    image = torch.from_numpy(spec.sample({"images": 1}, 0)["image"])
    wanted = run(spec, {"image": image.numpy()})[0]
    for form, altered in zip(spec.forms, encoder_spec(changed).forms, strict=True):
        with torch.inference_mode():
            assert relative(form.module(image)[0], wanted) < 3e-6
            assert relative(altered.module(image)[0], wanted) > 1e-3


def test_every_form_is_within_tolerance_and_alive(exported: ExportReport, general: bytes, toy: Sam) -> None:
    assert {row.graph for row in exported.parity} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    for row in (*exported.parity, *checked_parity(encoder_spec(toy), general, "fp32")):
        assert row.relative_l2 <= 1e-5
        assert row.alive > 0.01


def test_graphs_hold_no_forbidden_operators(exported: ExportReport, general: bytes) -> None:
    for model, attention in ((encoder_file(exported), "MultiHeadAttention"), (general, "Attention")):
        kinds = Counter(node.op_type for node in onnx.load_from_string(model).graph.node)
        assert not FORBIDDEN & kinds.keys()
        # two of the patches, 3 of the block, 3 of each of three mergings, a local one in each of three blocks, 2 of the neck
        assert kinds["Conv"] == 2 + 3 + 3 * 3 + 3 + 2
        assert kinds[attention] == 3


def encoder_file(exported: ExportReport) -> bytes:
    """The image encoder of the bundle."""
    (path,) = exported.path.glob("image_encoder*.onnx")
    return path.read_bytes()


def test_batch_stays_free(exported: ExportReport, general: bytes) -> None:
    """Upstream's merging fixes the number of pictures when it is traced."""
    for model in (encoder_file(exported), general):
        graph = onnx.load_from_string(model).graph
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)} == {"images"}


@pytest.mark.parametrize("hw", [(120, 400), (300, 90), (900, 1200)])
def test_masks_equal_the_oracle(exported: ExportReport, toy: Sam, hw: tuple[int, int]) -> None:
    oracle, image = Oracle(toy, TOY), picture(hw)
    with samrt.load(exported.path, threads=1) as model:
        for count in (1, 3):
            for kind, prompts in prompt_kinds(count, hw, 64).items():
                assert compare(model, oracle, image, prompts, multimask=count == 3) >= 0.999, (kind, count)


def test_official_file_loads_strictly(toy: Sam, tmp_path: Path) -> None:
    official = toy.state_dict()
    torch.save(official, tmp_path / "mobile_sam.pt")
    loaded = build(TOY)
    assert load_checkpoint(loaded, tmp_path / "mobile_sam.pt", FAMILY, TOY).layout == "official"
    assert all(torch.equal(value, official[key]) for key, value in loaded.state_dict().items())
    unused = ("image_encoder.head.", "image_encoder.norm_head.")
    torch.save({k: v for k, v in official.items() if not k.startswith(unused)}, tmp_path / "headless.pt")
    with pytest.raises(
        CheckpointError, match=r"4 missing: image_encoder\.head\.bias.* looks like mobile-sam-toy all the same"
    ):
        load_checkpoint(build(TOY), tmp_path / "headless.pt", FAMILY, TOY)


def test_files_of_sam_and_mobile_sam_are_told_apart(toy: Sam, tmp_path: Path) -> None:
    torch.save(toy.state_dict(), tmp_path / "mobile.pt")
    with pytest.raises(CheckpointError, match=r"does not fit sam-vit-b-toy.*it looks like mobile-sam-toy"):
        load_checkpoint(sam.build("sam-vit-b-toy"), tmp_path / "mobile.pt", sam.FAMILY, "sam-vit-b-toy")
    torch.save(sam.build("sam-vit-b-toy").state_dict(), tmp_path / "sam.pt")
    with pytest.raises(CheckpointError, match=r"does not fit mobile-sam-toy.*it looks like sam-vit-b-toy"):
        load_checkpoint(build(TOY), tmp_path / "sam.pt", FAMILY, TOY)


def test_an_encoder_that_overflows_in_fp16_stays_right(general: bytes, toy: Sam) -> None:
    """A batch norm's gain makes a map that fp16 cannot hold, the next convolution takes it back; fp32 does not notice.

    The plain cast gives infinities and is refused; what samrt makes holds the tolerance and says what stayed in fp32.
    """
    hot = build(TOY).eval().requires_grad_(False)
    hot.load_state_dict(toy.state_dict())
    for part in ("conv2.bn.weight", "conv2.bn.bias"):
        hot.get_parameter(f"image_encoder.layers.0.blocks.0.{part}").mul_(HOT)
    hot.get_parameter("image_encoder.layers.0.blocks.0.conv3.c.weight").div_(HOT)
    spec = encoder_spec(hot)
    runs = reference_runs(spec)
    model = onnx.load_from_string(general)
    # the convolutions in order: two of the patches, then the block's three
    *_, depthwise, last = [node for node in model.graph.node if node.op_type == "Conv"][:5]
    for node, names, factor in ((depthwise, depthwise.input[1:], HOT), (last, last.input[1:2], 1 / HOT)):
        assert node.op_type == "Conv"
        for name in names:
            replace_constant(model, name, (factor * numpy_helper.to_array(constant(model, name))).astype(np.float32))
    assert all(row.ok for row in checked_parity(spec, model.SerializeToString(), "fp32", (), runs))
    plain = typed_graph(model, "fp16", {}).SerializeToString()
    with pytest.raises(ParityError, match=r"relative error inf, first at "):
        checked_narrow(spec, plain, "fp16", runs, fp32=model)
    narrow = narrow_form(model, spec, "fp16", runs)
    rows = checked_narrow(spec, narrow.model.SerializeToString(), "fp16", runs)
    assert max(row.relative_l2 for row in rows) <= 5e-3
    kept = {name: entry["reason"] for entry in narrow.kept_fp32 for name in entry["nodes"]}
    assert kept[depthwise.name].startswith("values within a factor of 4 of the largest or above: fp16 ends at")
    assert last.name in kept
    assert len(kept) < 0.1 * len(model.graph.node)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_narrow_encoder_holds_its_tolerance_and_builds_for_rtx(general: bytes, toy: Sam, precision: str) -> None:
    """With the manifest's profiles, every attention and its mask in a fused kernel."""
    spec = encoder_spec(toy)
    runs, options = reference_runs(spec), BuildOptions(flavour="rtx", sm="86")
    content = narrow_form(onnx.load_from_string(general), spec, precision, runs).model.SerializeToString()
    assert all(row.ok for row in checked_narrow(spec, content, precision, runs))
    plan = build_plan(content, profiles=dict(spec.profiles), precision=precision, options=options, name=spec.name)
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (3, 0)


def test_manifest_says_how_pictures_are_resized(exported: ExportReport) -> None:
    manifest = json.loads((exported.path / "manifest.json").read_text())
    image = manifest["numbers"]["image"]
    assert (image["resize"], image["resize_dtype"], image["antialias"]) == ("longest_side", "uint8", True)
    assert manifest["numbers"]["masks"]["multi"] == [1, 2, 3]


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    def masks(model: samrt.Model) -> dict[str, float]:
        module = load_weights(FAMILY, "mobile-sam", random_seed=0).module
        assert isinstance(module, Sam)
        oracle, image = Oracle(module, "mobile-sam"), picture((720, 1280))
        oracle.encode = answer_once(oracle.encode)
        kinds = prompt_kinds(1, (720, 1280), 256)
        return {kind: compare(model, oracle, image, prompts, True) for kind, prompts in kinds.items()}

    check_full_size("mobile-sam", tmp_path, masks, {"image_encoder": 10, "prompt_encoder": 0, "mask_decoder": 7})
