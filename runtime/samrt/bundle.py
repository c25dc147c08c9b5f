"""Opening a bundle from a folder nobody vouches for.

A bundle is bound together by the SHA-256 sums in its manifest. Every file is checked before any backend sees it: the
path stays inside the folder, nothing on the way is a link, the file is a regular one with a single name (some loaders
follow hard links to files outside), its size and its sum are the manifest's. The sum is taken of the very bytes that
are handed on, so there is no moment between check and use. There is no switch to skip any of this; hashing runs at over
1 GB/s.

The folder itself may be reached through a link: which folder to open is the caller's choice.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samrt.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileRecord,
    Form,
    Manifest,
    check_inner_path,
    read_manifest,
)
from samrt_engines.errors import BundleError, ChecksumError, ManifestError, UnsafePathError

MAX_MODEL_BYTES = (1 << 31) - 1  # protobuf's limit: a larger ONNX file cannot be handed on as bytes
_CHUNK_BYTES = 1 << 20
_COPY_FIX = "copy the bundle afresh from where it came: cp -rL SOURCE TARGET"
_EXPORT_FIX = "download or export the bundle again"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: where it is, and its checked manifest. Model files are checked when `read_model` reads them."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest, which names the sums of all other files; without its plans, which change no answer."""

    def read_model(self, form: Form) -> bytes | Path:
        """Return a checked model file: its bytes, or its path when it has external data or is over 2 GB.

        A model handed on by path is read a second time by the backend, and may name files by itself. So for these the
        whole folder must be free of links, and every file the manifest names is hashed.
        Raises BundleError for a missing file, ChecksumError, UnsafePathError.
        """
        if not form.data and form.file.size <= MAX_MODEL_BYTES:
            return _read_checked(self.folder, form.file)
        _refuse_links(self.folder)
        for record in (form.file, *form.data):
            _hash_checked(self.folder, record)
        return self.folder / form.file.file

    def read_file(self, record: FileRecord) -> bytes:
        """Return the checked bytes of any file the manifest names.

        Raises BundleError for a missing file, ChecksumError, UnsafePathError.
        """
        return _read_checked(self.folder, record)


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder and check its manifest.

    Raises BundleError when there is no such folder, ManifestError, UnsafePathError.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(
            "cannot open the bundle",
            got=f"{folder} is not a folder" if folder.exists() else f"no such folder: {folder}",
            expected="the folder that `samrt export` wrote",
            fix=f"samrt export MODEL -o {folder}",
        )
    try:
        with _open_inner(folder, MANIFEST_NAME) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > MAX_MANIFEST_BYTES:
                raise ManifestError(
                    f"{folder / MANIFEST_NAME} is too large",
                    got=f"{size} bytes",
                    expected=f"at most {MAX_MANIFEST_BYTES}",
                    fix=_EXPORT_FIX,
                )
            text = _read(descriptor, size)
    except FileNotFoundError:
        raise ManifestError(
            "cannot open the bundle",
            got=f"no {MANIFEST_NAME} in {folder}",
            expected="a folder that `samrt export` finished writing",
            fix=f"samrt export MODEL -o {folder}",
        ) from None
    return Bundle(folder, read_manifest(text), _identity(text))


def _identity(text: bytes) -> str:
    document = {key: value for key, value in json.loads(text).items() if key != "plans"}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_checked(folder: Path, record: FileRecord) -> bytes:
    with _open_record(folder, record) as descriptor:
        content = _read(descriptor, record.size)
        _compare(folder, record, len(content), hashlib.sha256(content).hexdigest())
        return content


def _hash_checked(folder: Path, record: FileRecord) -> None:
    with _open_record(folder, record) as descriptor:
        digest, size = hashlib.sha256(), 0
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        _compare(folder, record, size, digest.hexdigest())


def _compare(folder: Path, record: FileRecord, size: int, sha256: str) -> None:
    if (size, sha256) != (record.size, record.sha256):
        raise ChecksumError(
            f"{folder / record.file} differs from the manifest",
            got=f"{size} bytes, sha256 {sha256}",
            expected=f"{record.size} bytes, sha256 {record.sha256}",
            fix=_EXPORT_FIX,
        )


@contextmanager
def _open_record(folder: Path, record: FileRecord) -> Iterator[int]:
    try:
        with _open_inner(folder, record.file) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != record.size:
                _compare(folder, record, size, "not computed")
            yield descriptor
    except FileNotFoundError:
        raise BundleError(
            "the bundle is incomplete",
            got=f"no file {record.file} in {folder}",
            expected=f"{record.file}, {record.size} bytes, as {MANIFEST_NAME} says",
            fix=_EXPORT_FIX,
        ) from None


@contextmanager
def _open_inner(folder: Path, path: str) -> Iterator[int]:
    """Open a file below a folder, one path component at a time, following no link. Yields a file descriptor.

    Raises UnsafePathError for a link, a hard link or anything but a regular file; FileNotFoundError.
    """
    check_inner_path(path, f"{folder}: a file of the bundle")
    *parents, name = path.split("/")
    descriptors = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for part in parents:
            descriptors.append(_open_at(descriptors[-1], part, folder / path, os.O_DIRECTORY))
        # O_NONBLOCK: opening a pipe must not wait for someone to write into it.
        descriptors.append(_open_at(descriptors[-1], name, folder / path, os.O_NONBLOCK))
        status = os.fstat(descriptors[-1])
        if not stat.S_ISREG(status.st_mode):
            _refuse(folder / path, "not a regular file")
        if status.st_nlink > 1:
            _refuse(folder / path, f"a hard link: the file has {status.st_nlink} names")
        yield descriptors[-1]
    finally:
        for descriptor in reversed(descriptors):
            os.close(descriptor)


def _open_at(parent: int, name: str, path: Path, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        # A link gives ELOOP, or ENOTDIR where a folder was wanted.
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            _refuse(path, f"'{name}' is a symbolic link")
        raise BundleError("cannot read the bundle", got=f"{path}: {error.strerror}", fix=f"ls -l {path}") from None


def _refuse_links(folder: Path) -> None:
    """Refuse a folder that holds, at any depth, anything but folders and regular files with a single name."""
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(Path(entry.path))
                elif not stat.S_ISREG(status.st_mode):
                    _refuse(Path(entry.path), "not a regular file")
                elif status.st_nlink > 1:
                    _refuse(Path(entry.path), f"a hard link: the file has {status.st_nlink} names")


def _refuse(path: Path, got: str) -> None:
    raise UnsafePathError(f"unsafe file in the bundle: {path}", got=got, expected="a plain file", fix=_COPY_FIX)


def _read(descriptor: int, size: int) -> bytes:
    """Read to the end of a file of `size` bytes; a byte more, where it has grown meanwhile, so that checks notice."""
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        chunks = []
        remaining = size + 1
        while remaining > 0 and (chunk := file.read(remaining)):
            chunks.append(chunk)
            remaining -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
