"""A job's output folder, which may be left and entered again at any moment.

::

    OUT/job.json            what the job is: kind, bundle, settings. Another job is refused
    OUT/NAME.json           a picture's masks as a COCO file; written last, it is what makes a picture done
    OUT/NAME.png            the masks drawn on the picture
    OUT/NAME/0000.png       one mask each, 255 inside; in the order of the annotations
    OUT/annotations.json    one COCO file of all pictures, at the end of a folder's job
    OUT/failures.json       pictures that could not be done, with the errors; there only while there are any

Every file appears whole under its name or not at all. A picture's JSON carries the fingerprint of what it was made from: the
job, the picture's bytes, and what was asked about it. Where any of them changes, the picture is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from samrt.folder.pictures import PictureFile
from samrt_engines.errors import InputError, PlanError
from samrt_engines.files import locked, write_whole

JOB, ANNOTATIONS, FAILURES = "job.json", "annotations.json", "failures.json"
FORMATS = ("coco", "png", "masks")

_LOCK = ".job.lock"
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # as write_whole names them
_MASK = re.compile(r"[0-9]{4,}\.png")
_FORMAT = "samrt-job"


@dataclass(frozen=True)
class Job:
    """An output folder that this process alone writes to. Made by `open_job`."""

    out: Path
    settings: Mapping[str, Any]
    formats: frozenset[str]

    @cached_property
    def digest(self) -> str:
        """Identity of the settings."""
        return digest_of(self.settings)

    def done(self, picture: PictureFile, fingerprint: str) -> bool:
        """Whether all results of a picture are there and of this fingerprint."""
        record = read_record(self.json_path(picture))
        if record is None or record["samrt"]["fingerprint"] != fingerprint:
            return False
        if "png" in self.formats and not self.png_path(picture).is_file():
            return False
        count = len(record["annotations"]) if "masks" in self.formats else 0
        return all(self.mask_path(picture, index).is_file() for index in range(count))

    def fingerprint(self, picture: PictureFile, asked: str) -> str:
        """Identity of a picture's results. asked: what is asked about it, as text. Raises InputError."""
        try:
            with picture.path.open("rb") as file:
                size = picture.path.stat().st_size
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"cannot read {picture.path}", got=error.strerror, expected="a picture") from error
        return digest_of([self.digest, picture.file_name, size, sha256, asked])

    def json_path(self, picture: PictureFile) -> Path:
        return self.out / f"{picture.name}.json"

    def png_path(self, picture: PictureFile) -> Path:
        return self.out / f"{picture.name}.png"

    def mask_path(self, picture: PictureFile, index: int) -> Path:
        return self.out / picture.name / f"{index:04d}.png"

    def forget(self, picture: PictureFile) -> None:
        """Remove what is there of a picture, first the file that makes it done."""
        remove_results(self.out, picture.name)


@contextmanager
def open_job(
    out: Path, settings: Mapping[str, Any], formats: frozenset[str], *, overwrite: bool = False
) -> Iterator[Job]:
    """Begin a job in a new or empty folder, or go on with the one that is there.

    settings: JSON values that tell one job from another, "bundle" among them
    overwrite: remove the results of the job that is there, where it is another one or not
    Raises InputError for a folder that holds anything else, another job, or a job that a process is at work on.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = "a file" if out.is_file() else error.strerror
        raise InputError(f"cannot write to {out}", got=got, expected="a folder, new or not") from error
    if not (out / JOB).exists() and (others := [entry.name for entry in out.iterdir() if not _is_own(entry.name)]):
        raise InputError(
            f"cannot write to {out}",
            got=f"a folder that holds {len(others)} other files, {sorted(others)[0]!a} among them",
            expected="a new or an empty folder, or one that a job was begun in",
            fix="name another, or empty it",
        )
    with _alone(out):
        _sweep(out)
        if (out / JOB).exists():
            if overwrite:
                _clear(out)
            else:
                _check_same(out, settings)
        write_file(out / JOB, json_bytes({"format": _FORMAT, "version": 1, "settings": settings}, indent=1))
        yield Job(out, settings, formats)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it outlives a power cut, or is not there. Raises InputError."""
    try:
        write_whole(path, data)
    except PlanError as error:
        raise InputError(f"cannot write {path}", got=error.got, expected="space, and the right to") from error


def read_record(path: Path) -> dict[str, Any] | None:
    """A picture's JSON; None where there is none, or it is not one that a job wrote."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("samrt"), dict):
        return None
    whole = "fingerprint" in record["samrt"] and all(type(record.get(key)) is list for key in ("images", "annotations"))
    return record if whole else None


def remove_results(out: Path, name: str) -> None:
    """Remove NAME.json, NAME.png and the masks in NAME/, in this order. Raises InputError."""
    try:
        (out / f"{name}.json").unlink(missing_ok=True)
        (out / f"{name}.png").unlink(missing_ok=True)
        folder = out / name
        if folder.is_dir():
            for file in folder.iterdir():
                if _MASK.fullmatch(file.name):
                    file.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise InputError(f"cannot remove earlier results of {name} in {out}", got=error.strerror) from error


def digest_of(value: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json_bytes(value, sort_keys=True)).hexdigest()


def json_bytes(value: Any, **options: Any) -> bytes:
    """A document as UTF-8. Numbers that are not finite are a mistake of ours."""
    return (json.dumps(value, allow_nan=False, **options) + "\n").encode()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the only process at work in the folder. The system drops the lock with the process, however that dies."""
    path = out / _LOCK

    def refuse() -> NoReturn:
        raise InputError(
            f"another process is at work in {out}",
            got=_holder(path),
            expected="one at a time",
            fix="wait for it, or name another folder",
        )

    with locked(path, waiting=refuse):
        if sys.platform != "win32":  # there a locked file cannot be written
            path.write_text(f"{os.getpid()}\n")
        yield


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "its lock"


def _is_own(name: str) -> bool:
    """Whether a file of the folder is of ours though no job has begun: it was killed at its very start."""
    return name == _LOCK or _LEFTOVER.fullmatch(name) is not None


def _sweep(out: Path) -> None:
    """Remove what a killed process was just writing; nobody else is at work in the folder."""
    for file in out.rglob(".*.tmp"):
        if _LEFTOVER.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _clear(out: Path) -> None:
    """Remove all results of a job, and nothing else."""
    for name in (ANNOTATIONS, FAILURES):
        (out / name).unlink(missing_ok=True)
    for file in sorted(out.rglob("*.json")):
        if file.name != JOB and read_record(file) is not None:
            remove_results(out, file.relative_to(out).with_suffix("").as_posix())


def _check_same(out: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError for another job than this one, which names what differs, both ways."""
    fix = "--overwrite to begin anew, or name another folder"
    try:
        document = json.loads((out / JOB).read_bytes())
        there = document["settings"] if document["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise InputError(
            f"cannot read {out / JOB}", got="not a job of samrt", expected="what an earlier run wrote", fix=fix
        )
    here: dict[str, Any] = json.loads(json_bytes(settings))
    different = [key for key in here | there if here.get(key) != there.get(key)]
    if different:
        raise InputError(
            f"another job was begun in {out}",
            got=", ".join(f"{key} {_told(here, key)}" for key in different),
            expected=", ".join(f"{key} {_told(there, key)}" for key in different),
            fix=fix,
        )


def _told(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not set"
