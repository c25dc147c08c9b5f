"""SAM-HQ against transformers' implementation, whose decoder is wrong as it is, on live random weights."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_size import answer_once, check_full_size
from safetensors.torch import save_file
from sam_oracle import decoder_numbers, oracle_masks, preprocess, prompt_config, vision_config
from test_sam2_oracle import picture, prompt_kinds
from torch import Tensor
from transformers import SamHQConfig, SamHQMaskDecoderConfig, SamHQModel, SamHQPromptEncoderConfig, SamHQVisionConfig
from transformers.models.sam_hq import modeling_sam_hq

import samrt
from samrt import CheckpointError
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.tiny_vit import TinyVitConfig
from samrt_export.blocks.vit import VitConfig
from samrt_export.checkpoint import load_checkpoint
from samrt_export.export import ExportReport, export_model
from samrt_export.families import mobile_sam, sam
from samrt_export.families.sam.specs import run
from samrt_export.families.sam_hq import CONFIGS, FAMILY, SamHq, build, official_from_hf
from samrt_export.nano.evaluate import iou
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.narrow import checked_narrow, narrow_form
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

TOY, TINY_TOY = "sam-hq-vit-b-toy", "sam-hq-vit-tiny-toy"
SEED = 5
OFFICIAL = ("sam-hq-vit-b", "sam-hq-vit-l", "sam-hq-vit-h", "sam-hq-vit-tiny")
ADDED = {"sam-hq-vit-b": 1.07, "sam-hq-vit-l": 1.33, "sam-hq-vit-h": 1.60}
"""Millions of parameters that SAM of the same size does not have."""
DEFECT = "point_embedding, iou_token_out = self.transformer("
REPAIR = "point_embedding, image_embeddings = self.transformer("


def hf_model(module: SamHq, model: str) -> SamHQModel:
    """transformers' model with the weights of ours, every key matched."""
    vit, prompted = CONFIGS[model]
    assert isinstance(vit, VitConfig)
    config = SamHQConfig(
        vision_config=SamHQVisionConfig(**vision_config(vit).to_diff_dict()),
        prompt_encoder_config=SamHQPromptEncoderConfig(**prompt_config(prompted).to_diff_dict()),
        mask_decoder_config=SamHQMaskDecoderConfig(**decoder_numbers(prompted), vit_dim=vit.embed_dim),
    )
    oracle = SamHQModel(config).eval()
    oracle.load_state_dict(hf_state(oracle.state_dict(), module.state_dict()), strict=True)
    return oracle


