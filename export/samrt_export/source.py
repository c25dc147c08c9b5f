"""Where weights come from, on the way out (export) and on the way back (verify)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from samrt.manifest import Manifest
from samrt_engines.errors import CheckpointError
from samrt_export.checkpoint import load_checkpoint, sha256_of
from samrt_export.hub import download
from samrt_export.registry import Family, GraphSpec, find


@dataclass(frozen=True)
class Weights:
    """A loaded model and what the manifest says about its weights: kind is "file" or "random"."""

    module: nn.Module
    kind: str
    sha256: str | None
    seed: int | None


def load_weights(
    family: Family,
    model: str,
    *,
    checkpoint: Path | None = None,
    hub: str | None = None,
    random_seed: int | None = None,
) -> Weights:
    """Build a model and give it weights from exactly one source; with none named, the checkpoint samrt ships for it.

    Raises CheckpointError when no source or several are named, or when the file does not fit; HubError.
    """
    named = sum(source is not None for source in (checkpoint, hub, random_seed))
    shipped = family.shipped_checkpoint(model)
    options = "--checkpoint FILE, --hub ID or --random-weights SEED"
    if named > 1:
        raise CheckpointError("several sources of weights", got=f"{named} of them", expected=f"one of {options}")
    if named == 0 and shipped is None:
        hub_id = family.hub_id(model)
        raise CheckpointError(
            f"no weights for {model}",
            expected=f"one of {options}",
            fix=f"samrt export {model} {_usual_source(family, hub_id)}",
        )
    if family.open_file is not None and random_seed is None:
        file = _file(family, model, checkpoint, hub)
        return Weights(family.open_file(file, model).eval(), "file", sha256_of(file), None)
    module = family.build(model).eval()
    module.requires_grad_(False)
    if random_seed is not None:
        family.randomize(module, random_seed)
        return Weights(module, "random", None, random_seed)
    loaded = load_checkpoint(module, _file(family, model, checkpoint, hub), family, model)
    return Weights(module, "file", loaded.sha256, None)


def _usual_source(family: Family, hub_id: str | None) -> str:
    """Where most people have the weights from, as an option."""
    if hub_id:
        return f"--hub {hub_id}"
    return "--random-weights 0" if family.open_file is None else "--checkpoint FILE.onnx"


def _file(family: Family, model: str, checkpoint: Path | None, hub: str | None) -> Path:
    """The file of the source that was named, or the shipped one."""
    path = download(hub) if hub is not None else checkpoint or family.shipped_checkpoint(model)
    assert path is not None
    return path


def reference_graphs(manifest: Manifest, checkpoint: Path | None = None) -> tuple[GraphSpec, ...]:
    """The PyTorch modules a bundle was made from, in fp32, ready to compare with.

    Random weights are drawn again from their seed and shipped checkpoints are found; anything else has to be passed.
    Raises CheckpointError when it is missing or is not the file the bundle was made from; ExportError for a model this
    version does not know.
    """
    source = manifest.source
    family = find(source.model)
    if source.checkpoint_kind == "random":
        if checkpoint is not None:
            raise CheckpointError(
                f"{source.model} was made without a checkpoint",
                got=f"{checkpoint}",
                expected=f"no checkpoint: its weights are random ones, drawn again from seed {source.seed}",
                fix="samrt verify DIR",
            )
        weights = load_weights(family, source.model, random_seed=source.seed)
    else:
        path = checkpoint or family.shipped_checkpoint(source.model)
        if path is None:
            raise CheckpointError(
                "the checkpoint this bundle was made from is needed",
                expected=f"the file with sha256 {source.checkpoint_sha256}",
                fix="samrt verify DIR --checkpoint FILE",
            )
        weights = load_weights(family, source.model, checkpoint=path)
        if weights.sha256 != source.checkpoint_sha256:
            raise CheckpointError(
                f"{path.name} is not the checkpoint this bundle was made from",
                got=f"sha256 {weights.sha256}",
                expected=f"sha256 {source.checkpoint_sha256}",
            )
    return family.graphs(weights.module, source.model)
