"""SAM 2's memory graphs against transformers, with every number of slots; what is not there must not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import get_1d_sine_pe
from video_oracle import hf_video_model

from samrt_engines.executor import Executor, open_executor
from samrt_export.blocks.hiera import Hiera, HieraConfig
from samrt_export.families.sam2 import CONFIGS, Sam2, build, graphs
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.randomize import randomize_live
from samrt_export.registry import GraphSpec

SLOTS, POINTERS = 9, 18  # two prompted frames, six recent ones and one more; sixteen pointers and two more
CASES = ("nano", "nano without pointer positions")


class Case:
    """A live random model, transformers' with the same weights, and the stored forms ready to run."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.module = build("nano") if name == "nano" else build_without_positions()
        randomize_live(self.module, 3)
        self.module.eval()
        self.specs = {spec.name: spec for spec in graphs(self.module, "nano")}
        self.oracle = hf_video_model(self.module, "nano") if name == "nano" else None
        self.forms = {
            ", ".join(form.targets) or "any": _open(self.specs["memory_attention"], form.module)
            for form in self.specs["memory_attention"].forms[: None if name == "nano" else 1]
        }

    def bank(self, slots: int, pointers: int, objects: int = 1, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        sizes = {"objects": objects, "slots": slots, "pointers": pointers}
        return self.specs["memory_attention"].sample(sizes, seed)


def build_without_positions() -> Sam2:
    """nano as SAM 2.0 would have it."""
    config = replace(CONFIGS["nano"], pointer_positions=False)
    assert isinstance(config.trunk, HieraConfig)
    return Sam2(config, Hiera(config.trunk))


def _open(spec: GraphSpec, module: torch.nn.Module) -> Executor:
    content = onnx_from_spec(spec, module).SerializeToString()
    return open_executor(content, backend="onnxruntime", device="cpu", inputs=spec.inputs, outputs=spec.outputs)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def nano() -> Case:
    return Case("nano")


def hf_conditioned(oracle: Sam2VideoModel, module: Sam2, bank: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray:
    """transformers' memory attention for one object whose slots and pointers are all there: (hw, C)."""
    feeds = {name: torch.from_numpy(value) for name, value in bank.items()}
    side, dim = module.config.embed_size, module.config.d_model
    encoding = oracle.memory_encoder.position_encoding
    slot_position = encoding((1, 64, side, side), torch.device("cpu"), torch.float32).flatten(2).permute(2, 0, 1)
    positions = [slot_position + oracle.memory_temporal_positional_encoding[int(t)] for t in bank["memory_time"][0]]
    memory = [slot[:, None] for slot in feeds["memory"][0]]
    count = bank["object_pointers"].shape[1]
    memory.append(feeds["object_pointers"][0].reshape(count * (dim // 64), 1, 64))
    sines = get_1d_sine_pe(feeds["pointer_distance"][0], dim=dim)
    projected = oracle.temporal_positional_encoding_projection_layer(sines)
    positions.append(projected.repeat_interleave(dim // 64, dim=0)[:, None])
    image = feeds["image_embed"] - module.no_mem_embed
    own = oracle.vision_encoder.neck.position_encoding((1, dim, side, side), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        out = oracle.memory_attention(
            current_vision_features=image.transpose(0, 1),
            current_vision_position_embeddings=own.flatten(2).permute(2, 0, 1),
            memory=torch.cat(memory),
            memory_posision_embeddings=torch.cat(positions),
            num_object_pointer_tokens=count * (dim // 64),
        )
    return out.reshape(side * side, dim).numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("slots", range(1, SLOTS + 1))
def test_every_number_of_slots_agrees_with_transformers(nano: Case, slots: int) -> None:
    assert nano.oracle is not None
    bank = nano.bank(slots, 2 * slots, seed=slots)
    wanted = hf_conditioned(nano.oracle, nano.module, bank)
    for name, form in nano.forms.items():
        assert relative(form.run(bank)["conditioned_embed"][0], wanted) <= 1e-5, name


def test_the_answer_depends_on_everything_that_is_there(case: Case) -> None:
    bank = case.bank(3, 4)
    for name, form in case.forms.items():
        usual = form.run(bank)["conditioned_embed"]
        for tensor in ("image_embed", "memory", "memory_time", "object_pointers", "pointer_distance"):
            changed = bank | {tensor: (bank[tensor] + 1) % 7 if tensor == "memory_time" else -bank[tensor]}
            moved = relative(form.run(changed)["conditioned_embed"], usual)
            ignored = tensor == "pointer_distance" and case.oracle is None  # SAM 2.0 does not place pointers in time
            assert moved < 1e-6 if ignored else moved > 1e-3, (name, tensor, moved)


@pytest.mark.parametrize("valid", range(1, SLOTS + 1))
def test_missing_slots_and_pointers_change_nothing(case: Case, valid: int) -> None:
    """A bank of SLOTS with ``valid`` of them there, anything in the others, against a bank of just those."""
    rng = np.random.default_rng(valid)
    full = case.bank(SLOTS, POINTERS, seed=valid)
    slots = np.sort(rng.permutation(SLOTS)[:valid])
    pointers = np.sort(rng.permutation(POINTERS)[: 2 * valid])
    there = {"memory_valid": np.zeros((1, SLOTS), np.float32), "pointer_valid": np.zeros((1, POINTERS), np.float32)}
    there["memory_valid"][0, slots], there["pointer_valid"][0, pointers] = 1, 1
    padded = full | there
    for name, missing in (("memory", "memory_valid"), ("object_pointers", "pointer_valid")):
        rubbish = rng.normal(0, 50, full[name].shape).astype(np.float32)
        gone = there[missing].reshape(there[missing].shape + (1,) * (full[name].ndim - 2)) == 0
        padded[name] = np.where(gone, rubbish, full[name])
    padded["memory_time"] = np.where(there["memory_valid"] > 0, full["memory_time"], 2).astype(np.int32)
    only = {name: value[:, slots] for name, value in full.items() if name.startswith("memory")}
    only |= {name: value[:, pointers] for name, value in full.items() if "pointer" in name}
    only["image_embed"] = full["image_embed"]
    for name, form in case.forms.items():
        wanted = form.run(only)["conditioned_embed"]
        assert relative(form.run(padded)["conditioned_embed"], wanted) <= 2e-6, name


def test_the_order_of_slots_is_free(case: Case) -> None:
    bank = case.bank(5, 6)
    order = np.array([3, 0, 4, 1, 2])
    mixed = bank | {name: bank[name][:, order] for name in ("memory", "memory_time", "memory_valid")}
    for form in case.forms.values():
        assert relative(form.run(mixed)["conditioned_embed"], form.run(bank)["conditioned_embed"]) <= 2e-6


def test_objects_do_not_see_each_other(case: Case) -> None:
    bank = case.bank(4, 5, objects=3)
    for form in case.forms.values():
        together = form.run(bank)
        for index in range(3):
            one = {name: value if name == "image_embed" else value[index : index + 1] for name, value in bank.items()}
            for name, value in form.run(one).items():
                assert relative(together[name][index], value[0]) <= 2e-6, name


def test_the_decoders_inputs_are_those_of_the_conditioned_image(nano: Case) -> None:
    made = nano.forms["any"].run(nano.bank(2, 3))
    with torch.inference_mode():
        wanted = nano.module.project(torch.from_numpy(made["conditioned_embed"]))
    for name, value in zip(("queries", "keys", "values"), wanted, strict=True):
        assert relative(made[f"conditioned_{name}"], value.numpy()) <= 1e-5


def test_memory_encoder_agrees_with_transformers(nano: Case) -> None:
    """Masks from the model and from a user, an object that is absent."""
    assert nano.oracle is not None
    spec, oracle, module = nano.specs["memory_encoder"], nano.oracle, nano.module
    feeds = spec.sample({"objects": 4}, 5)
    feeds["object_score_logits"] = np.array([[3.0], [-2.0], [0.0], [4.0]], np.float32)
    feeds["binarize"] = np.array([0, 0, 1, 1], np.float32)
    made = _open(spec, spec.forms[0].module).run(feeds)
    side = module.config.embed_size
    logits = torch.from_numpy(feeds["mask_logits"])
    fine = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    share = torch.where(
        torch.tensor([False, False, True, True])[:, None, None, None], (fine > 0).float(), fine.sigmoid()
    )
    image = (torch.from_numpy(feeds["image_embed"]) - module.no_mem_embed).transpose(1, 2).reshape(1, -1, side, side)
    with torch.inference_mode():
        memory, _ = oracle.memory_encoder(image, share * 20 - 10)
        absent = torch.from_numpy(feeds["object_score_logits"]) <= 0
        memory = memory + absent[..., None, None] * oracle.occlusion_spatial_embedding_parameter[..., None, None]
        pointer = oracle.object_pointer_proj(torch.from_numpy(feeds["object_token"]))
        pointer = torch.where(absent, oracle.no_object_pointer, pointer)
    assert relative(made["frame_memory"], memory.flatten(2).transpose(1, 2).numpy()) <= 1e-5
    assert relative(made["object_pointer"], pointer.numpy()) <= 1e-5
    assert np.array_equal(made["object_pointer"][1], made["object_pointer"][2])  # the pointer of what is not there


def test_mask_downsampler_agrees_with_transformers(nano: Case) -> None:
    assert nano.oracle is not None
    spec = nano.specs["mask_downsampler"]
    feeds = spec.sample({"objects": 2}, 1)
    made = _open(spec, spec.forms[0].module).run(feeds)
    plain = torch.from_numpy(feeds["image_embed"]) - nano.module.no_mem_embed
    with torch.inference_mode():
        wanted = nano.oracle.mask_downsample(torch.from_numpy(feeds["mask"]))
        projected = nano.module.project(plain)
    assert relative(made["mask_prompt"], wanted.numpy()) <= 1e-6
    assert relative(made["plain_embed"], plain.detach().numpy()) <= 1e-6
    for name, value in zip(("queries", "keys", "values"), projected, strict=True):
        assert relative(made[f"plain_{name}"], value.numpy()) <= 1e-5


def test_nothing_of_the_memory_attention_builds_a_score_matrix_on_the_cpu(nano: Case) -> None:
    """One row of scores for every query would take 470 MB for each layer at full size."""
    form = nano.specs["memory_attention"].forms[0]
    model = onnx_from_spec(nano.specs["memory_attention"], form.module)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == 2 * CONFIGS["nano"].memory_layers
    assert not {"Softmax", "Attention"} & set(kinds)
