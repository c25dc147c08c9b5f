"""Checkpoint files: what loads, and what is refused with which words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from samrt import CheckpointError, HubError
from samrt_export import hub
from samrt_export.checkpoint import load_checkpoint, read_state
from samrt_export.families.sam2 import FAMILY, build


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    module = build("nano")
    FAMILY.randomize(module, 1)
    return {key: value.clone() for key, value in module.state_dict().items()}


def load(path: Path, model: str = "nano") -> dict[str, torch.Tensor]:
    module = build(model)
    load_checkpoint(module, path, FAMILY, model)
    return module.state_dict()


@pytest.mark.parametrize("nested", ["model", "state_dict", None])
def test_torch_files_load(tmp_path: Path, state: dict[str, torch.Tensor], nested: str | None) -> None:
    path = tmp_path / "weights.pt"
    torch.save({nested: state} if nested else state, path)
    assert all(torch.equal(value, state[key]) for key, value in load(path).items())


def test_half_precision_storage_becomes_fp32(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({key: value.half() for key, value in state.items()}, path)
    for key, value in load(path).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].half().float())


def refused(path: Path, match: str, model: str = "nano") -> None:
    module = build(model)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(module, path, FAMILY, model)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_another_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": build("sam2.1-hiera-small").state_dict()}, path)
    refused(path, r"does not fit nano.*looks like sam2\.1-hiera-small")


def test_the_other_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": build("sam2-hiera-tiny").state_dict()}, path)
    refused(path, r"3 missing: no_obj_embed_spatial.*looks like sam2-hiera-tiny", "sam2.1-hiera-tiny")


def test_another_family_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"backbone.layer.weight": torch.zeros(3)}, path)
    refused(path, "looks like no model samrt knows")


def test_missing_left_over_and_broken_values(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.pt"
    torch.save({key: value for key, value in state.items() if key != "no_mem_embed"}, path)
    refused(path, "1 missing: no_mem_embed.*nano all the same")
    torch.save(state | {"extra.weight": torch.zeros(1)}, path)
    refused(path, "1 left over: extra.weight")
    torch.save(state | {"no_mem_embed": torch.full((1, 1, 128), float("nan"))}, path)
    refused(path, "not numbers.*no_mem_embed")
    torch.save(state | {"epoch": 3}, path)
    refused(path, "more than parameters.*epoch")
    torch.save([1, 2], path)
    refused(path, "is not a checkpoint")


def test_damaged_files(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:100_000])
    refused(path, "is damaged")
    path.write_bytes(b"")
    refused(path, "an empty file")
    path.write_text("not a checkpoint at all")
    refused(path, "is not a checkpoint")
    good = tmp_path / "good.safetensors"
    save_file(state, good)
    good.write_bytes(good.read_bytes()[:5000])
    refused(good, "is damaged")
    refused(tmp_path / "absent.pt", "no checkpoint at")
    refused(tmp_path, "no checkpoint at")


class Bomb:
    """A pickle that would write a file when loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_unexecuted(tmp_path: Path) -> None:
    path, target = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save({"model": Bomb(target)}, path)
    with pytest.raises(
        CheckpointError, match=r"would run code when loaded, and was not \| got: a call of [\w.]+ \| expected"
    ):
        read_state(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "no such model on the hub"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("RemoteEntryNotFoundError", "has no model.safetensors"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: str, words: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error)

    def fail(**_: Any) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(HubError, match=words):
        hub.download("facebook/sam2.1-hiera-tiny")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a hub that refuses every connection, and no waiting for it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    def wait(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s for a hub that is not there")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_http.time, "sleep", wait)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_offline_is_told_without_asking_again(hub_cache: Path) -> None:
    with pytest.raises(HubError, match=r"cannot be reached, .* \| got: a/b \| fix: .*--checkpoint FILE"):
        hub.download("a/b")


def test_offline_what_is_in_the_cache_is_taken(hub_cache: Path) -> None:
    """Also the second of the names."""
    commit = "0" * 40
    (hub_cache / "models--a--b" / "refs").mkdir(parents=True)
    (hub_cache / "models--a--b" / "refs" / "main").write_text(commit)
    (hub_cache / "models--a--b" / "snapshots" / commit).mkdir(parents=True)
    path = hub_cache / "models--a--b" / "snapshots" / commit / "model.pt"
    path.write_bytes(b"weights")
    assert hub.download("a/b") == path
    with pytest.raises(HubError, match=r"cannot be reached, .* \| got: a/c"):
        hub.download("a/c")


@pytest.mark.parametrize(
    ("error", "reached"),
    [
        ("ConnectError", False),
        ("ConnectTimeout", False),
        ("ProxyError", False),
        ("ReadTimeout", True),
        ("RemoteProtocolError", True),
    ],
)
def test_a_slow_hub_is_left_to_its_own_patience(monkeypatch: pytest.MonkeyPatch, error: str, reached: bool) -> None:
    """No connection is told at once; a connection without an answer is worth the client's retries."""
    import huggingface_hub

    http = pytest.importorskip(huggingface_hub.errors.HfHubHTTPError.__bases__[0].__module__)
    asked: list[float] = []

    def fail(url: str, *, timeout: float) -> None:
        asked.append(timeout)
        raise getattr(http, error)("no")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: "downloaded")
    if reached:
        assert hub.download("a/b") == Path("downloaded")
    else:
        with pytest.raises(HubError, match="cannot be reached"):
            hub.download("a/b")
    assert asked == [5.0]
