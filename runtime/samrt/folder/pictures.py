"""The pictures of a job, and the names their results get."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath

from samrt.media.pictures import SUFFIXES as FRAME_SUFFIXES
from samrt.media.pictures import natural_key
from samrt_engines.errors import InputError

SUFFIXES = (*FRAME_SUFFIXES, ".gif")
"""Files of a folder that are pictures. GIFs beside the frames of a video are rather previews of it."""

RESERVED = ("job", "annotations", "failures")
"""Names of the job's own files in its output folder."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture of a job."""

    path: Path
    file_name: str
    """Its path in the folder, with forward slashes: what COCO files say."""
    name: str
    """What its results are called: NAME.json, NAME.png, NAME/0000.png. Its path without suffix, unless that is taken."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a job is about."""

    pictures: tuple[PictureFile, ...]
    ignored: tuple[str, ...]
    """Files of the folder that are no pictures, by their suffix. Hidden ones are not even listed."""
    folder: bool
    """Whether a folder was given, and not one picture."""


def find_pictures(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Found:
    """The picture, or those of a folder and all folders below it, in natural order; links to folders are not followed.

    out: the output folder, which is not looked into
    Raises InputError for a source that is not there or cannot be read, a folder without pictures, and pictures inside `out`.
    """
    path, out_path = Path(source), Path(out)
    if path.is_file():
        return Found(_named([(path, path.name)], []), (), folder=False)
    if not path.is_dir():
        got = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise InputError(f"cannot read {path}", got=got, expected="a picture, or a folder of pictures")
    if path.resolve().is_relative_to(out_path.resolve()):
        raise InputError(
            "the pictures lie in the output folder",
            got=f"{path} in {out_path}",
            expected="another folder",
            fix="-o OTHER",
        )
    files, folders = _walk(path, out_path)
    ordered = sorted(files, key=lambda name: tuple(map(natural_key, name.split("/"))))
    kept = [(path / name, name) for name in ordered if name.lower().endswith(SUFFIXES)]
    if not kept:
        raise InputError(
            f"there is no picture in {path}", got=f"{len(files)} other files", expected=f"files {', '.join(SUFFIXES)}"
        )
    ignored = tuple(name for name in ordered if not name.lower().endswith(SUFFIXES))
    return Found(_named(kept, folders), ignored, folder=True)


def _walk(root: Path, out: Path) -> tuple[list[str], list[str]]:
    """Files and folders below, as relative names with forward slashes; without hidden ones and the output folder."""
    out = out.resolve()

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}", got=error.strerror) from error

    files: list[str] = []
    folders: list[str] = []
    for at, below, names in os.walk(root, onerror=refuse):
        here = Path(at)
        below[:] = [name for name in below if not name.startswith(".") and (here / name).resolve() != out]
        relative = here.relative_to(root)
        folders.extend((relative / name).as_posix() for name in below)
        files.extend(
            (relative / name).as_posix() for name in names if not name.startswith(".") and (here / name).is_file()
        )
    return files, folders


def _named(files: list[tuple[Path, str]], folders: list[str]) -> tuple[PictureFile, ...]:
    """Give each a name of its own, also where letters' case does not count: a.jpg is "a", a.png beside it "a_png"."""
    taken = {place for name in RESERVED for place in _places(name)}
    taken |= {name.casefold() for name in folders}
    pictures = []
    for path, file_name in files:
        place = PurePosixPath(file_name)
        stem, suffix = str(place.with_suffix("")), place.suffix.replace(".", "_")
        candidates = chain([stem], (stem + suffix + "_" * more for more in count()))
        name = next(one for one in candidates if not taken & _places(one.casefold()))
        taken |= _places(name.casefold())
        pictures.append(PictureFile(path, file_name, name))
    return tuple(pictures)


def _places(name: str) -> set[str]:
    """What a picture of that name may leave in the output folder."""
    return {name, f"{name}.json", f"{name}.png"}
