"""The decoders' graphs: parity in every precision, plans through TensorRT for RTX, and what the outputs mean."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from sam3d_toy import live_toy, shell, toy_spec

from samrt.sparse import SparseMaps
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.families.sam3d.config import CONFIGS
from samrt_export.families.sam3d.decoders import SlatDecoderGs, SlatDecoderMesh
from samrt_export.families.sam3d.sparse_specs import randomize_sparse, sparse_graphs
from samrt_export.forms import checked_parity
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs, run_module
from samrt_export.precision.narrow import checked_narrow, choose, narrow_form
from samrt_export.registry import Feeds

CONFIG = CONFIGS["sam3d-objects-toy"]
ATTENTIONS = {"slat_gs": 2, "slat_gs_4": 2, "slat_mesh_trunk": 2, "slat_mesh_up": 0, "slat_mesh_attr": 0}
FORMS = [
    *(("slat_gs", target) for target in ("onnxruntime-cpu", "")),
    ("slat_gs_4", "onnxruntime-cpu"),
    *((name, "") for name in ("slat_mesh_trunk", "slat_mesh_up", "slat_mesh_attr")),
]


@cache
def fp32(name: str, target: str) -> onnx.ModelProto:
    return onnx_from_spec(toy_spec(name), choose(toy_spec(name), target).module)


def shell_feeds(name: str, seed: int = 0) -> Feeds:
    maps = SparseMaps.from_coords(shell(900, CONFIG.grid), grid=CONFIG.grid)
    sizes = dict.fromkeys(toy_spec(name).profiles, 4) | {"voxels": 900}
    feeds = toy_spec(name).sample(sizes, seed)
    return feeds | {name: value.copy() for name, value in maps.feeds(feeds).items()}


@pytest.mark.parametrize(("name", "target"), FORMS)
def test_fp32_forms_are_the_module(name: str, target: str) -> None:
    spec = toy_spec(name)
    rows = checked_parity(spec, fp32(name, target).SerializeToString(), "fp32", runs=reference_runs(spec))
    assert max(row.relative_l2 for row in rows) < 2e-6


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name != "slat_gs_4"])
def test_narrow_forms_hold_and_build(name: str, precision: str) -> None:
    spec = toy_spec(name)
    runs = reference_runs(spec)
    narrow = narrow_form(fp32(name, ""), spec, precision, runs)
    content = narrow.model.SerializeToString()
    checked_narrow(spec, content, precision, runs)
    options = BuildOptions(flavour="rtx", sm="89")
    plan = build_plan(content, profiles=dict(spec.profiles), precision=precision, options=options, name=name)
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (ATTENTIONS[name], 0)  # all of them fused


@pytest.mark.parametrize("name", ["slat_gs", "slat_mesh_trunk", "slat_mesh_up"])
def test_forms_agree_on_the_maps_of_a_shell(name: str) -> None:
    spec, feeds = toy_spec(name), shell_feeds(name)
    wanted = run_module(spec, feeds)
    for target in ("onnxruntime-cpu", ""):
        with torch.inference_mode():
            ours = choose(spec, target).module(*(torch.from_numpy(feeds[one.name]) for one in spec.inputs))
        for tensor, value in zip(spec.outputs, ours, strict=True):
            theirs = wanted[tensor.name]
            assert np.linalg.norm(value.numpy() - theirs) / np.linalg.norm(theirs) < 5e-6, (target, tensor.name)


def test_windows_of_a_shifted_partition_are_the_odd_blocks() -> None:
    feeds = shell_feeds("slat_mesh_trunk")
    usual = run_module(toy_spec("slat_mesh_trunk"), feeds)["mesh_features"]
    for name in ("windows", "shifted_windows"):
        maps = {f"{name}": feeds[name][:, ::-1].copy()}  # the slots now read another voxel
        changed = run_module(toy_spec("slat_mesh_trunk"), feeds | maps)["mesh_features"]
        assert np.abs(changed - usual).max() > 0.01
    swapped = {
        "windows": feeds["shifted_windows"],
        "window_slots": feeds["shifted_window_slots"],
        "shifted_windows": feeds["windows"],
        "shifted_window_slots": feeds["window_slots"],
    }
    changed = run_module(toy_spec("slat_mesh_trunk"), feeds | swapped)["mesh_features"]
    assert np.abs(changed - usual).max() > 0.01


def test_gaussians_are_the_channels_of_the_output_one_kind_after_the_other() -> None:
    decoder = live_toy().get_submodule("slat_decoder_gs")
    assert isinstance(decoder, SlatDecoderGs)
    x = torch.randn(5, CONFIG.decoder.dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        norm = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        channels = norm @ decoder.out_layer.weight.T + decoder.out_layer.bias
        offsets, colors, scales, rotations, opacities = decoder.gaussians_of(x)
    close = {"rtol": 1e-4, "atol": 1e-5}
    raw = channels[:, :96].view(5, 32, 3) + decoder.offset_perturbation
    torch.testing.assert_close(offsets, raw.tanh() / 64 * 0.5 * 1.5, **close)
    torch.testing.assert_close(colors, channels[:, 96:192].view(5, 32, 3), **close)
    torch.testing.assert_close(scales, channels[:, 192:288].view(5, 32, 3), **close)
    torch.testing.assert_close(rotations, channels[:, 288:416].view(5, 32, 4), **close)
    torch.testing.assert_close(opacities, channels[:, 416:448].view(5, 32, 1), **close)
    assert float(offsets.abs().max()) < 0.75 / 64


def test_distances_and_attributes_are_one_layer_s_channels() -> None:
    decoder = live_toy().get_submodule("slat_decoder_mesh")
    assert isinstance(decoder, SlatDecoderMesh)
    made = run_module(toy_spec("slat_mesh_up"), shell_feeds("slat_mesh_up"))
    rows = torch.from_numpy(made["cube_features"][:50])
    rest = run_module(toy_spec("slat_mesh_attr"), {"surface_features": rows.numpy()})
    with torch.inference_mode():
        channels = decoder.out_layer(rows)
    parts = [
        made["cube_sdf"][:50],
        *(rest[name].reshape(50, -1) for name in ("cube_deform", "cube_weights", "cube_colors")),
    ]
    assert [part.shape[1] for part in parts] == [8, 24, 21, 48]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), channels.numpy(), rtol=1e-5, atol=1e-5)
    assert rest["cube_deform"].shape == (50, 8, 3)


def test_official_names_of_the_decoders_and_the_flow() -> None:
    names = live_toy().state_dict().keys()
    flow, mesh, gaussians = "slat_generator.backbone.", "slat_decoder_mesh.", "slat_decoder_gs."
    assert {
        f"{flow}input_blocks.1.conv1.conv.weight",
        f"{flow}input_blocks.1.emb_layers.1.weight",
        f"{flow}input_blocks.1.skip_connection.weight",
        f"{flow}out_blocks.0.norm1.weight",
        f"{flow}blocks.0.adaLN_modulation.1.weight",
        f"{flow}blocks.0.mlp.mlp.2.bias",
        f"{flow}t_embedder.mlp.2.weight",
        f"{mesh}upsample.0.act_layers.0.weight",
        f"{mesh}upsample.1.out_layers.0.conv.weight",
        f"{mesh}upsample.1.out_layers.1.bias",
        f"{mesh}upsample.1.out_layers.3.conv.bias",
        f"{mesh}upsample.0.skip_connection.conv.weight",
        f"{gaussians}offset_perturbation",
        f"{gaussians}blocks.1.attn.to_qkv.weight",
        f"{gaussians}blocks.1.attn.to_out.bias",
    } <= names
    assert f"{flow}input_blocks.0.skip_connection.weight" not in names  # as wide in as out
    assert not [name for name in names if "axis_table" in name]


def test_random_convolutions_keep_the_size_of_what_passes() -> None:
    module = live_toy()
    randomize_sparse(module, 1)
    assert len(sparse_graphs(module)) == 6  # type: ignore[arg-type]
    weight = module.get_parameter("slat_decoder_mesh.upsample.0.out_layers.3.conv.weight")
    assert float(weight.detach().square().sum(dim=(1, 2, 3, 4)).mean()) == pytest.approx(
        3, rel=0.05
    )  # a third is there
