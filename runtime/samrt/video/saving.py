"""A tracker's state in a file: an .npz without pickles. What is restored gives the same masks, bit by bit."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from samrt.features import Features
from samrt.numbers import VideoNumbers
from samrt.video.bank import MemoryBank
from samrt.video.outcome import Outcome
from samrt.video.requests import Request
from samrt.video.state import LastFrame, TrackerState
from samrt_engines.errors import InputError, PromptError
from samrt_engines.tensors import Array

_FORMAT, _VERSION = "samrt-tracker", 2


def write_state(path: str | os.PathLike[str], state: TrackerState, model_digest: str, options: dict[str, Any]) -> None:
    """Write a state under a temporary name, and rename it when it is whole.

    options: the tracker's, as JSON takes them
    Raises OSError.
    """
    last = state.last
    document: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model_digest,
        "options": options,
        "obj_ids": state.obj_ids,
        "next_index": state.next_index,
        "hw": state.hw,
        "pending": list(state.pending),
        "last": None if last is None else {"index": last.index, "tracked": last.tracked, "requests": [*last.requests]},
    }
    arrays = state.bank.to_arrays() | _request_arrays("pending", state.pending)
    if last is not None:
        arrays |= _request_arrays("last_request", last.requests)
        if last.image is not None:
            arrays["last_image"] = last.image
        if last.features is not None:
            document["last"]["features"] = {
                "image_hw": last.features.image_hw,
                "provider": last.features.provider,
                "precision": last.features.precision,
            }
            arrays |= {f"feature/{name}": tensor for name, tensor in last.features.tensors.items()}
        if last.outcome is not None:
            arrays |= {f"outcome/{one.name}": getattr(last.outcome, one.name) for one in fields(Outcome)}
    arrays["state"] = np.array(json.dumps(document))
    _write(Path(path), arrays)


def read_state(
    path: str | os.PathLike[str], model_digest: str, numbers: VideoNumbers
) -> tuple[TrackerState, dict[str, Any]]:
    """Read what `write_state` wrote: the state, and the tracker's options.

    Raises InputError for a file that is not a whole state, or one of another model.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        document = json.loads(str(arrays["state"]))
        if (document["format"], document["version"]) != (_FORMAT, _VERSION):
            _refuse(path, f"{document['format']}, version {document['version']}")
        if document["model"] == model_digest:
            return _state(document, arrays, model_digest, numbers), document["options"]
    except PromptError as error:
        _refuse(path, str(error))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        _refuse(path, str(error.strerror))
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        _refuse(path, f"a damaged file: {type(error).__name__}: {error}")
    raise InputError(
        f"cannot restore {os.fspath(path)}: it is of another model",
        got=f"bundle {document['model'][:12]}",
        expected=f"bundle {model_digest[:12]}",
        fix="load the bundle that tracked when it was saved",
    )


def _state(
    document: Mapping[str, Any], arrays: Mapping[str, Array], model_digest: str, numbers: VideoNumbers
) -> TrackerState:
    most = document["options"]["max_conditioning_frames"]
    bank = MemoryBank.from_arrays(numbers, arrays, most_conditioning=most)
    state = TrackerState(
        bank,
        [int(obj_id) for obj_id in document["obj_ids"]],
        _requests("pending", document["pending"], arrays),
        _last(document["last"], arrays, model_digest),
        int(document["next_index"]),
        None if document["hw"] is None else _pair(document["hw"]),
    )
    count = len(state.obj_ids)
    outcome = None if state.last is None else state.last.outcome
    if len(bank) != count or (outcome is not None and len(outcome) != count):
        raise ValueError(f"{count} objects, {len(bank)} in the bank")
    return state


def _last(document: Mapping[str, Any] | None, arrays: Mapping[str, Array], model_digest: str) -> LastFrame | None:
    if document is None:
        return None
    features = outcome = None
    if "features" in document:
        about = document["features"]
        tensors = {name.removeprefix("feature/"): one for name, one in arrays.items() if name.startswith("feature/")}
        image_hw = tuple(_pair(hw) for hw in about["image_hw"])
        features = Features(tensors, image_hw, model_digest, about["provider"], about["precision"])
    if "outcome/logits" in arrays:
        outcome = Outcome(**{one.name: arrays[f"outcome/{one.name}"] for one in fields(Outcome)})
    requests = _requests("last_request", document["requests"], arrays)
    tracked = [bool(one) for one in document["tracked"]]
    return LastFrame(int(document["index"]), arrays.get("last_image"), features, outcome, tracked, requests)


def _pair(hw: Any) -> tuple[int, int]:
    height, width = hw
    return int(height), int(width)


def _request_arrays(prefix: str, requests: Mapping[int, Request]) -> dict[str, Array]:
    return {
        f"{prefix}/{obj_id}/{name}": array
        for obj_id, request in requests.items()
        for name, array in request.to_arrays().items()
    }


def _requests(prefix: str, obj_ids: list[int], arrays: Mapping[str, Array]) -> dict[int, Request]:
    requests = {}
    for obj_id in obj_ids:
        start = f"{prefix}/{obj_id}/"
        found = {name.removeprefix(start): one for name, one in arrays.items() if name.startswith(start)}
        requests[int(obj_id)] = Request.from_arrays(found)
    return requests


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse(path: str | os.PathLike[str], got: str) -> NoReturn:
    raise InputError(
        f"cannot restore {os.fspath(path)}", got=got, expected="a file that VideoTracker.save wrote"
    ) from None
