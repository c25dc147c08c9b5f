"""Files that other processes may be writing or reading: whole or absent, and one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from samrt_engines.errors import PlanError

_LOCK_POLL_SECONDS = 0.01


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that under its name there is, at any moment, all of it or what was there before.

    Raises PlanError when the disk is full or the folder cannot be written; then nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PlanError(
            f"{path.name} cannot be written",
            got=f"{error.strerror} in {path.parent}",
            fix=f"free {len(data) / 2**20:.0f} MiB there" if full else None,
        ) from error


def read_regular(path: Path) -> bytes | None:
    """The bytes of a file; None when there is none. Raises PlanError for a link and for what is not a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        link = error.errno == errno.ELOOP
        raise PlanError(f"{path.name} cannot be read", got="a link" if link else str(error.strerror)) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PlanError(f"{path.name} cannot be read", got="not a regular file")
        return file.read()


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left. Only while holding its lock: a living writer's file looks the same."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Be the only one, among all processes and threads, that is inside for this path.

    path: of the lock file, which is there only while somebody is inside
    waiting: called once when somebody else is inside, before waiting for them

    The operating system holds the lock and drops it when its process dies, however that happens.
    """
    descriptor = _acquire(path, waiting)
    try:
        yield
    finally:
        if sys.platform != "win32":  # Windows lets nobody remove an open file
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if sys.platform == "win32":
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _acquire(path: Path, waiting: Callable[[], None] | None) -> int:
    """Open and lock the file that is under the path at this moment."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise PlanError(f"{path.name} cannot be written", got=f"{error.strerror} in {path.parent}") from error
        try:
            while not _try_lock(descriptor):
                if waiting is not None:
                    waiting()
                    waiting = None
                time.sleep(_LOCK_POLL_SECONDS)
            if _is_under(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever was inside has removed it: what we locked is no file anybody else will open


def _is_under(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
