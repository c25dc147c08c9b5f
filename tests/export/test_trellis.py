"""TRELLIS: its first stage against a slow reference, its time turned round, its folder and its numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_sam3d_condition import hub_model
from test_sam3d_structure import State, attention, linear, normed, rms, time_embedding
from torch import Tensor
from torch.nn import functional as F

from samrt import CheckpointError
from samrt.numbers import parse_reconstruction
from samrt.schema import Cursor
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.checkpoint import load_checkpoint
from samrt_export.families.sam3d.condition import sample_views
from samrt_export.families.trellis import FAMILY, Trellis, build
from samrt_export.families.trellis.config import CONFIGS
from samrt_export.families.trellis.folder import PARTS, read_state
from samrt_export.families.trellis.model import ConditionGraph, SingleStreamFlow, StructureFlowGraph
from samrt_export.forms import checked_parity
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights

MODEL = "trellis-image-large-toy"
SHARED = ["ss_decoder", "slat_flow", "slat_gs", "slat_mesh_trunk", "slat_mesh_up", "slat_mesh_attr"]
KINDS = {
    "sparse_structure_flow_model": "SparseStructureFlowModel",
    "slat_flow_model": "ElasticSLatFlowModel",
    "sparse_structure_decoder": "SparseStructureDecoder",
    "slat_decoder_gs": "ElasticSLatGaussianDecoder",
    "slat_decoder_mesh": "ElasticSLatMeshDecoder",
}


@pytest.fixture(scope="module")
def toy() -> Trellis:
    """The toy with live random weights. Read only."""
    module = load_weights(FAMILY, MODEL, random_seed=2).module
    assert isinstance(module, Trellis)
    return module


@pytest.fixture(scope="module")
def specs(toy: Trellis) -> dict[str, GraphSpec]:
    """Its graphs by name."""
    return {spec.name: spec for spec in FAMILY.graphs(toy, MODEL)}


@pytest.fixture(scope="module")
def small(toy: Trellis) -> SingleStreamFlow:
    """The toy's flow on 3 x 3 x 3 tokens."""
    flow = SingleStreamFlow(CONFIGS[MODEL]).eval().requires_grad_(False)
    flow.pos_emb = torch.zeros(27, 64)
    FAMILY.randomize(flow, 1)
    return flow


def slow_flow(state: State, latent: Tensor, time: float, condition: Tensor) -> Tensor:
    """latent: (N, C), time: from 1000, noise, to 0, data, condition: (M, dim) -> velocity (N, C)."""
    x = linear(state, "input_layer", latent) + state["pos_emb"]
    embedded = time_embedding(state, "t_embedder", time)
    for i in range(2):
        block = f"blocks.{i}."
        mod = linear(state, block + "adaLN_modulation.1", embedded * embedded.sigmoid()).chunk(6)
        q, k, v = linear(state, block + "self_attn.to_qkv", normed(x, 1e-6) * (1 + mod[1]) + mod[0]).chunk(3, -1)
        q, k = rms(state, block + "self_attn.q_rms_norm", q), rms(state, block + "self_attn.k_rms_norm", k)
        x = x + mod[2] * linear(state, block + "self_attn.to_out", attention(q, k, v))
        h = normed(x, 1e-6) * state[block + "norm2.weight"] + state[block + "norm2.bias"]
        k, v = linear(state, block + "cross_attn.to_kv", condition).chunk(2, -1)
        h = attention(linear(state, block + "cross_attn.to_q", h), k, v)
        x = x + linear(state, block + "cross_attn.to_out", h)
        h = linear(state, block + "mlp.mlp.0", normed(x, 1e-6) * (1 + mod[4]) + mod[3])
        h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
        x = x + mod[5] * linear(state, block + "mlp.mlp.2", h)
    return linear(state, "out_layer", normed(x, 1e-5))


