"""The conditions of SAM 3D Objects: DINOv2 against transformers, the reader of points and the fuser against slow references."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.dinov2 import Dinov2, VitBlock
from samrt_export.blocks.point_patch import PointPatch
from samrt_export.families.sam3d import FAMILY, Sam3d, build
from samrt_export.families.sam3d.condition import DinoGraph, LatentCondition, StructureCondition, sample_views
from samrt_export.forms import checked_parity, make_form
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

MODEL = "sam3d-objects-toy"
GRAPHS = ("dino", "ss_cond", "slat_cond")
Traced = Callable[[str, int], onnx.ModelProto]


@pytest.fixture(scope="module")
def toy() -> Sam3d:
    """The toy with live random weights. Read only."""
    module = load_weights(FAMILY, MODEL, random_seed=3).module
    assert isinstance(module, Sam3d)
    return module


@pytest.fixture(scope="module")
def specs(toy: Sam3d) -> dict[str, GraphSpec]:
    """Its graphs by name."""
    return {spec.name: spec for spec in FAMILY.graphs(toy, MODEL)}


def vit_of(toy: Sam3d) -> Dinov2:
    return next(iter(toy.encoders().values())).backbone


def hub_model(vit: Dinov2, view_px: int) -> Dinov2WithRegistersModel:
    """transformers' model with our weights."""
    dim = vit.cls_token.shape[-1]
    config = Dinov2WithRegistersConfig(
        hidden_size=dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=4,
        image_size=view_px,
        patch_size=14,
        num_register_tokens=vit.registers,
    )
    model = Dinov2WithRegistersModel(config).eval()
    state = vit.state_dict()
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.register_tokens": state["register_tokens"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for index in range(len(vit.blocks)):
        ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
        for kind in ("weight", "bias"):
            parts = state[f"{ours}attn.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                renamed[f"{theirs}attention.{name}_proj.{kind}"] = part
            renamed[f"{theirs}attention.o_proj.{kind}"] = state[f"{ours}attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                renamed[f"{theirs}{name}.{kind}"] = state[f"{ours}{name}.{kind}"]
        renamed[f"{theirs}layer_scale1.lambda1"] = state[f"{ours}ls1.gamma"]
        renamed[f"{theirs}layer_scale2.lambda1"] = state[f"{ours}ls2.gamma"]
    model.load_state_dict(renamed, strict=True)
    return model


def test_dino_equals_transformers(toy: Sam3d) -> None:
    pixels = torch.from_numpy(sample_views(56, 1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pictures = ((pixels - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        out = hub_model(vit_of(toy), 56)(pictures, output_hidden_states=True)
        ss, slat = DinoGraph(toy.ss_generator.condition_embedder, toy.slat_generator.condition_embedder)(pixels)
    kept = [0, *range(5, 21)]  # the class token and 16 patches; four registers lie between
    raw = out.hidden_states[-1]  # before the last norm
    centred = raw - raw.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert (ss.shape, slat.shape) == ((4, 17, 64), (4, 21, 64))
    torch.testing.assert_close(ss, out.last_hidden_state[:, kept], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slat, normed, rtol=1e-4, atol=1e-4)
    assert out.last_hidden_state.std(0).min() > 1e-3  # views differ, token by token


@pytest.mark.parametrize("roles", ["aaaa", "abab", "aabb", "abcd", "abba", "abcb"])
def test_each_distinct_encoder_runs_once_on_its_views(roles: str) -> None:
    """roles: the encoders of pictures and masks of stage 1, then of stage 2."""
    toy = build(MODEL).eval()
    FAMILY.randomize(toy, 0)
    vits = {}
    for index, name in enumerate(sorted(set(roles))):
        vits[name] = Dinov2(64, 1, 4, patch_px=14, registers=4, view_px=56).eval()
        FAMILY.randomize(vits[name], index)
    for role, encoder in zip(roles, toy.encoders().values(), strict=True):
        encoder.backbone = vits[role]
    graph = DinoGraph(toy.ss_generator.condition_embedder, toy.slat_generator.condition_embedder)
    calls = []
    for name, vit in vits.items():
        vit.register_forward_hook(lambda module, args, out, name=name: calls.append((name, len(args[0]))))
    pixels = torch.from_numpy(sample_views(56, 1))
    with torch.inference_mode():
        ss, slat = graph(pixels)
        seen = sorted(calls)
        pictures = ((pixels - graph.mean) / graph.std).permute(0, 3, 1, 2)
        for stage, features in ((roles[:2], ss), (roles[2:], slat)):
            for kind, role in enumerate(stage):
                tokens = vits[role](pictures[2 * kind : 2 * kind + 2])
                wanted = vits[role].normed(tokens) if features is ss else F.layer_norm(tokens, (64,))
                torch.testing.assert_close(features[2 * kind : 2 * kind + 2], wanted, rtol=1e-4, atol=1e-5)
    served = {name: {index % 2 for index, role in enumerate(roles) if role == name} for name in vits}
    assert seen == sorted((name, 2 * len(kinds)) for name, kinds in served.items())


def slow_points(reader: PointPatch, points: Tensor, valid: Tensor) -> Tensor:
    """One window after the other, through PyTorch's own encoder layer: (V, S, S, 3), (V, S, S) -> (V, windows, dim)."""
    block = reader.blocks[0]
    assert isinstance(block, VitBlock)
    dim, state = reader.cls_token.shape[-1], block.state_dict()
    layer = nn.TransformerEncoderLayer(
        dim, 4, 2 * dim, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    renames = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.", "mlp.fc1.": "linear1."}
    renames["mlp.fc2."] = "linear2."
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in renames if key.startswith(prefix)), "")
        renamed[renames.get(prefix, "") + key.removeprefix(prefix)] = value
    layer.load_state_dict(renamed, strict=True)
    side, window = points.shape[1], reader.window
    tokens = []
    for view in range(len(points)):
        for row in range(0, side, window):
            for column in range(0, side, window):
                pixels = [reader.cls_token[0, 0]]
                for y in range(row, row + window):
                    for x in range(column, column + window):
                        known = bool(valid[view, y, x])
                        pixels.append(reader.point_proj(points[view, y, x]) if known else reader.invalid_xyz_token)
                read = layer((torch.stack(pixels) + reader.pos_embed_window[0])[None])[0, 0]
                tokens.append(read + reader.pos_embed[0, :, row // window, column // window])
    return torch.stack(tokens).unflatten(0, (len(points), -1))


@pytest.mark.parametrize("whole_block", [True, False])
def test_points_are_read_window_by_window(toy: Sam3d, whole_block: bool) -> None:
    reader = toy.ss_generator.condition_embedder.module_list[2]
    assert isinstance(reader, PointPatch)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 32, 32, 3, generator=generator)
    valid = (torch.rand(2, 32, 32, generator=generator) < 0.7).float()
    with torch.inference_mode():
        wanted = slow_points(reader, points * valid[..., None], valid)
        ours = reader(points * valid[..., None], valid, whole_block)
    assert wanted.std((0, 1)).min() > 0.1
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_a_missing_point_is_not_the_origin(toy: Sam3d) -> None:
    reader = toy.ss_generator.condition_embedder.module_list[2]
    points = torch.zeros(1, 32, 32, 3)
    with torch.inference_mode():
        there, gone = reader(points, torch.ones(1, 32, 32)), reader(points, torch.zeros(1, 32, 32))
    assert (there - gone).abs().mean() > 0.1


def test_tokens_are_fused_in_the_official_order(toy: Sam3d) -> None:
    """Pictures cropped and whole, masks cropped and whole, points cropped and whole."""
    fuser = toy.ss_generator.condition_embedder
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(4, 17, 64, generator=generator)
    points, valid = torch.randn(2, 32, 32, 3, generator=generator), torch.ones(2, 32, 32)
    state = fuser.state_dict()

    def fused(kind: int, tokens: Tensor, group: int) -> Tensor:
        net = f"projection_nets.{kind}."
        x = F.layer_norm(tokens, tokens.shape[-1:], state[net + "0.weight"], state[net + "0.bias"])
        gate, value = x @ state[net + "1.w1.weight"].T, x @ state[net + "1.w3.weight"].T
        return (gate * gate.sigmoid() * value) @ state[net + "1.w2.weight"].T + state["idx_emb"][group]

    with torch.inference_mode():
        (ours,) = StructureCondition(fuser)(features, points, valid)
        read = fuser.module_list[2](points, valid)
        views = [(0, features[0]), (0, features[1]), (1, features[2]), (1, features[3]), (2, read[0]), (2, read[1])]
        wanted = torch.cat([fused(kind, tokens, index % 2) for index, (kind, tokens) in enumerate(views)])
        latent_fuser = toy.slat_generator.condition_embedder
        (latent,) = LatentCondition(latent_fuser)(features)
        alone = [
            LatentCondition(latent_fuser)(features.clone().index_fill_(0, torch.tensor([i]), 0))[0] for i in range(4)
        ]
    assert ours.shape == (1, 4 * 17 + 2 * 16, 64)
    torch.testing.assert_close(ours[0], wanted, rtol=1e-4, atol=1e-4)
    for index, without in enumerate(alone):  # a view's tokens are its own
        changed = (latent - without).abs().amax((0, 2)) > 1e-3
        assert changed.nonzero().flatten().tolist() == list(range(17 * index, 17 * index + 17))


def test_layers_are_those_of_the_released_files() -> None:
    """Parameters (and stored positions) of each file in millions, as published with its converted copies."""
    with torch.device("meta"):
        model = build("sam3d-objects")

    def millions(module: nn.Module) -> float:
        return round(sum(value.numel() for value in module.state_dict().values()) / 1e6, 1)

    vit = vit_of(model)
    assert [millions(part) for part in (vit, model.ss_generator.backbone, model.slat_generator.backbone)] == [
        304.4,
        964.2,
        600.4,
    ]
    assert millions(model.ss_generator.condition_embedder) == 634.5  # two copies of the encoder
    assert round(sum(value.numel() for value in model.parameters()) / 1e6) == 2243  # one of four in memory
    assert millions(model.ss_decoder) == 73.7
    assert [millions(part) for part in (model.slat_decoder_gs, model.slat_decoder_mesh)] == [85.4, 90.9]


@pytest.fixture(scope="module")
def traced(specs: dict[str, GraphSpec]) -> Traced:
    """(graph, form) -> ONNX in fp32, each made once."""
    return lru_cache(lambda graph, form: onnx_from_spec(specs[graph], specs[graph].forms[form].module))


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_their_modules(specs: dict[str, GraphSpec], traced: Traced, graph: str) -> None:
    spec = specs[graph]
    runs = reference_runs(spec)
    for index, form in enumerate(spec.forms):
        content = traced(graph, index).SerializeToString()
        assert max(row.relative_l2 for row in checked_parity(spec, content, "fp32", form.targets, runs)) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_narrow_graphs_hold_the_gate(specs: dict[str, GraphSpec], graph: str, precision: str, tmp_path: Path) -> None:
    spec = specs[graph]
    stored = make_form(spec, spec.forms[-1], precision, reference_runs(spec), tmp_path)
    bar = {"fp16": 2.5e-3, "bf16": 2e-2}[precision]
    assert bar / 100 < max(row.relative_l2 for row in stored.parity) < bar
    assert stored.kept_fp32 == []


@pytest.mark.parametrize(("graph", "attentions"), [("dino", 2), ("ss_cond", 1), ("slat_cond", 0)])
def test_graphs_build_in_fp16(specs: dict[str, GraphSpec], traced: Traced, graph: str, attentions: int) -> None:
    content = typed_graph(traced(graph, len(specs[graph].forms) - 1), "fp16", {}).SerializeToString()
    options = BuildOptions(flavour="rtx", sm="89")
    plan = build_plan(content, profiles=dict(specs[graph].profiles), precision="fp16", options=options, name=graph)
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (attentions, 0)


def test_cpu_form_holds_no_scores(specs: dict[str, GraphSpec], traced: Traced) -> None:
    assert specs["dino"].forms[0].targets == ("onnxruntime-cpu",)
    ops = [node.op_type for node in traced("dino", 0).graph.node]
    assert (ops.count("MultiHeadAttention"), ops.count("Attention"), ops.count("Softmax")) == (2, 0, 0)


def test_samples_are_pictures_and_masks() -> None:
    views = sample_views(56, 0)
    assert views.shape == (4, 56, 56, 3)
    assert set(np.unique(views[2:])) == {0.0, 1.0}
    assert 0 <= views.min() < views.max() <= 1
