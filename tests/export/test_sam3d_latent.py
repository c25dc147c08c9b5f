"""`slat_flow`: parity in every precision, on real maps of a shell, and plans through TensorRT for RTX."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from sam3d_toy import live_toy, shell, toy_spec
from torch.nn import functional as F

from samrt.sparse import SparseMaps
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.families.sam3d.config import CONFIGS
from samrt_export.families.sam3d.latent import SlatFlow, SlatFlowGraph, SlatFlowReference, grid_sines
from samrt_export.forms import checked_parity
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs, run_module
from samrt_export.precision.narrow import checked_narrow, choose, narrow_form
from samrt_export.registry import Feeds

CONFIG = CONFIGS["sam3d-objects-toy"]
SPEC = toy_spec("slat_flow")


@cache
def fp32(target: str) -> onnx.ModelProto:
    return onnx_from_spec(SPEC, choose(SPEC, target).module)


def shell_feeds(seed: int = 0) -> Feeds:
    """The graph's inputs on a sphere's voxels."""
    maps = SparseMaps.from_coords(shell(900, CONFIG.grid), grid=CONFIG.grid)
    sizes = {"voxels": 900, "coarse": len(maps.coarse_coords), "slat_tokens": 7}
    feeds = SPEC.sample(sizes, seed)
    return feeds | {name: value.copy() for name, value in maps.feeds(feeds).items()}


@pytest.mark.parametrize("target", ["onnxruntime-cpu", ""])
def test_fp32_forms_are_the_module(target: str) -> None:
    rows = checked_parity(SPEC, fp32(target).SerializeToString(), "fp32", runs=reference_runs(SPEC))
    assert max(row.relative_l2 for row in rows) < 2e-6


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_narrow_forms_hold_and_keep_the_angles_of_time(precision: str) -> None:
    runs = reference_runs(SPEC)
    narrow = narrow_form(fp32(""), SPEC, precision, runs)
    assert {"Sin", "Cos"} <= {kept["op"] for kept in narrow.kept_fp32}
    checked_narrow(SPEC, narrow.model.SerializeToString(), precision, runs)
    plan = build_plan(
        narrow.model.SerializeToString(),
        profiles=dict(SPEC.profiles),
        precision=precision,
        options=BuildOptions(flavour="rtx", sm="89"),
        name=SPEC.name,
    )
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (2 * CONFIG.latent_flow.depth, 0)  # all of them fused


def test_forms_agree_on_the_maps_of_a_shell() -> None:
    feeds = shell_feeds()
    wanted = torch.from_numpy(run_module(SPEC, feeds)["slat_velocity"])
    with torch.inference_mode():
        arguments = [torch.from_numpy(feeds[tensor.name]) for tensor in SPEC.inputs]
        (ours,) = choose(SPEC, "").module(*arguments)
    assert float((ours - wanted).norm() / wanted.norm()) < 2e-6


def test_a_condition_of_zeros_says_as_much_in_one_token_as_in_all() -> None:
    feeds = shell_feeds()
    answers = []
    for tokens in (1, CONFIG.slat_tokens):
        empty = np.zeros((1, tokens, CONFIG.fuser.dim), np.float32)
        answers.append(run_module(SPEC, feeds | {"slat_condition": empty})["slat_velocity"])
    np.testing.assert_allclose(answers[0], answers[1], atol=2e-6 * np.abs(answers[1]).max())
    assert np.abs(answers[0] - run_module(SPEC, feeds)["slat_velocity"]).max() > 0.01


def test_time_runs_the_other_way_in_a_mirrored_graph() -> None:
    flow = live_toy().slat_generator.backbone
    assert isinstance(flow, SlatFlow)
    feeds = shell_feeds()
    arguments = [torch.from_numpy(feeds[tensor.name]) for tensor in SPEC.inputs]
    later = [arguments[0], 1000 - arguments[1], *arguments[2:]]
    with torch.inference_mode():
        (mirrored,) = SlatFlowGraph(flow, 1000.0, mirrored=True)(*arguments)
        (plain,) = SlatFlowReference(flow, 1000.0, mirrored=False)(*later)
    assert float((mirrored + plain).norm() / plain.norm()) < 2e-6


def test_positions_of_voxels_are_sines_per_axis() -> None:
    table = live_toy().slat_generator.backbone.axis_table
    assert isinstance(table, torch.Tensor)
    dim = CONFIG.latent_flow.dim
    rates = 10000.0 ** -(torch.arange(dim // 6) / (dim // 6))
    wanted = [part for value in (3.0, 17.0, 31.0) for part in ((value * rates).sin(), (value * rates).cos())]
    ours = grid_sines(table, torch.tensor([[3, 17, 31]], dtype=torch.int32), dim)
    torch.testing.assert_close(ours[0], F.pad(torch.cat(wanted), (0, dim % 6)))
