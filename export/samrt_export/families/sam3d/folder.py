"""The official folder of weights, read as plain data: YAML is parsed and never instantiated, checkpoints hold tensors alone.

::

    checkpoints/  pipeline.yaml
                  ss_generator.{yaml,ckpt}   slat_generator.{yaml,ckpt}   ss_decoder.{yaml,ckpt}
                  slat_decoder_gs.{yaml,ckpt}   slat_decoder_gs_4.{yaml,ckpt} (optional)   slat_decoder_mesh.{yaml,ckpt}

``pipeline.yaml`` may name other files; ``.safetensors`` serves as well as ``.ckpt``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samrt_engines.errors import CheckpointError, MissingExtraError
from samrt_export.checkpoint import State
from samrt_export.checkpoint import read_state as read_file
from samrt_export.families.sam3d.config import CONFIGS

PIPELINE = "pipeline.yaml"
PARTS = {
    "ss_generator": "latent_mapping.",
    "slat_generator": "input_blocks.",
    "ss_decoder": "middle_block.",
    "slat_decoder_gs": "offset_perturbation",
    "slat_decoder_gs_4": "offset_perturbation",
    "slat_decoder_mesh": "upsample.",
}
"""Part -> what a parameter's name begins with in its file and in no other's, prefixes apart."""
OPTIONAL = frozenset({"slat_decoder_gs_4"})
SUFFIXES = (".ckpt", ".safetensors", ".pt")
PREFIXES = {
    "_base_models.generator.reverse_fn.backbone.": "backbone.",
    "_base_models.condition_embedder.": "condition_embedder.",
}
"""Of the generators' files; those of decoders have none."""
ENCODERS = tuple(
    f"{stage}.condition_embedder.module_list.{kind}.backbone."
    for stage in ("ss_generator", "slat_generator")
    for kind in (0, 1)
)
POINT_PATCH = "ss_generator.condition_embedder.module_list.2."
STATISTICS = {"slat_mean": "latent_mean", "slat_std": "latent_std"}
CLOSE = 1e-6


def read_state(path: Path) -> State:
    """Official names under those of the parts, from the folder; or a file of all of them.

    Image encoders that are the same in every bit become the same tensors; a file may hold one of them instead of four.
    Raises CheckpointError naming the file that is missing, damaged, of another part or changed; MissingExtraError.
    """
    if not path.is_dir():
        return _whole(path)
    folder = path if (path / PIPELINE).is_file() or not (path / "checkpoints").is_dir() else path / "checkpoints"
    pipeline = read_yaml(folder / PIPELINE)
    _check_statistics(pipeline)
    state: State = {}
    for part in PARTS:
        file = _weights_file(folder, pipeline, part)
        if file is None:
            continue
        settings = read_yaml(_yaml_file(folder, pipeline, part))
        weights = {_renamed(name): value for name, value in read_file(file).items()}
        _check_part(part, weights, file)
        _check_gaussians(part, weights, settings, file)
        state |= {f"{part}.{name}": value for name, value in weights.items()}
        _share_equal(state)
    return _flat_positions(_point_patch_names(state))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain data. Raises CheckpointError when it is missing, damaged or asks for objects."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError.for_package("PyYAML", extra="export", purpose=f"to read {path.name}") from error
    if not path.is_file():
        raise CheckpointError(
            f"{path.name} is missing",
            got=f"no such file in {path.parent}",
            expected="the official folder: pipeline.yaml, and a .yaml and a .ckpt file of each part",
            fix="download the whole folder 'checkpoints' of facebook/sam-3d-objects",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read", got=" ".join(str(error).split())[:200], expected="YAML of plain data"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is not a configuration", got=type(content).__name__, expected="a mapping")
    return content


def _whole(path: Path) -> State:
    """One file with all parts."""
    state = read_file(path)
    if any(name.startswith(prefix) for name in state for prefix in PREFIXES):
        raise CheckpointError(
            f"{path.name} is one file of several", expected="the folder they lie in", fix=f"--checkpoint {path.parent}"
        )
    held = [prefix for prefix in ENCODERS if any(name.startswith(prefix) for name in state)]
    if held:
        first = {name.removeprefix(held[0]): value for name, value in state.items() if name.startswith(held[0])}
        for prefix in ENCODERS:
            if prefix not in held:
                state |= {prefix + name: value for name, value in first.items()}
    _share_equal(state)
    return state


def _named(pipeline: Mapping[str, Any], part: str, suffixes: tuple[str, ...]) -> str | None:
    """The file that the pipeline names for a part; a name alone, whatever folder stands before it."""
    for key, value in pipeline.items():
        owner = max((other for other in PARTS if str(key).startswith(other + "_")), key=len, default="")
        if owner == part and isinstance(value, str) and value.endswith(suffixes):
            return Path(value).name
    return None


def _weights_file(folder: Path, pipeline: Mapping[str, Any], part: str) -> Path | None:
    """The checkpoint of a part; None for an optional one that is not there."""
    named = _named(pipeline, part, SUFFIXES)
    stems = [Path(named).stem] if named else [part]
    tried = [*([named] if named else []), *(stem + suffix for stem in stems for suffix in SUFFIXES)]
    found = next((folder / name for name in tried if (folder / name).is_file()), None)
    if found is None and part not in OPTIONAL:
        raise CheckpointError(
            f"{tried[0]} is missing",
            got=f"no such file in {folder}",
            expected=" or ".join(dict.fromkeys(tried)),
            fix="download the whole folder 'checkpoints' of facebook/sam-3d-objects",
        )
    return found


