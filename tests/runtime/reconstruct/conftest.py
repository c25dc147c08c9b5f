"""The ball's bundle, written once."""

from pathlib import Path

import pytest

from .doubles import write_bundle


@pytest.fixture(scope="session")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `doubles`."""
    return write_bundle(tmp_path_factory.mktemp("reconstruct") / "ball")
