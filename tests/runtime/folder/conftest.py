"""Pictures to make jobs of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

PictureWriter = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def write_picture() -> PictureWriter:
    """Writes a picture of a seed under any name, lossless, and returns it: write_picture(path, seed, hw=...)."""

    def write(path: Path, seed: int, hw: tuple[int, int] = (24, 32)) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        picture = PIL.Image.fromarray(coarse).resize(hw[::-1], PIL.Image.Resampling.BICUBIC)
        with path.open("wb") as file:
            picture.save(file, "PNG")
        return np.asarray(picture)

    return write


@pytest.fixture
def folder(tmp_path: Path, write_picture: PictureWriter) -> Path:
    """Pictures 2 and 10, one in a folder below, and what is no picture."""
    root = tmp_path / "pictures"
    for seed, name in enumerate(["10.png", "2.png", "sub/a.jpg"]):
        write_picture(root / name, seed)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_text("not looked at")
    return root
