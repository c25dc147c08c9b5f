"""The official folder of SAM 3D Objects: what is written in its layout is read back, and what is wrong with it is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from samrt import CheckpointError
from samrt_export.checkpoint import load_checkpoint
from samrt_export.families.sam3d import CONFIGS, FAMILY, Sam3d, build
from samrt_export.families.sam3d.folder import ENCODERS, POINT_PATCH, read_state
from samrt_export.source import load_weights

MODEL = "sam3d-objects-toy"
GENERATORS = ("ss_generator", "slat_generator")
DECODERS = ("ss_decoder", "slat_decoder_gs", "slat_decoder_gs_4", "slat_decoder_mesh")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def toy() -> Sam3d:
    """The toy with live random weights. Read only."""
    module = load_weights(FAMILY, MODEL, random_seed=6).module
    assert isinstance(module, Sam3d)
    return module


def official_file(state: State, part: str) -> State:
    """A part's parameters under the names of its file; the encoders are copies, as they are there."""
    inside = {
        name.removeprefix(part + "."): value.clone() for name, value in state.items() if name.startswith(part + ".")
    }
    if part in DECODERS:
        return inside
    prefixes = {
        "backbone.": "_base_models.generator.reverse_fn.backbone.",
        "condition_embedder.": "_base_models.condition_embedder.",
    }
    return {
        official + name.removeprefix(ours): value
        for name, value in inside.items()
        for ours, official in prefixes.items()
        if name.startswith(ours)
    }


def write_folder(folder: Path, state: State) -> None:
    """The official layout, cut down to what a reader may look at."""
    folder.mkdir(parents=True)
    pipeline: dict[str, Any] = {
        "_target_": "some.package.that.is.Not",
        "dtype": "float16",
        "slat_mean": list(CONFIGS["sam3d-objects"].latent_mean),
        "slat_std": list(CONFIGS["sam3d-objects"].latent_std),
    }
    for part in (*GENERATORS, *DECODERS):
        pipeline |= {f"{part}_config_path": f"{part}.yaml", f"{part}_ckpt_path": f"{part}.ckpt"}
        content = official_file(state, part)
        nested = {"state_dict": content, "epoch": 7} if part in GENERATORS else content
        torch.save(nested, folder / f"{part}.ckpt")
        settings: dict[str, Any] = {"_target_": "some.package.that.is.Not", "resolution": 64}
        if "_gs" in part:
            settings["representation_config"] = {"num_gaussians": 4 if part.endswith("_4") else 32}
        (folder / f"{part}.yaml").write_text(yaml.safe_dump(settings))
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))


@pytest.fixture
def folder(toy: Sam3d, tmp_path: Path) -> Path:
    """A folder that may be spoilt."""
    write_folder(tmp_path / "checkpoints", dict(toy.state_dict()))
    return tmp_path / "checkpoints"


