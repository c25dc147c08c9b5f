"""SAM against transformers' implementation, on live random weights. The toy has all kinds of blocks; full sizes are slow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from full_size import answer_once, check_full_size
from safetensors.torch import save_file
from sam_oracle import PIXEL_MEAN, hf_config, hf_model, hf_state, oracle_masks, preprocess
from test_sam2_oracle import picture, prompt_kinds
from torch import Tensor
from transformers import SamModel

import samrt
from samrt import CheckpointError, ParityError
from samrt.numbers import ImageNumbers
from samrt.transforms import image_to_input
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.vit import ImageEncoderVit, VitBlock, VitConfig
from samrt_export.checkpoint import load_checkpoint
from samrt_export.export import ExportReport, export_model
from samrt_export.families.sam import CONFIGS, FAMILY, PromptedConfig, Sam, build
from samrt_export.families.sam.specs import run
from samrt_export.forms import checked_parity, make_form
from samrt_export.nano.evaluate import iou
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.narrow import checked_narrow, narrow_form
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights
from samrt_export.verify import verify_bundle

TOY = "sam-vit-b-toy"
SIZE = CONFIGS[TOY].prompted.image_size
SIZES = {"wide": (120, 400), "tall": (300, 90), "square": (256, 256), "thread": (9, 700), "large": (900, 1200)}
HOT = 3e5
"""Times what a hidden unit answers, fp16 overflows."""
PARAMETERS = {"sam-vit-b": 93_735_472, "sam-vit-l": 312_342_832, "sam-vit-h": 641_090_608}
FORBIDDEN = {"If", "Loop", "NonZero", "OneHot", "Tile", "ScatterND", "ScatterElements", "Einsum", "Resize"}


@pytest.fixture(scope="module")
def toy() -> Sam:
    """The toy with live random weights."""
    module = load_weights(FAMILY, TOY, random_seed=5).module
    assert isinstance(module, Sam)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Its bundle."""
    return export_model(TOY, tmp_path_factory.mktemp("sam") / "bundle", random_seed=5)


@pytest.fixture(scope="module")
def specs(toy: Sam) -> dict[str, GraphSpec]:
    """Its graphs."""
    return {spec.name: spec for spec in FAMILY.graphs(toy, TOY)}


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


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        module = build(name)
    assert sum(value.numel() for value in module.parameters()) == PARAMETERS[name]
    table = module.get_parameter(f"image_encoder.blocks.{CONFIGS[name].encoder.global_attn_indexes[0]}.attn.rel_pos_h")
    assert table.shape == (127, 80 if name == "sam-vit-h" else 64)
    assert module.get_parameter("image_encoder.blocks.0.attn.rel_pos_w").shape[0] == 27


def test_every_form_is_within_tolerance_and_alive(exported: ExportReport) -> None:
    assert {row.graph for row in exported.parity} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    for row in exported.parity:
        assert row.relative_l2 <= 1e-5
        assert row.alive > 0.01


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("table", ["rel_pos_h", "rel_pos_w"])
def test_forms_without_a_relative_position_would_be_found_out(
    toy: Sam, specs: dict[str, GraphSpec], block: int, table: str
) -> None:
    """Block 0 has windows, block 1 has none. A form made of weights without the table is far from the model with it."""
    changed = build(TOY).eval()
    changed.load_state_dict(toy.state_dict())
    changed.requires_grad_(False)
    part = changed.image_encoder.get_submodule("blocks")[block]  # type: ignore[index]
    assert isinstance(part, VitBlock)
    assert bool(part.window) == (block == 0)
    part.attn.get_parameter(table).zero_()
    spec = specs["image_encoder"]
    feeds = spec.sample({"images": 1}, 0)
    image, wanted = torch.from_numpy(feeds["image"]), run(spec, feeds)[0]
    for form, altered in zip(spec.forms, FAMILY.graphs(changed, TOY)[0].forms, strict=True):
        with torch.inference_mode():
            assert relative(form.module(image)[0], wanted) < 3e-6
            assert relative(altered.module(image)[0], wanted) > 1e-3