def test_flow_is_the_published_one_with_time_turned_round(small: SingleStreamFlow) -> None:
    generator = torch.Generator().manual_seed(0)
    latent, condition = torch.randn(27, 8, generator=generator), torch.randn(11, 64, generator=generator)
    graph = StructureFlowGraph(small)
    with torch.inference_mode():
        for ours in (0.0, 310.0, 1000.0):
            wanted = -slow_flow(small.state_dict(), latent, 1000 - ours, condition)
            (made,) = graph(latent[None], torch.tensor([ours]), condition[None])
            assert wanted.std() > 0.1
            assert (made[0] - wanted).norm() / wanted.norm() < 1e-5
        one, many = (graph(latent[None], torch.tensor([5.0]), torch.zeros(1, n, 64))[0] for n in (1, 50))
    assert (one - many).norm() / one.norm() < 2e-6  # one zero token is any number of them


def test_euler_steps_are_its_own_walked_the_other_way(small: SingleStreamFlow) -> None:
    """Its sampler, from its paper and code, beside ours of all models: t = 0 noise, t = 1 data, rescaled towards noise."""
    generator = torch.Generator().manual_seed(3)
    noise, condition = torch.randn(27, 8, generator=generator), torch.randn(5, 64, generator=generator)
    steps, rescale, strength, interval = 4, 3.0, 5.0, (0.5, 1.0)
    theirs, state, empty = noise, small.state_dict(), torch.zeros(5, 64)
    times = [rescale * s / (1 + (rescale - 1) * s) for s in np.linspace(1, 0, steps + 1)]
    ours, graph = noise[None], StructureFlowGraph(small)
    sampling = parse_reconstruction(Cursor(FAMILY.numbers(MODEL)["reconstruction"], "numbers")).structure
    assert (sampling.rescale_t, sampling.guidance) == (rescale, strength)
    low, high = sampling.guidance_interval
    with torch.inference_mode():
        for index in range(steps):
            t, after = times[index], times[index + 1]
            v = slow_flow(state, theirs, 1000 * t, condition)
            if interval[0] <= t <= interval[1]:
                v = (1 + strength) * v - strength * slow_flow(state, theirs, 1000 * t, empty)
            theirs = theirs - (t - after) * v
            t, after = (u / (1 + (sampling.rescale_t - 1) * (1 - u)) for u in (index / steps, (index + 1) / steps))
            scaled = torch.tensor([sampling.time_scale * t], dtype=torch.float32)
            (v,) = graph(ours, scaled, condition[None])
            if low <= scaled.item() <= high:
                (free,) = graph(ours, scaled, empty[None, :1])
                v = (1 + sampling.guidance) * v - sampling.guidance * free
            ours = ours + (after - t) * v
    assert (theirs - noise).norm() > 0.5 * noise.norm()
    assert (ours[0] - theirs).norm() / theirs.norm() < 1e-4


def test_condition_is_the_raw_tokens_of_transformers_normed(toy: Trellis) -> None:
    pixels = torch.from_numpy(sample_views(56, 4)[:1])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        out = hub_model(toy.image_encoder, 56)(((pixels - mean) / std).permute(0, 3, 1, 2), output_hidden_states=True)
        ss, slat = ConditionGraph(toy.image_encoder)(pixels)
    torch.testing.assert_close(ss, F.layer_norm(out.hidden_states[-1], (64,)), rtol=1e-4, atol=1e-4)
    assert torch.equal(ss, slat)


def test_graphs(specs: dict[str, GraphSpec]) -> None:
    assert list(specs) == ["dino", "ss_flow", *SHARED]
    for name in ("dino", "ss_flow"):
        spec = specs[name]
        runs = reference_runs(spec)
        for form in spec.forms:
            model = onnx_from_spec(spec, form.module)
            rows = checked_parity(spec, model.SerializeToString(), "fp32", form.targets, runs)
            assert max(row.relative_l2 for row in rows) < 4e-6
            fused = "MultiHeadAttention" if form.targets else "Attention"
            ops = [node.op_type for node in model.graph.node]
            assert (ops.count(fused), ops.count("Softmax")) == ({"dino": 2, "ss_flow": 4}[name], 0)
        content = typed_graph(model, "fp16", {}).SerializeToString()
        options = BuildOptions(flavour="rtx", sm="89")
        plan = build_plan(content, profiles=dict(spec.profiles), precision="fp16", options=options, name=name)
        assert plan.facts is not None
        assert plan.facts.decomposable == 0


