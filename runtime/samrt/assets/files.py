"""Files of 3D assets: written whole or not at all, opened with one clear error."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from samrt_engines.errors import InputError

FilePath = str | os.PathLike[str]


def write_atomically(path: FilePath, pieces: Iterable[bytes | memoryview]) -> None:
    """Write pieces under a hidden name beside a path, then rename. On any error nothing is left.

    Raises InputError where the place cannot be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}", got="a folder of that name", expected="a file")
    if not target.absolute().parent.is_dir():
        raise InputError(f"cannot write {target}", got=f"no folder {target.parent}", expected="a folder that exists")
    partial = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        with partial.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        os.replace(partial, target)
    except OSError as error:
        raise InputError(f"cannot write {target}", got=error.strerror, expected="space, and the right to") from error
    finally:
        partial.unlink(missing_ok=True)


def open_file(path: FilePath) -> tuple[BinaryIO, int]:
    """Open a file for reading.

    returns: the file and its size in bytes
    Raises InputError where there is no such file, it may not be read, or it is something else than a plain file.
    """
    source = Path(path)
    try:
        if not source.is_file():
            kind = "a folder" if source.is_dir() else "no such file"
            raise InputError(f"cannot read {source}", got=kind, expected="a file")
        return source.open("rb"), source.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {source}", got=error.strerror) from error
