"""MoGe v1: against transformers' DINOv2 and the official head written out with functions, and through an export."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samrt.bundle import open_bundle
from samrt_engines.errors import CheckpointError
from samrt_engines.executor import open_executor
from samrt_engines.tensorrt import BuildOptions, build_plan
from samrt_export.blocks.moge_head import with_view_plane
from samrt_export.export import export_model
from samrt_export.families.moge import FAMILY, Moge
from samrt_export.families.moge.config import CONFIGS, MEAN, STD
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec
from samrt_export.source import load_weights
from samrt_export.verify import verify_bundle

TOY = CONFIGS["moge-vitl-toy"]


@cache
def toy() -> Moge:
    module = load_weights(FAMILY, "moge-vitl-toy", random_seed=3).module
    assert isinstance(module, Moge)
    return module


def toy_spec() -> GraphSpec:
    (spec,) = FAMILY.graphs(toy(), "moge-vitl-toy")
    return spec


def picture(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(height + width))
    return F.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)


def cubic_weights(target: int, source: int = TOY.grid, offset: float | None = None) -> Tensor:
    """PyTorch's bicubic resize of one axis as a matrix (target, source); by size, or by scale with DINOv2's offset."""
    basis = torch.eye(source, dtype=torch.float32)[None, None].expand(
        1, 1, source, source
    )  # rows: places, columns: basis
    if offset is None:
        made = F.interpolate(basis, (target, source), mode="bicubic")
    else:
        made = F.interpolate(basis, scale_factor=((target + offset) / source, 1.0), mode="bicubic")
    return made[0, 0]


def official_uv(width: int, height: int) -> Tensor:
    """(2, h, w)."""
    aspect = width / height
    span_x, span_y = aspect / (1 + aspect**2) ** 0.5, 1 / (1 + aspect**2) ** 0.5
    u = torch.linspace(-span_x * (width - 1) / width, span_x * (width - 1) / width, width)
    v = torch.linspace(-span_y * (height - 1) / height, span_y * (height - 1) / height, height)
    return torch.stack(torch.meshgrid(u, v, indexing="xy"))


def official_head(state: dict[str, Tensor], features: list[Tensor], image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The head by the file's names alone. features: each (1, C, rows, columns)."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        return F.conv2d(F.pad(x, (pad,) * 4, mode="replicate"), weight, state[f"{name}.bias"])

    def norm(x: Tensor, name: str, groups: int) -> Tensor:
        return F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def with_uv(x: Tensor) -> Tensor:
        plane = official_uv(x.shape[3], x.shape[2])
        return torch.cat((x, plane[None]), dim=1)

    x = torch.stack([conv(feature, f"head.projects.{i}") for i, feature in enumerate(features)]).sum(0)
    for stage in range(3):
        name = f"head.upsample_blocks.{stage}"
        x = F.conv_transpose2d(with_uv(x), state[f"{name}.0.0.weight"], state[f"{name}.0.0.bias"], stride=2)
        x = conv(x, f"{name}.0.1")
        for block in range(1, 1 + TOY.blocks):
            layers = f"{name}.{block}.layers"
            inner = conv(F.relu(norm(x, f"{layers}.0", 1)), f"{layers}.2")
            x = x + conv(F.relu(norm(inner, f"{layers}.3", inner.shape[1] // 32)), f"{layers}.5")
    x = with_uv(F.interpolate(x, image_hw, mode="bilinear", align_corners=False))
    points, mask = (conv(F.relu(conv(x, f"head.output_block.{i}.0")), f"head.output_block.{i}.2") for i in (0, 1))
    xy, z = points.permute(0, 2, 3, 1).split([2, 1], dim=-1)
    return torch.cat((xy * z.exp(), z.exp()), dim=-1), mask[:, 0]


def transformers_features(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """What transformers' DINOv2 gives for the last layers, normed, as maps."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=TOY.dim, num_hidden_layers=TOY.depth, num_attention_heads=TOY.heads, image_size=14 * TOY.grid,
        patch_size=14, layer_norm_eps=1e-6, out_indices=list(range(TOY.depth - TOY.features + 1, TOY.depth + 1)),
        attn_implementation="eager",
    )  # fmt: skip
    oracle = transformers.Dinov2Backbone(config).eval()
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    made = {theirs: state[f"backbone.{ours}"] for theirs, ours in names.items()}
    for i in range(TOY.depth):
        ours, theirs = f"backbone.blocks.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            parts = (*state[f"{ours}.attn.qkv.{kind}"].chunk(3), state[f"{ours}.attn.proj.{kind}"])
            for part, name in zip(parts, "qkvo", strict=True):
                made[f"{theirs}.attention.{name}_proj.{kind}"] = part
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                made[f"{theirs}.{name}.{kind}"] = state[f"{ours}.{name}.{kind}"]
        for scale in (1, 2):
            made[f"{theirs}.layer_scale{scale}.lambda1"] = state[f"{ours}.ls{scale}.gamma"]
    oracle.load_state_dict(made, strict=True)
    pixels = (image.permute(0, 3, 1, 2) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        return list(oracle(pixels).feature_maps)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 6), (8, 4)])
def test_the_module_is_the_official_model(rows: int, columns: int) -> None:
    image = picture(14 * rows, 14 * columns)
    state = toy().state_dict()
    with torch.inference_mode():
        points, mask = toy()(image, cubic_weights(rows), cubic_weights(columns))
        their_points, their_mask = official_head(state, transformers_features(state, image), (14 * rows, 14 * columns))
    assert points.shape == (1, 14 * rows, 14 * columns, 3)
    for ours, theirs in ((points, their_points), (mask, their_mask)):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
        assert float(theirs.std()) > 0.1


