"""Checkpoints in: safe to read, and loaded strictly or not at all.

Two containers (PyTorch's zip, read with ``weights_only=True``; safetensors) and two layouts (official parameter names;
Hugging Face names, through the family's key map). A file that does not fit names the model it looks like.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samrt_engines.errors import CheckpointError
from samrt_export.registry import Family, families

State = dict[str, Tensor]

NESTED = ("model", "state_dict")
"""Keys under which training code puts the weights."""
SHOWN = 4
"""How many parameter names a message lists."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded: the file's SHA-256 and the layout its names were in."""

    sha256: str
    layout: str  # "official" or "huggingface"


def load_checkpoint(module: nn.Module, path: Path, family: Family, model: str) -> Loaded:
    """Load a checkpoint file into a module built by ``family.build(model)``; fp16 and bf16 storage become fp32.

    Raises CheckpointError when the file cannot be read safely, or when any parameter is missing, left over, of another
    shape, or not finite. Nothing is loaded then.
    """
    state = (family.read_state or read_state)(path)
    if family.fit is not None:
        family.fit(module, state)
    layout, official = _official_state(state, module, family)
    problems = _differences(module.state_dict(), official)
    if problems:
        raise CheckpointError(
            f"{path.name} does not fit {model}",
            got="; ".join(problems),
            expected=f"exactly the parameters of {model}",
            fix=_resemblance(official, model),
        )
    broken = [name for name, value in official.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path.name} holds values that are not numbers", got=_some(broken), expected="finite weights"
        )
    module.load_state_dict({name: value.float() for name, value in official.items()}, strict=True)
    return Loaded(sha256_of(path), layout)


def read_state(path: Path) -> State:
    """Parameter name -> tensor, from a file in either container. Raises CheckpointError."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"no checkpoint at {path}", got=got, expected="a .pt, .pth or .safetensors file")
    with path.open("rb") as file:
        head = file.read(16)
    content = load_safetensors(path) if head[8:9] == b"{" else _load_torch(path, head)
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path.name} is not a checkpoint", got=type(content).__name__, expected="a dictionary of parameter tensors"
        )
    strangers = [
        str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if strangers:
        raise CheckpointError(f"{path.name} holds more than parameters", got=_some(strangers), expected="tensors only")
    return dict(content)


def _forbidden(error: pickle.UnpicklingError) -> str:
    """What a pickle asked for, without PyTorch's advice to let it."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"a call of {name[1]}" if name else _one_line(error).partition(". ")[0][:200]


def load_safetensors(path: Path) -> State:
    """A safetensors file. Raises CheckpointError when it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is damaged",
            got=_one_line(error),
            expected="a whole safetensors file",
            fix="download it again",
        ) from error


def _load_torch(path: Path, head: bytes) -> Any:
    """A PyTorch file, tensors only: a pickle that asks for anything else is refused, unexecuted."""
    if not (head.startswith(b"PK") or head[:1] == b"\x80"):
        raise CheckpointError(
            f"{path.name} is not a checkpoint",
            got=f"a file starting with {head[:8]!r}" if head else "an empty file",
            expected="a PyTorch (.pt, .pth) or safetensors file",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} would run code when loaded, and was not",
            got=_forbidden(error),
            expected="a pickle of tensors alone",
            fix="save the weights as safetensors, or as torch.save({'model': model.state_dict()}, path)",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is damaged",
            got=_one_line(error)[:200],
            expected="a whole PyTorch file",
            fix="download it again",
        ) from error


def _official_state(state: State, module: nn.Module, family: Family) -> tuple[str, State]:
    """The layout the names are in, and the state under official names: whichever reading fits the module better."""
    wanted = module.state_dict().keys()
    translated = family.official_from_hf(state)
    if len(wanted & translated.keys()) > len(wanted & state.keys()):
        return "huggingface", translated
    return "official", state


def _differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state from loading, in words; empty when it fits."""
    missing = sorted(wanted.keys() - state.keys())
    left_over = sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    lists = (("missing", missing), ("left over", left_over), ("of another shape", shapes))
    return [f"{len(names)} {what}: {_some(names)}" for what, names in lists if names]


def _resemblance(state: Mapping[str, Tensor], model: str) -> str:
    """Which registered model the names and shapes fit best."""
    best, best_share = "", 0.0
    for family in families().values():
        for name in family.models:
            with torch.device("meta"):
                wanted = family.build(name).state_dict()
            fitting = sum(key in state and state[key].shape == value.shape for key, value in wanted.items())
            share = fitting / max(len(wanted), len(state))
            if share > best_share:
                best, best_share = name, share
    if best_share < 0.5:
        return "it looks like no model samrt knows: samrt models lists them"
    if best == model:
        return f"it looks like {model} all the same, but incomplete or changed: use the file its authors published"
    return f"it looks like {best}: samrt export {best} --checkpoint ..."


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces; of a folder, the digest of its files' names and digests."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: list[str]) -> str:
    """The first few of a list."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