def test_numbers_are_those_of_its_pipeline() -> None:
    numbers = parse_reconstruction(Cursor(FAMILY.numbers("trellis-image-large")["reconstruction"], "numbers"))
    assert (numbers.views, numbers.view_px, numbers.point_px, numbers.pose) == (("object",), 518, None, None)
    assert (numbers.grid, numbers.latent_grid, numbers.mesh.resolution) == (64, 16, 256)
    assert numbers.mesh.sdf_bias == -1 / 256
    assert numbers.structure == numbers.latent
    assert not numbers.structure.shortcut
    assert numbers.latent_mean[5] == 0.7238689064979553
    assert numbers.latent_std[4] == 2.663944721221924


def write_folder(folder: Path, toy: Trellis) -> None:
    """The official layout, in fp16 and fp32 mixed as it is, and the image encoder beside it."""
    state = toy.state_dict()
    models = {}
    (folder / "ckpts").mkdir(parents=True)
    for part, (prefix, _) in PARTS.items():
        models[part] = f"ckpts/{part}_fp16"
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        save_file(weights, folder / f"ckpts/{part}_fp16.safetensors")
        arguments = {"representation_config": {"num_gaussians": 32}} if part == "slat_decoder_gs" else {}
        description = json.dumps({"name": KINDS[part], "args": arguments})
        (folder / f"ckpts/{part}_fp16.json").write_text(description)
    models["slat_decoder_rf"] = "ckpts/none"  # not used
    config = CONFIGS["trellis-image-large"]
    latents = {"mean": config.latent_mean, "std": config.latent_std}
    arguments = {"models": models, "slat_normalization": latents}
    (folder / "pipeline.json").write_text(json.dumps({"name": "TrellisImageTo3DPipeline", "args": arguments}))
    encoder = {name.removeprefix("image_encoder."): v for name, v in state.items() if name.startswith("image_encoder.")}
    torch.save(encoder, folder / "dinov2_vitl14_reg4_pretrain.pth")


@pytest.fixture
def folder(toy: Trellis, tmp_path: Path) -> Path:
    """A folder that may be spoilt."""
    write_folder(tmp_path / "weights", toy)
    return tmp_path / "weights"


def test_the_official_folder_is_read(toy: Trellis, folder: Path) -> None:
    loaded = build(MODEL).requires_grad_(False)
    load_checkpoint(loaded, folder, FAMILY, MODEL)
    wanted = toy.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def spoil(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_is_wrong_with_a_folder_is_named(folder: Path) -> None:
    names = {
        "dinov2_vitl14_reg4_pretrain.pth": "dinov2_vitl14_reg4_pretrain.pth is missing: .* fix: download https://dl.fbai",
        "ckpts/slat_decoder_mesh_fp16.json": "slat_decoder_mesh_fp16.json is missing",
        "ckpts/slat_decoder_gs_fp16.safetensors": "slat_decoder_gs_fp16.safetensors is missing",
        "pipeline.json": "pipeline.json is missing .* fix: hf download microsoft/TRELLIS-image-large",
    }
    for name, message in names.items():
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            read_state(folder)
        (folder / name).write_bytes(content)
    read_state(folder)
    gaussians = {"representation_config": {"num_gaussians": 8}}
    spoil(folder / "ckpts/slat_decoder_gs_fp16.json", args=gaussians)
    with pytest.raises(
        CheckpointError, match=r"num_gaussians of slat_decoder_gs was changed \| got: 8 .* expected: 32"
    ):
        read_state(folder)
    spoil(folder / "ckpts/slat_flow_model_fp16.json", name="SLatMeshDecoder")
    with pytest.raises(CheckpointError, match=r"does not describe slat_flow_model .* expected: SLatFlowModel"):
        read_state(folder)
    spoil(folder / "pipeline.json", args={"models": {"sparse_structure_flow_model": "../outside"}})
    with pytest.raises(CheckpointError, match=r"does not name sparse_structure_flow_model \| got: '\.\./outside'"):
        read_state(folder)
    spoil(folder / "pipeline.json", args={"slat_normalization": {"mean": [0.0] * 8}})
    with pytest.raises(CheckpointError, match=r"the mean of latents in pipeline\.json is not that of .*-large"):
        read_state(folder)
    (folder / "pipeline.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"pipeline\.json is not a configuration \| got: list"):
        read_state(folder)