def test_the_last_layers_are_seen_and_no_others() -> None:
    image, weights = picture(70, 70), cubic_weights(5)
    module = load_weights(FAMILY, "moge-vitl-toy", random_seed=3).module
    before = module(image, weights, weights)[0]
    with torch.no_grad():
        module.head.projects[0].weight.zero_()  # type: ignore[union-attr, index, operator]
    assert float((module(image, weights, weights)[0] - before).abs().max()) > 0.1
    assert len(toy().head.projects) == TOY.features < TOY.depth


@pytest.mark.parametrize("target", [3, 5, 9])
def test_positions_are_a_bicubic_resize_of_the_table(target: int) -> None:
    """With the offset that the official code adds to the number of patches before it scales."""
    table = toy().backbone.pos_embed[0, 1:].detach().unflatten(0, (TOY.grid, TOY.grid)).permute(2, 0, 1)[None]
    scales = ((target + 0.1) / TOY.grid, (7 + 0.1) / TOY.grid)
    wanted = F.interpolate(table, scale_factor=scales, mode="bicubic")
    with torch.inference_mode():
        found = toy()._positions(cubic_weights(target, offset=0.1), cubic_weights(7, offset=0.1))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 7), (588, 840), (1400, 140)])
def test_the_view_plane(height: int, width: int) -> None:
    made = with_view_plane(torch.zeros(1, 1, height, width))[0, 1:]
    torch.testing.assert_close(made, official_uv(width, height), rtol=1e-5, atol=1e-6)
    corner = 0.5 * math.hypot(1 - 1 / width, 0) if height == 1 else float(made[:, -1, -1].norm())
    assert corner < 1
    narrow = with_view_plane(torch.zeros(1, 1, height, width, dtype=torch.float16))[0, 1:]
    torch.testing.assert_close(narrow.float(), made, rtol=5e-3, atol=1e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the official ``model.pt``."""
    path = tmp_path_factory.mktemp("moge") / "model.pt"
    torch.save({"model_config": {"encoder": "dinov2_vitl14", "remap_output": "exp"}, "model": toy().state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    return export_model("moge-vitl-toy", checkpoint.parent / "bundle", checkpoint=checkpoint).path


def test_an_official_file_exports_and_verifies(checkpoint: Path, bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.abilities == ("depth",)
    assert manifest.source.licence == "MIT"
    assert manifest.depth is not None
    assert (manifest.depth.position_grid, manifest.depth.tokens) == (TOY.grid, TOY.tokens)
    assert (manifest.depth.remap, manifest.depth.mask_threshold) == ("exp", 0.5)
    assert verify_bundle(bundle, checkpoint=checkpoint).ok


def test_one_graph_takes_every_size(bundle: Path) -> None:
    opened = open_bundle(bundle)
    graph = opened.manifest.graphs["moge"]
    for form in graph.forms:
        with open_executor(
            opened.read_model(form), device="cpu", inputs=graph.inputs, outputs=graph.outputs, ranges=graph.ranges
        ) as executor:
            for rows, columns in ((1, 1), (1, 9), (7, 5)):
                image, weights = picture(14 * rows, 14 * columns), (cubic_weights(rows), cubic_weights(columns))
                with torch.inference_mode():
                    wanted = toy()(image, *weights)
                feeds = {"image": image, "row_weights": weights[0], "column_weights": weights[1]}
                made = executor.run({name: value.contiguous().numpy() for name, value in feeds.items()})
                for name, value in zip(("pointmap", "pointmap_mask"), wanted, strict=True):
                    error = np.linalg.norm(made[name] - value.numpy()) / np.linalg.norm(value.numpy())
                    assert error < 2e-5, (form.targets, rows, columns, name)


def test_another_file_is_refused(tmp_path: Path) -> None:
    state = dict(toy().state_dict())
    state["head.projects.9.weight"] = state.pop("head.projects.0.weight")
    torch.save({"model_config": {}, "model": state}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model.pt does not fit moge-vitl-toy.*head\.projects\.0\.weight"):
        load_weights(FAMILY, "moge-vitl-toy", checkpoint=tmp_path / "model.pt")
    assert not list(tmp_path.glob("out*"))


def test_parameter_names_of_the_official_model() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in FAMILY.build("moge-vitl").state_dict().items()}
    assert shapes["backbone.pos_embed"] == (1, 1370, 1024)
    assert shapes["backbone.blocks.23.ls2.gamma"] == (1024,)
    assert shapes["head.projects.3.weight"] == (512, 1024, 1, 1)
    assert shapes["head.upsample_blocks.0.0.0.weight"] == (514, 256, 2, 2)
    assert shapes["head.upsample_blocks.2.2.layers.5.weight"] == (64, 128, 3, 3)
    assert shapes["head.output_block.1.2.bias"] == (1,)
    assert "head.projects.4.weight" not in shapes
    total = sum(math.prod(shape) for shape in shapes.values())
    assert total == pytest.approx(314e6, rel=0.01)


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_builds_for_every_size(precision: str) -> None:
    spec = toy_spec()
    content = typed_graph(onnx_from_spec(spec, spec.forms[-1].module), precision, {}).SerializeToString()
    options = BuildOptions(flavour="rtx", sm="86")
    plan = build_plan(content, profiles=dict(spec.profiles), precision=precision, options=options, name="moge")
    assert plan.facts is not None
    assert (plan.facts.attentions, plan.facts.decomposable) == (TOY.depth, 0)
