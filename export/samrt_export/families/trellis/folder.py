"""The official folder of TRELLIS-image-large: pipeline.json, and a .json and a .safetensors file of each part under ckpts/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samrt_engines.errors import CheckpointError
from samrt_export.checkpoint import State
from samrt_export.checkpoint import read_state as read_file
from samrt_export.families.sam3d.folder import same_numbers
from samrt_export.families.trellis.config import CONFIGS

PIPELINE = "pipeline.json"
PARTS = {
    "sparse_structure_flow_model": ("ss_generator.backbone.", "SparseStructureFlowModel"),
    "slat_flow_model": ("slat_generator.backbone.", "SLatFlowModel"),
    "sparse_structure_decoder": ("ss_decoder.", "SparseStructureDecoder"),
    "slat_decoder_gs": ("slat_decoder_gs.", "SLatGaussianDecoder"),
    "slat_decoder_mesh": ("slat_decoder_mesh.", "SLatMeshDecoder"),
}
"""Name in pipeline.json -> where its parameters are in our module, and the class that its .json names."""
ENCODER = "image_encoder."
ENCODER_FILES = ("dinov2_vitl14_reg4_pretrain.pth", "dinov2_vitl14_reg4_pretrain.safetensors")
ENCODER_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"
DOWNLOAD = "hf download microsoft/TRELLIS-image-large --local-dir FOLDER"


def read_state(path: Path) -> State:
    """All parts from the folder, or a file of all of them.

    The image encoder, which the pipeline takes from elsewhere, is looked for in the folder under its official name.
    Raises CheckpointError naming the file that is missing, damaged, of another part or changed.
    """
    if not path.is_dir():
        return read_file(path)
    pipeline = read_json(path / PIPELINE).get("args")
    pipeline = pipeline if isinstance(pipeline, dict) else {}
    _check_statistics(pipeline.get("slat_normalization"))
    named = pipeline.get("models")
    state: State = {}
    for part, (prefix, kind) in PARTS.items():
        stem = named.get(part) if isinstance(named, dict) else None
        if not isinstance(stem, str) or Path(stem).is_absolute() or ".." in Path(stem).parts:
            raise CheckpointError(
                f"{PIPELINE} does not name {part}", got=repr(stem), expected="a file within the folder", fix=DOWNLOAD
            )
        weights = _read_part(path / stem, part, kind)
        state |= {prefix + name: value for name, value in weights.items()}
    encoder = next((path / name for name in ENCODER_FILES if (path / name).is_file()), None)
    if encoder is None:
        raise CheckpointError(
            f"{ENCODER_FILES[0]} is missing: TRELLIS takes its image encoder from elsewhere",
            got=f"no such file in {path}",
            expected=" or ".join(ENCODER_FILES),
            fix=f"download {ENCODER_URL} into the folder",
        )
    return state | {ENCODER + name: value for name, value in read_file(encoder).items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError when it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.name} is missing",
            got=f"no such file in {path.parent}",
            expected="the official folder",
            fix=DOWNLOAD,
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read", got=" ".join(str(error).split())[:200], expected="JSON"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is not a configuration", got=type(content).__name__, expected="an object")
    return content


def _check_statistics(given: object) -> None:
    """The statistics of the latent are part of a model's numbers: others would be another model."""
    official = CONFIGS["trellis-image-large"]
    for name, known in (("mean", official.latent_mean), ("std", official.latent_std)):
        values = given.get(name, known) if isinstance(given, dict) else known
        if not same_numbers(values, known):
            raise CheckpointError(
                f"the {name} of latents in {PIPELINE} is not that of trellis-image-large",
                got=str(values)[:120],
                expected=str(list(known)),
            )


def _read_part(stem: Path, part: str, kind: str) -> State:
    """The weights of a part, after a look at what its .json says of it."""
    settings = read_json(stem.with_name(stem.name + ".json"))
    if str(settings.get("name", "")).removeprefix("Elastic") != kind:
        raise CheckpointError(
            f"{stem.name}.json does not describe {part}", got=repr(settings.get("name")), expected=kind, fix=DOWNLOAD
        )
    file = stem.with_name(stem.name + ".safetensors")
    if not file.is_file():
        raise CheckpointError(
            f"{file.name} is missing",
            got=f"no such file in {file.parent}",
            expected="the official folder",
            fix=DOWNLOAD,
        )
    weights = read_file(file)
    arguments = settings.get("args", {})
    representation = arguments.get("representation_config", {}) if isinstance(arguments, dict) else {}
    count, offsets = representation.get("num_gaussians"), weights.get("offset_perturbation")
    if offsets is not None and count is not None and count != offsets.shape[0]:
        raise CheckpointError(
            f"num_gaussians of {part} was changed",
            got=f"{count} in {stem.name}.json",
            expected=f"{offsets.shape[0]}, as in {file.name}: it cannot be chosen",
        )
    return weights