def test_no_scores_are_stored_and_no_operator_is_forbidden(exported: ExportReport) -> None:
    vit = CONFIGS[TOY].encoder
    tokens, picture_channels = vit.side**2, 3  # the toy's picture happens to have as many pixels along a side as tokens
    for path in exported.path.glob("*.onnx"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        operators = Counter(node.op_type for node in graph.node)
        assert not FORBIDDEN & operators.keys(), path.name
        if path.name.startswith("image_encoder"):
            kernels = operators["Attention"] + operators["MultiHeadAttention"]
            assert kernels == vit.depth
            for value in graph.value_info:
                *leading, rows, columns = [0, 0, *(dim.dim_value for dim in value.type.tensor_type.shape.dim)]
                assert (rows, columns) != (tokens, tokens) or leading[-1] == picture_channels, value.name


@pytest.mark.parametrize("name", SIZES)
def test_pictures_become_what_the_official_code_makes_of_them(name: str) -> None:
    """Value by value: the official input is what normalising ours gives."""
    numbers = ImageNumbers(
        (SIZE, SIZE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "longest_side", True, resize_dtype="uint8"
    )
    image = picture(SIZES[name])
    ours, theirs = image_to_input(image, numbers), preprocess(image, SIZE)
    mean, std = np.float32(PIXEL_MEAN), np.float32((58.395, 57.12, 57.375))
    np.testing.assert_allclose((ours - mean) / std, theirs[0].permute(1, 2, 0).numpy(), atol=2e-6)
    content = ours[
        : max(1, round(SIZES[name][0] * SIZE / max(SIZES[name]))) - 1, : SIZES[name][1] * SIZE // max(SIZES[name])
    ]
    assert (content == np.rint(content)).all()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("multimask", [True, False])
def test_masks_equal_the_oracle(exported: ExportReport, toy: Sam, name: str, multimask: bool) -> None:
    """Bundle and runtime, which know nothing of SAM, against transformers' model and the official processing."""
    oracle, image = hf_model(toy, TOY), picture(SIZES[name])
    with samrt.load(exported.path, threads=2) as model:
        for count in (1, 3):
            for kind, prompts in prompt_kinds(count, SIZES[name], SIZE // 4).items():
                assert compare(model, oracle, image, prompts, multimask) >= 0.999, (kind, count)


def test_random_weights_take_no_checkpoint_to_verify(exported: ExportReport, tmp_path: Path) -> None:
    """It would not be read; saying "verified" would be a lie."""
    with pytest.raises(CheckpointError, match=r"was made without a checkpoint .* drawn again from seed 5"):
        verify_bundle(exported.path, checkpoint=tmp_path / "any.pt")


def test_prompts_and_pictures_matter(exported: ExportReport) -> None:
    """The comparison above is not between two models that ignore what they are asked."""
    image = picture((200, 300))
    prompts = samrt.Prompts(points=[[[20, 20]], [[250, 150]]], labels=[[1], [1]])
    with samrt.load(exported.path, threads=2) as model:
        masks = model.decode(model.encode(image), prompts).masks
        other = model.decode(model.encode(255 - image), prompts).masks
    assert iou(masks[0, 0], masks[1, 0]) < 0.98
    assert iou(masks[0, 0], other[0, 0]) < 0.98


def test_official_and_hugging_face_files_are_one_model(toy: Sam, tmp_path: Path) -> None:
    official = toy.state_dict()
    with torch.device("meta"):
        template = SamModel(hf_config(TOY)).state_dict()
    torch.save(official, tmp_path / "official.pth")
    save_file(official, tmp_path / "official.safetensors")
    hub = {key: value.clone() for key, value in hf_state(template, official).items()}
    assert "shared_image_embedding.positional_embedding" in hub
    save_file(hub, tmp_path / "hub.safetensors")
    layouts = {"official.pth": "official", "official.safetensors": "official", "hub.safetensors": "huggingface"}
    for file, layout in layouts.items():
        loaded = build(TOY)
        assert load_checkpoint(loaded, tmp_path / file, FAMILY, TOY).layout == layout
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, official[key]), key


def empty_file(model: str, path: Path) -> Path:
    """A file with the names and shapes of a model's parameters that is no larger than its names."""
    with torch.device("meta"):
        names = build(model).state_dict()
    torch.save({name: torch.zeros(1).expand(value.shape) for name, value in names.items()}, path)
    return path


@pytest.mark.parametrize(("asked", "given"), [("sam-vit-b", "sam-vit-l"), ("sam-vit-h", "sam-vit-b")])
def test_another_size_is_named(asked: str, given: str, tmp_path: Path) -> None:
    file = empty_file(given, tmp_path / "sam.pth")
    with torch.device("meta"):
        module = build(asked)
    with pytest.raises(
        CheckpointError, match=rf"does not fit {asked}.*of another shape.*looks like {given}: samrt export"
    ):
        load_checkpoint(module, file, FAMILY, asked)


def test_part_of_a_model_is_named(toy: Sam, tmp_path: Path) -> None:
    state = toy.state_dict()
    del state["image_encoder.blocks.1.attn.rel_pos_w"]
    torch.save(state, tmp_path / "part.pth")
    missing = r"1 missing: image_encoder\.blocks\.1\.attn\.rel_pos_w.*looks like sam-vit-b-toy all the same"
    with pytest.raises(CheckpointError, match=missing):
        load_checkpoint(build(TOY), tmp_path / "part.pth", FAMILY, TOY)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_narrow_encoders_pass_their_gate_and_build_for_rtx(
    specs: dict[str, GraphSpec], precision: str, tmp_path: Path
) -> None:
    spec = specs["image_encoder"]
    form = make_form(spec, spec.forms[-1], precision, reference_runs(spec), tmp_path)
    assert form.precision == precision
    assert all(row.ok for row in form.parity)
    assert isinstance(form.content, bytes)
    assert rtx_facts(spec, form.content, precision) == (CONFIGS[TOY].encoder.depth, 0)


def test_an_encoder_with_huge_activations_stays_right_in_fp16(toy: Sam) -> None:
    """Large ViTs have a few hidden units that answer a hundred thousand times as loud as others; fp32 does not notice.

    The plain cast ends in infinities and is refused. samrt keeps their products in fp32, says so, and nothing else is slower:
    the attentions are still single kernels.
    """
    hot = build(TOY).eval().requires_grad_(False)
    hot.load_state_dict(toy.state_dict())
    mlp = hot.get_submodule("image_encoder.blocks.1.mlp")
    for name in ("lin1.weight", "lin1.bias"):
        mlp.get_parameter(name)[:8] *= HOT
    mlp.get_parameter("lin2.weight")[:, :8] /= HOT
    spec = next(spec for spec in FAMILY.graphs(hot, TOY) if spec.name == "image_encoder")
    runs = reference_runs(spec)
    model = onnx_from_spec(spec, spec.forms[-1].module)
    assert all(row.ok for row in checked_parity(spec, model.SerializeToString(), "fp32", (), runs))
    with pytest.raises(ParityError, match=r"relative error inf, first at "):
        checked_narrow(spec, typed_graph(model, "fp16", {}).SerializeToString(), "fp16", runs, fp32=model)
    narrow = narrow_form(model, spec, "fp16", runs)
    content = narrow.model.SerializeToString()
    assert max(row.relative_l2 for row in checked_narrow(spec, content, "fp16", runs)) <= 5e-3
    kept = [(entry["op"], entry["reason"]) for entry in narrow.kept_fp32]
    assert any("fp16 ends at" in reason for _, reason in kept), kept
    assert {op for op, _ in kept} & {"MatMul", "Gemm"}, kept
    assert "Attention" not in {op for op, _ in kept}
    assert sum(len(entry["nodes"]) for entry in narrow.kept_fp32) < 0.1 * len(model.graph.node)
    assert rtx_facts(spec, content, "fp16") == (3, 0)


def rtx_facts(spec: GraphSpec, content: bytes, precision: str) -> tuple[int, int]:
    """Build a graph for RTX with the manifest's profiles: its attentions, and those of them without a kernel of their own."""
    options = BuildOptions(flavour="rtx", sm="86")
    plan = build_plan(content, profiles=dict(spec.profiles), precision=precision, options=options, name=spec.name)
    assert plan.facts is not None
    assert len(plan.data) > 0.9 * len(content)
    return plan.facts.attentions, plan.facts.decomposable


def test_full_size_decoder_builds_for_rtx() -> None:
    """The decoder is the same in all sizes; before it stands a narrow encoder, which is quick."""
    module = Sam(PromptedConfig(), ImageEncoderVit(VitConfig(16, 1, 1, (0,)))).eval()
    module.requires_grad_(False)
    FAMILY.randomize(module, 0)
    spec = FAMILY.graphs(module, "sam-vit-b")[2]
    model = typed_graph(onnx_from_spec(spec, spec.forms[-1].module), "fp16", {})
    assert rtx_facts(spec, model.SerializeToString(), "fp16") == (7, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size(name: str, tmp_path: Path) -> None:
    def masks(model: samrt.Model) -> dict[str, float]:
        module = load_weights(FAMILY, name, random_seed=0).module
        assert isinstance(module, Sam)
        oracle, image = hf_model(module, name), picture((720, 1280))
        del module
        oracle.vision_encoder.forward = answer_once(oracle.vision_encoder.forward)
        kinds = prompt_kinds(1, (720, 1280), 256)
        return {kind: compare(model, oracle, image, prompts, True) for kind, prompts in kinds.items()}

    attentions = {"image_encoder": CONFIGS[name].encoder.depth, "prompt_encoder": 0, "mask_decoder": 7}
    check_full_size(name, tmp_path, masks, attentions)
