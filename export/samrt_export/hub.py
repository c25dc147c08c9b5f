"""Checkpoints from the Hugging Face hub."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path

from samrt_engines.errors import HubError, MissingExtraError

FILES = ("model.safetensors", "model.pt")
"""What checkpoints are called there; the first that a repository has is taken."""

_OFFLINE = "download the file elsewhere and pass it: --checkpoint FILE"
_CONNECT_S = 5.0


def download(hub_id: str) -> Path:
    """Fetch a model's checkpoint (or find it in the local cache).

    Raises HubError when offline, when the model is gated, or when id or file do not exist.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingExtraError.for_package(
            "huggingface_hub", extra="export", purpose="to fetch checkpoints from the hub"
        ) from error
    try:
        if not _reachable(hub_id):
            return _cached(hub_id)
        for file in FILES:
            with suppress(errors.RemoteEntryNotFoundError):
                return Path(huggingface_hub.hf_hub_download(repo_id=hub_id, filename=file))
    except errors.GatedRepoError as error:
        raise HubError(
            f"{hub_id} is gated",
            expected="an account that was granted access",
            fix=f"ask at https://huggingface.co/{hub_id}, then: hf auth login",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise HubError(
            "no such model on the hub", got=repr(hub_id), expected="an id such as facebook/sam2.1-hiera-tiny"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_reached(hub_id) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise HubError(
            f"the hub did not give {hub_id}", got=" ".join(str(error).split())[:200], fix=_OFFLINE
        ) from error
    raise HubError(f"{hub_id} has no {' and no '.join(FILES)}", fix=_OFFLINE)


def _reachable(hub_id: str) -> bool:
    """Ask for a file once. False where no connection to the hub comes about, and only then.

    Without that, huggingface_hub (2.4) asks six times, with 23 seconds of pauses, for what is not in its cache. A slow hub,
    or one that answers with errors, is worth that: a connection is.
    """
    import huggingface_hub
    from huggingface_hub import errors

    http = import_module(errors.HfHubHTTPError.__bases__[0].__module__)  # httpx2; httpx in earlier versions
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(hub_id, FILES[0]), timeout=_CONNECT_S)
    except (http.ConnectError, http.ConnectTimeout, http.ProxyError, errors.OfflineModeIsEnabled):
        return False
    except http.HTTPError:
        return True  # an answer, or a connection over which none came; the download finds out what that means
    return True


def _cached(hub_id: str) -> Path:
    """The checkpoint in the local cache. Raises HubError where it has none."""
    import huggingface_hub

    for file in FILES:
        path = huggingface_hub.try_to_load_from_cache(hub_id, file)
        if isinstance(path, str):
            return Path(path)
    raise _not_reached(hub_id)


def _not_reached(hub_id: str) -> HubError:
    return HubError("the hub cannot be reached, and the file is not in the local cache", got=hub_id, fix=_OFFLINE)
