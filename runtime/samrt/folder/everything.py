"""All masks of every picture, without prompts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samrt.folder.pictures import Found, PictureFile
from samrt.folder.run import JobReport, Progress, run_job
from samrt.model import Model, check_prompted
from samrt.segments import Segments

if TYPE_CHECKING:
    from samrt.proposals import ProposalModel

_NOT_SETTINGS = ("model", "image", "points_per_batch", "output_mode", "progress")
"""What does not change a job's results: they may differ when it goes on. Of the generator's and the proposer's parameters."""


def segment_everything(
    model: Model | ProposalModel,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Iterable[str] = ("coco", "png"),
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> JobReport:
    """Find all masks of a picture, or of every picture of a folder; what is written where: `samrt.folder.job`.

    model: of a prompted model, which `samrt.AutomaticMaskGenerator` then asks; or one that proposes masks itself
    source: a picture, or a folder of pictures
    formats: "coco" (always written), "png" (masks drawn on the picture), "masks" (one PNG each)
    overwrite: begin anew where a job is in `out`
    progress: called with what is going on, how many pictures are done, and of how many
    options: of `samrt.AutomaticMaskGenerator` (points_per_side=..., ...), or of `samrt.ProposalModel.propose`

    Killed at any moment, the same call goes on. A picture that fails is recorded.
    Raises InputError for a source, an output or options that cannot be used.
    """
    watch = _Watch(progress)
    work = _EverythingWork(model, options, watch)
    return run_job(work, source, out, formats=formats, overwrite=overwrite, progress=watch.pictures)


class _EverythingWork:
    """Nothing is asked; every picture stands alone."""

    def __init__(self, model: Model | ProposalModel, options: Mapping[str, Any], watch: _Watch):
        self._find: Callable[[NDArray[np.uint8]], Segments]
        known: Callable[..., Any]
        if not hasattr(model, "propose"):
            check_prompted(model, "segment_everything")
        if isinstance(model, Model):
            from samrt.automatic import AutomaticMaskGenerator

            known = AutomaticMaskGenerator
            self._find = AutomaticMaskGenerator(model, **options, progress=watch.points).segments
        else:
            known = model.propose
            self._find = partial(model.propose, **options)
        self.settings: Mapping[str, Any] = {
            "kind": "everything",
            "model": model.manifest.source.model,
            "bundle": model.digest,
            **_with_defaults(known, options),
        }
        if isinstance(model, Model):  # thresholds of 0.88 are told as such, not as nothing
            own = asdict(model.manifest.numbers.automatic)
            self.settings = {name: own.get(name) if value is None else value for name, value in self.settings.items()}

    def begin(self, found: Found) -> None:
        pass

    def asked(self, picture: PictureFile) -> str:
        return ""

    def image_id(self, picture: PictureFile) -> int | None:
        return None

    def segment(self, files: Sequence[PictureFile], pictures: Sequence[NDArray[np.uint8]]) -> list[Segments]:
        return [self._find(picture) for picture in pictures]


class _Watch:
    """Shows the points of a picture beside the pictures of the job."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._last: tuple[str, int, int] = ("", 0, 1)

    def pictures(self, stage: str, done: int, total: int) -> None:
        self._last = (stage, done, total)
        if self._progress is not None:
            self._progress(stage, done, total)

    def points(self, done: int, total: int) -> None:
        stage, pictures_done, pictures = self._last
        if self._progress is not None:
            self._progress(f"{stage} · {done} of {total} points", pictures_done, pictures)


def _with_defaults(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a function as JSON values, those that were not given with their defaults."""
    parameters = inspect.signature(function).parameters.items()
    defaults = {name: one.default for name, one in parameters if name not in _NOT_SETTINGS}
    return {name: _plain(options.get(name, default)) for name, default in defaults.items()}


def _plain(value: Any) -> Any:
    """Arrays, and lists of them, as JSON lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
