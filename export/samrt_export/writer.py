"""Writes a bundle so that it is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samrt.manifest import MANIFEST_NAME, parse_manifest
from samrt_engines.errors import BundleError


@contextmanager
def bundle_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name when the block ends well, and vanishes when it does not.

    An existing bundle stays in place until then, and is replaced only with ``overwrite``. A folder that is not a bundle is
    never replaced. Raises BundleError.
    """
    _check_replaceable(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise BundleError(f"cannot write a bundle at {out}", got=error.strerror or str(error)) from error
    try:
        yield staging
        staging.chmod(0o755)
        _fsync_tree(staging)
        _replace(staging, out, overwrite=overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_file(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Write one file and return the manifest's record of it."""
    (folder / name).write_bytes(content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def record_file(path: Path) -> dict[str, Any]:
    """The manifest's record of a file that is already in the bundle's folder."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "size": path.stat().st_size}


def write_manifest(folder: Path, document: dict[str, Any]) -> None:
    """Write manifest.json after checking it with the runtime's own reader."""
    parse_manifest(document)
    (folder / MANIFEST_NAME).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _check_replaceable(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise BundleError(
            f"cannot write a bundle at {out}", got="something else is there", expected="a new or an empty folder"
        )
    if not overwrite:
        raise BundleError(f"there is a bundle at {out} already", fix="choose another folder, or pass --overwrite")


def _replace(staging: Path, out: Path, *, overwrite: bool) -> None:
    """Move ``staging`` to ``out``. What was there is moved aside first: a folder cannot be renamed onto a full one."""
    _check_replaceable(out, overwrite=overwrite)
    if not out.exists() or not any(out.iterdir()):
        os.replace(staging, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".replaced", dir=out.parent))
    os.replace(out, aside)
    os.replace(staging, out)
    shutil.rmtree(aside, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    """Have the content on disk before the name: a power cut must not leave a named bundle of empty files."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