def _yaml_file(folder: Path, pipeline: Mapping[str, Any], part: str) -> Path:
    return folder / (_named(pipeline, part, (".yaml", ".yml")) or f"{part}.yaml")


def _renamed(name: str) -> str:
    """A name in a generator's file -> the same under the parts of the generator."""
    for prefix, replacement in PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _check_part(part: str, weights: State, file: Path) -> None:
    """Raise CheckpointError for a file of another part."""

    def holds(mark: str) -> bool:
        return any(name.removeprefix("backbone.").startswith(mark) for name in weights)

    if not holds(PARTS[part]):
        others = [other for other, mark in PARTS.items() if other not in OPTIONAL and holds(mark)]
        raise CheckpointError(
            f"{file.name} does not hold {part}",
            got=f"the weights of {others[0]}" if others else "parameters of none of the parts",
            expected=f"parameters whose names begin with {PARTS[part]}",
            fix="download the file again, or name it in pipeline.yaml",
        )


def _check_gaussians(part: str, weights: State, settings: Mapping[str, Any], file: Path) -> None:
    """The number of Gaussians is learned: their offsets lie in the file."""
    offsets = weights.get("offset_perturbation")
    for value in _values(settings, "num_gaussians"):
        if offsets is not None and value != offsets.shape[0]:
            raise CheckpointError(
                f"num_gaussians of {part} was changed",
                got=f"{value} in {part}.yaml",
                expected=f"{offsets.shape[0]}, as in {file.name}: it cannot be chosen",
                fix="use slat_decoder_gs_4 for 4 Gaussians per voxel",
            )


def _check_statistics(pipeline: Mapping[str, Any]) -> None:
    """The statistics of the latent are part of a model's numbers: others would be another model."""
    official = CONFIGS["sam3d-objects"]
    for key, field in STATISTICS.items():
        given, known = pipeline.get(key), getattr(official, field)
        if given is None:
            continue
        if not same_numbers(given, known):
            raise CheckpointError(
                f"{key} in {PIPELINE} is not that of the released model",
                got=str(given)[:120],
                expected=str(list(known)),
            )


def same_numbers(given: object, known: Sequence[float]) -> bool:
    """Whether a file's list is these numbers, but for the digits that a text may lack."""
    return (
        isinstance(given, list | tuple)
        and len(given) == len(known)
        and all(isinstance(a, int | float) and abs(a - b) <= CLOSE for a, b in zip(given, known, strict=True))
    )


def _values(node: Any, key: str) -> Iterator[Any]:
    """All values under a key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, key)


def _share_equal(state: State) -> None:
    """Make equal tensors of the image encoders one, in place: four copies of 1.2 GB are one."""
    seen: dict[tuple[str, str], Tensor] = {}
    for prefix in ENCODERS:
        for name in [name for name in state if name.startswith(prefix)]:
            value = state[name]
            same = seen.setdefault((name.removeprefix(prefix), _digest(value)), value)
            state[name] = same


def _digest(value: Tensor) -> str:
    content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    kind = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(kind + content.tobytes()).hexdigest()


def _point_patch_names(state: State) -> State:
    """The point reader's parameters under our names: they are told by their shapes, which no two of them share.

    A vector that is neither the class token, the missing point nor a bias serves training (a dropped picture) and goes.
    """
    inside = {name.removeprefix(POINT_PATCH): value for name, value in state.items() if name.startswith(POINT_PATCH)}
    weights = [name for name, value in inside.items() if value.ndim == 2 and value.shape[1] == 3]
    if len(weights) != 1:
        return state
    projection = weights[0].removesuffix(".weight")
    dim = inside[weights[0]].shape[0]
    renamed: State = {}
    for name, value in inside.items():
        if name.startswith("blocks."):
            renamed[name] = value
        elif name.startswith(projection + "."):
            renamed["point_proj" + name.removeprefix(projection)] = value
        elif value.numel() == dim:
            if "cls" in name:
                renamed["cls_token"] = value.reshape(1, 1, dim)
            elif "invalid" in name:
                renamed["invalid_xyz_token"] = value.reshape(dim)
            elif "drop" not in name:
                renamed[name] = value
        else:
            renamed |= _position_of(name, value, dim)
    return {name: value for name, value in state.items() if not name.startswith(POINT_PATCH)} | {
        POINT_PATCH + name: value for name, value in renamed.items()
    }


def _position_of(name: str, value: Tensor, dim: int) -> State:
    """A table of positions: of windows (one row more than a square of pixels) or of the patches of a view."""
    rows = value.numel() // dim
    side = round(rows**0.5)
    if value.shape[-1] == dim and rows == round((rows - 1) ** 0.5) ** 2 + 1:
        return {"pos_embed_window": value.reshape(1, rows, dim)}
    if side * side != rows:
        return {name: value}
    if value.shape[-1] == dim:
        value = value.reshape(rows, dim).transpose(0, 1)
    return {"pos_embed": value.reshape(1, dim, side, side)}


def _flat_positions(state: State) -> State:
    """Positions of the structure flow without a leading axis of one."""
    marks = "ss_generator.backbone.latent_mapping."
    return {
        name: value.reshape(-1, value.shape[-1]) if name.startswith(marks) and name.endswith(".pos_emb") else value
        for name, value in state.items()
    }
