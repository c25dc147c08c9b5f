"""Checkpoints from the Hugging Face hub."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from samrt_engines.errors import HubError, MissingExtraError

FILES = ("model.safetensors", "model.pt")
"""What checkpoints are called there; the first that a repository has is taken."""


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
    offline = "download the file elsewhere and pass it: --checkpoint FILE"
    try:
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
        raise HubError(
            "the hub cannot be reached, and the file is not in the local cache", got=hub_id, fix=offline
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise HubError(f"the hub did not give {hub_id}", got=" ".join(str(error).split())[:200], fix=offline) from error
    raise HubError(f"{hub_id} has no {' and no '.join(FILES)}", fix=offline)
