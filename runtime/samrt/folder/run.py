"""Running a job: what is not done yet is read, segmented, written, picture by picture."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samrt.folder.annotations import merge_records
from samrt.folder.job import ANNOTATIONS, FAILURES, FORMATS, Job, json_bytes, open_job, read_record, write_file
from samrt.folder.pictures import Found, PictureFile, find_pictures
from samrt.images import read_image
from samrt.segment_output import coco_document, draw_segments, mask_pngs, png_bytes
from samrt.segments import Segments
from samrt_engines.errors import Cancelled, InputError, SamrtError

Uint8Array = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many pictures are done, and of how many."""


class Work(Protocol):
    """What a job does with pictures."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values that tell this job from others."""

    def begin(self, found: Found) -> None:
        """Look at all pictures before the first is done. Raises InputError."""

    def asked(self, picture: PictureFile) -> str:
        """What is asked about one picture in particular, as text."""

    def image_id(self, picture: PictureFile) -> int | None:
        """The picture's id in COCO files, where the caller knows it by one."""

    def segment(self, files: Sequence[PictureFile], pictures: Sequence[Uint8Array]) -> list[Segments]:
        """The masks of some pictures, uint8 (H, W, 3) RGB. Raises SamrtError."""


@dataclass(frozen=True)
class JobReport:
    """What a run did."""

    out: Path
    pictures: int
    """How many there are."""
    done: int
    """How many of them this run did."""
    kept: int
    """How many earlier runs had done."""
    masks: int
    """Masks of this run."""
    failures: Mapping[str, str]
    """Picture -> why it could not be done; another run tries it again."""
    ignored: tuple[str, ...]
    """Files of the folder that are no pictures."""
    seconds: float
    empty: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Picture of this run in which `segment_everything` found no mask -> what became of its candidates, in numbers: see
    `samrt.automatic.Dropped`. Models that propose masks do not count them."""
    hint: str = ""
    """Of all these pictures: what took their masks out, and which option to lower."""

    @property
    def pictures_per_second(self) -> float:
        """Of this run, writing included."""
        return self.done / self.seconds if self.seconds else 0.0


@dataclass
class _Tally:
    """What a run has done so far."""

    total: int
    begun: float
    kept: int = 0
    done: int = 0
    masks: int = 0
    failures: dict[str, SamrtError] = field(default_factory=dict)

    def stage(self, file_name: str) -> str:
        """What the progress shows."""
        seconds = time.perf_counter() - self.begun
        rate = f" · {self.done / seconds:.2g} pictures/s" if self.done else ""
        failed = f" · {len(self.failures)} failed" if self.failures else ""
        return f"{file_name}{rate}{failed}"

    @property
    def passed(self) -> int:
        return self.kept + self.done + len(self.failures)


def run_job(
    work: Work,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Iterable[str] = ("coco", "png"),
    batch: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> JobReport:
    """Do a picture, or all of a folder, into an output folder; go on where an earlier run of the same job was stopped.

    formats: "coco" (NAME.json, always written), "png" (the masks drawn on the picture), "masks" (one PNG each)
    batch: how many pictures are given to `work` together
    overwrite: begin anew

    A picture that cannot be done is recorded and does not stop the others. Raises InputError for a source or an output
    folder that cannot be used and for what cannot be written.
    """
    kinds = _check_options(formats, batch)
    found = find_pictures(source, out)
    work.begin(found)
    with open_job(Path(out), work.settings, kinds, overwrite=overwrite) as job:
        tally = _Tally(len(found.pictures), time.perf_counter())
        report = progress or (lambda stage, done, total: None)
        _run(job, work, found, batch, tally, report)
        _finish(job, work, found, tally)
    return JobReport(
        out=Path(out),
        pictures=len(found.pictures),
        done=tally.done,
        kept=tally.kept,
        masks=tally.masks,
        failures={name: str(error) for name, error in tally.failures.items()},
        ignored=found.ignored,
        seconds=time.perf_counter() - tally.begun,
    )


def _check_options(formats: Iterable[str], batch: int) -> frozenset[str]:
    kinds = frozenset(formats)
    if unknown := sorted(kinds - set(FORMATS)):
        raise InputError("unknown format", got=", ".join(map(repr, unknown)), expected=", ".join(FORMATS))
    if batch < 1:
        raise InputError("batch must be 1 or more", got=f"{batch}")
    return kinds


def _run(job: Job, work: Work, found: Found, batch: int, tally: _Tally, report: Progress) -> None:
    """Do all that is not done, a batch at a time."""
    todo = _undone(job, work, found, tally, report)
    while part := list(islice(todo, batch)):
        files, fingerprints, pictures = zip(*part, strict=True)
        report(tally.stage(files[0].file_name), tally.passed, tally.total)
        for file, fingerprint, picture, segments in zip(
            files, fingerprints, pictures, _segment(work, files, pictures, tally), strict=True
        ):
            if segments is not None:
                _write(job, file, fingerprint, picture, segments, work.image_id(file))
                tally.done += 1
                tally.masks += len(segments)
        report(tally.stage(files[-1].file_name), tally.passed, tally.total)


def _undone(
    job: Job, work: Work, found: Found, tally: _Tally, report: Progress
) -> Iterator[tuple[PictureFile, str, Uint8Array]]:
    """Pictures that are not done, with their fingerprints, read."""
    for file in found.pictures:
        try:
            fingerprint = job.fingerprint(file, work.asked(file))
            if job.done(file, fingerprint):
                tally.kept += 1
                report(tally.stage(file.file_name), tally.passed, tally.total)
                continue
            picture = read_image(file.path)
        except InputError as error:
            tally.failures[file.file_name] = error
            continue
        yield file, fingerprint, picture


def _segment(
    work: Work, files: Sequence[PictureFile], pictures: Sequence[Uint8Array], tally: _Tally
) -> list[Segments | None]:
    """The masks of a batch. Where one picture spoils it, each on its own; None for those that cannot be done."""
    try:
        return [*work.segment(files, pictures)]
    except Cancelled:
        raise
    except SamrtError as error:
        if len(files) > 1:
            alone = (_segment(work, [file], [picture], tally) for file, picture in zip(files, pictures, strict=True))
            return [segments for one in alone for segments in one]
        tally.failures[files[0].file_name] = error
        return [None]


def _write(
    job: Job, file: PictureFile, fingerprint: str, picture: Uint8Array, segments: Segments, image_id: int | None
) -> None:
    """Write all results of a picture, the JSON last. Raises InputError."""
    record = read_record(job.json_path(file))
    if record is None or record["samrt"]["fingerprint"] != fingerprint:
        job.forget(file)  # what is there is of another state of the picture or of the job
    if "masks" in job.formats:
        for index, png in enumerate(mask_pngs(segments)):
            write_file(job.mask_path(file, index), png)
    if "png" in job.formats:
        write_file(job.png_path(file), png_bytes(draw_segments(picture, segments)))
    document: dict[str, Any] = coco_document(segments, file.file_name, 1 if image_id is None else image_id)
    document["samrt"] = {"fingerprint": fingerprint, **job.settings}
    write_file(job.json_path(file), json_bytes(document))


def _finish(job: Job, work: Work, found: Found, tally: _Tally) -> None:
    """Write the files about all pictures. Raises InputError."""
    failures = job.out / FAILURES
    if tally.failures:
        rows = [{"file_name": name, "code": error.code, "error": str(error)} for name, error in tally.failures.items()]
        write_file(failures, json_bytes({"failures": rows}, indent=1))
        for file in found.pictures:
            if file.file_name in tally.failures:
                job.forget(file)  # results of an earlier state of the picture are none of this one
    elif found.folder:
        failures.unlink(missing_ok=True)
    if found.folder:
        done = [file for file in found.pictures if file.file_name not in tally.failures]
        records = ((job.json_path(file), work.image_id(file)) for file in done)
        merge_records(job.out / ANNOTATIONS, records)