def load(path: Path) -> Sam3d:
    module = build(MODEL).requires_grad_(False)
    load_checkpoint(module, path, FAMILY, MODEL)
    return module


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a YAML file."""
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def assert_same(ours: Sam3d, theirs: Sam3d) -> None:
    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_the_official_folder_is_read(toy: Sam3d, folder: Path) -> None:
    loaded = load(folder)
    assert_same(loaded, toy)
    assert len({id(encoder.backbone) for encoder in loaded.encoders().values()}) == 1
    assert_same(load(folder.parent), toy)  # the folder above it does as well


def test_safetensors_and_other_names_are_read(toy: Sam3d, folder: Path) -> None:
    save_file(official_file(dict(toy.state_dict()), "ss_generator"), folder / "ss_generator.safetensors")
    (folder / "ss_generator.ckpt").unlink()
    (folder / "ss_decoder.ckpt").rename(folder / "decoder of structure.ckpt")
    edit(folder / "pipeline.yaml", lambda content: content.update(ss_decoder_ckpt_path="a/decoder of structure.ckpt"))
    assert_same(load(folder), toy)


def test_equal_encoders_are_read_once(folder: Path) -> None:
    state = read_state(folder)
    for name in (name.removeprefix(ENCODERS[0]) for name in state if name.startswith(ENCODERS[0])):
        assert len({state[prefix + name].data_ptr() for prefix in ENCODERS}) == 1


@pytest.mark.parametrize("changed", [(1,), (2, 3), (1, 2, 3)])
def test_encoders_that_differ_stay_apart(toy: Sam3d, tmp_path: Path, changed: tuple[int, ...]) -> None:
    state = dict(toy.state_dict())
    for index in changed:  # each by one bit of another value
        name = ENCODERS[index] + "blocks.1.mlp.fc2.bias"
        state[name] = state[name] + torch.nn.functional.one_hot(torch.tensor(index), 64)
    write_folder(tmp_path / "weights", state)
    loaded = load(tmp_path / "weights")
    assert len({id(encoder.backbone) for encoder in loaded.encoders().values()}) == 1 + len(changed)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name
    dino = next(spec for spec in FAMILY.graphs(loaded, MODEL) if spec.name == "dino")
    pixels = torch.from_numpy(dino.sample({}, 0)["pixels"])
    with torch.inference_mode():
        ours, plain = dino.module(pixels), FAMILY.graphs(toy, MODEL)[0].module(pixels)
    differs = [(a[view] - b[view]).abs().max() > 1e-3 for a, b in zip(ours, plain, strict=True) for view in range(4)]
    wanted = [role in changed for stage in (0, 2) for role in (stage, stage, stage + 1, stage + 1)]
    assert differs == wanted


def test_a_folder_without_the_small_decoder_makes_a_model_without(toy: Sam3d, folder: Path) -> None:
    (folder / "slat_decoder_gs_4.ckpt").unlink()
    (folder / "slat_decoder_gs_4.yaml").unlink()
    loaded = load(folder)
    names = [spec.name for spec in FAMILY.graphs(loaded, MODEL)]
    assert "slat_gs" in names
    assert "slat_gs_4" not in names
    assert "slat_gs_4" in [spec.name for spec in FAMILY.graphs(toy, MODEL)]


def test_points_are_told_by_shape_whatever_their_names(toy: Sam3d, folder: Path) -> None:
    official = official_file(dict(toy.state_dict()), "ss_generator")
    inside = "_base_models.condition_embedder.module_list.2."
    others = {
        "point_proj.weight": "xyz.weight",
        "point_proj.bias": "xyz.bias",
        "invalid_xyz_token": "token_of_invalid",
        "pos_embed_window": "inner",
        "pos_embed": "outer",
    }
    for ours, theirs in others.items():
        official[inside + theirs] = official.pop(inside + ours)
    official[inside + "inner"] = official[inside + "inner"][0]
    official[inside + "outer"] = official[inside + "outer"].flatten(2).transpose(1, 2).contiguous()
    official[inside + "dropped_token"] = torch.ones(32)  # of training alone
    official["_base_models.generator.reverse_fn.backbone.latent_mapping.shape.pos_emb"].unsqueeze_(0)
    torch.save({"state_dict": official}, folder / "ss_generator.ckpt")
    assert_same(load(folder), toy)
    official[inside + "surprise"] = torch.ones(32)
    torch.save({"state_dict": official}, folder / "ss_generator.ckpt")
    with pytest.raises(CheckpointError, match=f"left over: {POINT_PATCH}surprise"):
        load(folder)


def test_one_file_of_all_may_hold_one_encoder(toy: Sam3d, tmp_path: Path) -> None:
    state = {name: value for name, value in toy.state_dict().items() if not name.startswith(ENCODERS[1:])}
    save_file(state, tmp_path / "all.safetensors")
    assert_same(load(tmp_path / "all.safetensors"), toy)


@pytest.mark.parametrize(
    "name", ["pipeline.yaml", "ss_generator.yaml", "slat_decoder_mesh.yaml", "slat_generator.ckpt"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{name} is missing \| got: no such file .* fix: download the whole folder"
    ):
        read_state(folder)


def test_a_file_of_another_part_is_named(folder: Path) -> None:
    (folder / "slat_generator.ckpt").write_bytes((folder / "ss_generator.ckpt").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"slat_generator\.ckpt does not hold slat_generator.*weights of ss_generator"
    ):
        read_state(folder)
    (folder / "ss_decoder.ckpt").write_bytes((folder / "slat_decoder_mesh.ckpt").read_bytes())
    (folder / "slat_generator.ckpt").unlink()
    edit(folder / "pipeline.yaml", lambda content: content.update(slat_generator_ckpt_path="ss_decoder.ckpt"))
    with pytest.raises(
        CheckpointError, match=r"ss_decoder\.ckpt does not hold slat_generator.*weights of slat_decoder_mesh"
    ):
        read_state(folder)


def test_a_changed_number_of_gaussians_is_refused(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["representation_config"]["num_gaussians"] = 8

    edit(folder / "slat_decoder_gs.yaml", change)
    with pytest.raises(
        CheckpointError, match=r"num_gaussians of slat_decoder_gs was changed \| got: 8 .*expected: 32.*gs_4"
    ):
        read_state(folder)


@pytest.mark.parametrize("values", [[0.5] * 8, [0.0], "what"])
def test_other_statistics_are_another_model(folder: Path, values: object) -> None:
    edit(folder / "pipeline.yaml", lambda content: content.update(slat_std=values))
    with pytest.raises(CheckpointError, match=r"slat_std in pipeline\.yaml is not that of the released model"):
        read_state(folder)


def test_yaml_is_data(folder: Path) -> None:
    target = folder / "made"
    (folder / "ss_decoder.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{target}']\n")
    with pytest.raises(CheckpointError, match=r"ss_decoder\.yaml cannot be read.*YAML of plain data"):
        read_state(folder)
    assert not target.exists()
    (folder / "ss_decoder.yaml").write_text("- 1\n")
    with pytest.raises(CheckpointError, match=r"ss_decoder\.yaml is not a configuration \| got: list"):
        read_state(folder)


def test_pickles_that_run_code_are_refused(folder: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Path("x")}, folder / "ss_generator.ckpt")
    with pytest.raises(CheckpointError, match=r"ss_generator\.ckpt would run code when loaded, and was not"):
        read_state(folder)


def test_a_single_official_file_points_to_its_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"ss_generator\.ckpt is one file of several.*--checkpoint {folder}"):
        read_state(folder / "ss_generator.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_state(folder / "nothing.ckpt")


def test_paths_in_the_pipeline_cannot_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "ss_decoder.ckpt").rename(tmp_path / "elsewhere.ckpt")
    edit(folder / "pipeline.yaml", lambda content: content.update(ss_decoder_ckpt_path="../elsewhere.ckpt"))
    with pytest.raises(CheckpointError, match=r"elsewhere\.ckpt is missing"):
        read_state(folder)