def hf_state(template: dict[str, Tensor], official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official weights under transformers' names: the key map, asked name by name, read backwards."""
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    return {key: official[next(iter(official_from_hf({key: value})), matrix)] for key, value in template.items()}


def repair(patch: pytest.MonkeyPatch) -> None:
    """Has transformers' decoder go on with what its transformer made of the image.

    As it is (4.57 to 5.23) it throws that away and goes on with the image as it was, height and width swapped.
    """
    decoder = modeling_sam_hq.SamHQMaskDecoder
    source = textwrap.dedent(inspect.getsource(decoder.forward))
    assert source.count(DEFECT) == 1, "another transformers: is its decoder right now?"
    names: dict[str, Any] = {}
    exec(compile(source.replace(DEFECT, REPAIR), decoder.__module__, "exec"), vars(modeling_sam_hq), names)
    patch.setattr(decoder, "forward", names["forward"])


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers with its decoder repaired."""
    repair(monkeypatch)


def toy_of(model: str) -> SamHq:
    """A model with live random weights."""
    module = load_weights(FAMILY, model, random_seed=SEED).module
    assert isinstance(module, SamHq)
    return module


@pytest.fixture(scope="module")
def toy() -> SamHq:
    """The ViT toy."""
    return toy_of(TOY)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Its bundle for ONNX Runtime on a CPU. Read only."""
    out = tmp_path_factory.mktemp("sam-hq") / "bundle"
    return export_model(TOY, out, random_seed=SEED, targets=("onnxruntime-cpu",))


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return ((a - b).norm() / b.norm()).item()


def logits(
    module: SamHq, model: str, oracle: SamHQModel, multimask: bool, hq_token_only: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ours and theirs of two clicks on a picture: logits (C, h, w) and scores (C,) each, the best first.

    hq_token_only: the HQ mask alone, (1, h, w), and still all scores
    """
    specs = {spec.name: spec for spec in FAMILY.graphs(module, model)}
    image, size = picture((200, 300)), module.config.image_size
    pixels = preprocess(image, size)
    mean, std = torch.tensor(sam.MEAN) * 255, torch.tensor(sam.STD) * 255
    points, labels = np.array([[[40.0, 90.0], [200.0, 30.0]]], np.float32), np.array([[1, 0]], np.int32)
    maps = run(specs["image_encoder"], {"image": (pixels.permute(0, 2, 3, 1) * std + mean).numpy()})
    padded = np.concatenate((points, np.zeros((1, 1, 2), np.float32)), 1), np.array([[1, 0, -1]], np.int32)
    no_mask = np.zeros((1, 1, 4, 4), np.float32), np.zeros(1, np.float32)
    tokens = run(specs["prompt_encoder"], dict(zip(names(specs["prompt_encoder"]), (*padded, *no_mask), strict=True)))
    with torch.inference_mode():
        masks, scores, hq_masks = specs["mask_decoder"].module(*maps, *tokens)
        theirs = oracle(
            pixel_values=pixels,
            input_points=torch.from_numpy(points)[None],
            input_labels=torch.from_numpy(labels).long()[None],
            multimask_output=multimask,
            hq_token_only=hq_token_only,
        )
    masks, scores = (masks[0, 1:], scores[0, 1:]) if multimask else (masks[0, :1], scores[0, :1])
    order = scores.argsort(descending=True)  # which is how transformers gives them
    ours = hq_masks[0] if hq_token_only else masks[order]
    return ours, scores[order], theirs.pred_masks[0, 0], theirs.iou_scores[0, 0]


def names(spec: GraphSpec) -> list[str]:
    """A graph's inputs."""
    return [tensor.name for tensor in spec.inputs]


@pytest.mark.parametrize("hq_token_only", [False, True])
@pytest.mark.parametrize("multimask", [True, False])
def test_logits_equal_the_repaired_oracle(toy: SamHq, multimask: bool, hq_token_only: bool, repaired: None) -> None:
    masks, scores, their_masks, their_scores = logits(toy, TOY, hf_model(toy, TOY), multimask, hq_token_only)
    assert masks.shape == their_masks.shape
    assert their_masks.std() > 0.1
    torch.testing.assert_close(masks, their_masks, rtol=0, atol=2e-5 * max(1.0, their_masks.abs().max().item()))
    torch.testing.assert_close(scores, their_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multimask", [True, False])
def test_logits_are_far_from_the_oracle_as_it_is(toy: SamHq, multimask: bool) -> None:
    """Its defect: the transformer's second result, the image, is thrown away; height and width are swapped. Scores are right."""
    masks, scores, their_masks, their_scores = logits(toy, TOY, hf_model(toy, TOY), multimask)
    assert relative(masks, their_masks) > 0.1
    torch.testing.assert_close(scores, their_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hw", [(120, 400), (300, 90)])
def test_masks_equal_the_repaired_oracle(
    exported: ExportReport, toy: SamHq, hw: tuple[int, int], repaired: None
) -> None:
    oracle = hf_model(toy, TOY)
    with samrt.load(exported.path, threads=1) as model:
        for kind, prompts in prompt_kinds(1, hw, 64).items():
            assert compare(model, oracle, picture(hw), prompts) >= 0.999, kind


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("hw", [(120, 400), (300, 90)])
def test_the_hq_mask_alone_equals_the_repaired_oracle(
    exported: ExportReport, toy: SamHq, hw: tuple[int, int], multimask: bool, repaired: None
) -> None:
    """One mask for each prompt; several scores in the oracle, of which upstream's is the best."""
    oracle, image = hf_model(toy, TOY), picture(hw)
    with samrt.load(exported.path, threads=1) as model:
        features = model.encode(image)
        for kind, prompts in prompt_kinds(2, hw, 64).items():
            result = model.decode(features, samrt.Prompts(**prompts), multimask, hq_token_only=True)
            masks, scores = oracle_masks(oracle, image, **prompts, multimask=multimask, hq_token_only=True)
            np.testing.assert_allclose(result.scores, scores.max(axis=1, keepdims=True), atol=1e-3)
            assert result.masks.shape == masks.shape == (2, 1, *hw)
            assert min(iou(a, b) for a, b in zip(result.masks[:, 0], masks[:, 0], strict=True)) >= 0.999, kind


@pytest.mark.parametrize("multimask", [True, False])
def test_the_hq_mask_alone_is_another_mask(exported: ExportReport, multimask: bool) -> None:
    """Than the one it is added to, by the same prompt, which carries the same score."""
    with samrt.load(exported.path, threads=1) as model:
        features = model.encode(picture((120, 400)))
        for prompts in prompt_kinds(2, (120, 400), 64).values():
            sums = model.decode(features, samrt.Prompts(**prompts), multimask).best()
            alone = model.decode(features, samrt.Prompts(**prompts), multimask, hq_token_only=True)
            np.testing.assert_array_equal(alone.scores, sums.scores)
            assert max(iou(a, b) for a, b in zip(alone.masks[:, 0], sums.masks[:, 0], strict=True)) < 0.98


def compare(model: samrt.Model, oracle: Any, image: np.ndarray, prompts: dict[str, Any]) -> float:
    """The smallest mask IoU between the two, best first, after checking the scores."""
    ours = dict(prompts)
    if "mask" in ours:
        ours["masks"] = ours.pop("mask")
    result = model.decode(model.encode(image), samrt.Prompts(**ours), True)
    masks, scores = oracle_masks(oracle, image, **prompts, multimask=True)
    order = np.argsort(-result.scores[0])
    np.testing.assert_allclose(result.scores[0][order], scores[0], atol=1e-3)
    return min(iou(a, b) for a, b in zip(result.masks[0][order], masks[0], strict=True))


def test_every_graph_is_within_tolerance_and_alive(exported: ExportReport) -> None:
    assert {row.output for row in exported.parity if row.graph == "image_encoder"} >= {"image_embed", "hq_features"}
    for row in exported.parity:
        assert row.relative_l2 <= 1e-5
        assert row.alive > 0.01


@pytest.mark.parametrize("model", [TOY, TINY_TOY])
def test_every_form_equals_the_reference(model: str) -> None:
    """Of PyTorch, at both sizes of the checks; and the decoder takes features of any backbone."""
    module = toy_of(model)
    for spec in FAMILY.graphs(module, model):
        for seed, sizes in enumerate(spec.checks):
            feeds = spec.sample(sizes, seed)
            wanted, other = run(spec, feeds), run(spec, spec.sample(sizes, seed + 7))
            assert min(relative(a, b) for a, b in zip(wanted, other, strict=True)) > 0.01
            for form in spec.forms:
                with torch.inference_mode():
                    made = form.module(*(torch.from_numpy(feeds[name]) for name in names(spec)))
                assert max(relative(a, b) for a, b in zip(made, wanted, strict=True)) < 5e-6


def test_light_encoder_hands_on_the_second_stage() -> None:
    """``hq_features`` of the light model change with its early map alone."""
    module = toy_of(TINY_TOY)
    image = FAMILY.graphs(module, TINY_TOY)[0].sample({"images": 1}, 0)["image"]
    embedding, early = module.image_encoder.maps(module.normalize(torch.from_numpy(image)))  # type: ignore[operator]
    config, prompted = CONFIGS[TINY_TOY]
    assert isinstance(config, TinyVitConfig)
    assert early.shape == (1, prompted.embed_size, prompted.embed_size, config.channels[2])
    whole = module.encode_all(torch.from_numpy(image))[-1]
    without = module.hq_decoder.hq_features_as_upstream(embedding, torch.zeros_like(early))
    assert relative(without, whole) > 0.1


def test_decoders_of_all_backbones_are_one_graph() -> None:
    """The same inputs and outputs, whatever the encoder."""
    (vit, tiny) = (FAMILY.graphs(toy_of(model), model)[-1] for model in (TOY, TINY_TOY))
    assert (vit.inputs, vit.outputs) == (tiny.inputs, tiny.outputs)


@pytest.mark.parametrize("name", ADDED)
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        ours, plain = build(name), sam.build(name.replace("-hq", ""))
    counts = [sum(value.numel() for value in module.parameters()) for module in (ours, plain)]
    assert round((counts[0] - counts[1]) / 1e6, 2) == pytest.approx(ADDED[name], abs=0.011)


def test_official_and_hugging_face_files_are_one_model(toy: SamHq, tmp_path: Path) -> None:
    official = toy.state_dict()
    torch.save(official, tmp_path / "official.pth")
    hub = hf_state(hf_model(toy, TOY).state_dict(), official)
    save_file({key: value.clone() for key, value in hub.items()}, tmp_path / "hub.safetensors")
    for file, layout in (("official.pth", "official"), ("hub.safetensors", "huggingface")):
        loaded = build(TOY)
        assert load_checkpoint(loaded, tmp_path / file, FAMILY, TOY).layout == layout
        assert all(torch.equal(value, official[key]) for key, value in loaded.state_dict().items())


def shapes_file(path: Path, family: Any, model: str) -> Path:
    """A file with a model's parameters, each one number spread over its shape."""
    with torch.device("meta"):
        state = family.build(model).state_dict()
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("given", "file_family", "wanted", "family"),
    [
        ("sam-hq-vit-b", FAMILY, "sam-vit-b", sam.FAMILY),
        ("sam-vit-b", sam.FAMILY, "sam-hq-vit-b", FAMILY),
        ("sam-hq-vit-l", FAMILY, "sam-hq-vit-b", FAMILY),
        ("sam-hq-vit-tiny", FAMILY, "mobile-sam", mobile_sam.FAMILY),
    ],
)
def test_other_files_are_named(given: str, file_family: Any, wanted: str, family: Any, tmp_path: Path) -> None:
    file = shapes_file(tmp_path / "weights.pth", file_family, given)
    with torch.device("meta"):
        module = family.build(wanted)
    with pytest.raises(CheckpointError, match=rf"does not fit {wanted} .*it looks like {given}: samrt export {given} "):
        load_checkpoint(module, file, family, wanted)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_narrow_decoder_holds_its_tolerance_and_builds_for_rtx(toy: SamHq, precision: str) -> None:
    spec = FAMILY.graphs(toy, TOY)[-1]
    runs, options = reference_runs(spec), BuildOptions(flavour="rtx", sm="86")
    narrow = narrow_form(onnx_from_spec(spec, spec.forms[-1].module), spec, precision, runs)
    content = narrow.model.SerializeToString()
    assert all(row.ok for row in checked_narrow(spec, content, precision, runs))
    plan = build_plan(content, profiles=dict(spec.profiles), precision=precision, options=options, name=spec.name)
    assert plan.facts is not None
    assert plan.facts.attentions == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_full_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masks(model: samrt.Model) -> dict[str, float]:
        repair(monkeypatch)
        module = load_weights(FAMILY, name, random_seed=0).module
        assert isinstance(module, SamHq)
        oracle, image = hf_model(module, name), picture((720, 1280))
        del module
        oracle.vision_encoder.forward = answer_once(oracle.vision_encoder.forward)
        kinds = prompt_kinds(1, (720, 1280), 256)
        return {kind: compare(model, oracle, image, prompts) for kind, prompts in kinds.items()}

    encoder, _ = CONFIGS[name]
    depth = encoder.depth if isinstance(encoder, VitConfig) else sum(encoder.depths[1:])
    attentions = {"image_encoder": depth, "prompt_encoder": 0, "mask_decoder": 7}
    tiny = name == "sam-hq-vit-tiny"  # which transformers does not have
    check_full_size(name, tmp_path, None if tiny else masks, attentions)
