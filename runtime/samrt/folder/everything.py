"""All masks of every picture, without prompts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samrt.folder.empty import hint_of_candidates, hint_of_proposals
from samrt.folder.pictures import Found, PictureFile
from samrt.folder.run import JobReport, Progress, run_job
from samrt.model import Model, check_prompted
from samrt.segments import Segments
from samrt_engines.errors import InputError

if TYPE_CHECKING:
    from samrt.features import Features
    from samrt.proposals import ProposalModel

_NOT_SETTINGS = ("model", "image", "points_per_batch", "output_mode", "progress")
"""What does not change a job's results: they may differ when it goes on. Of the generator's and the proposer's parameters."""


def segment_everything(
    model: Model | ProposalModel,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Iterable[str] = ("coco", "png"),
    batch: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> JobReport:
    """Find all masks of a picture, or of every picture of a folder; what is written where: `samrt.folder.job`.

    model: of a prompted model, which `samrt.AutomaticMaskGenerator` then asks; or one that proposes masks itself
    source: a picture, or a folder of pictures
    formats: "coco" (always written), "png" (masks drawn on the picture), "masks" (one PNG each)
    batch: how many pictures are encoded together; more than 1 pays on GPUs. Not with crops, which are encoded each for
        itself, and not of a model that proposes masks
    overwrite: begin anew where a job is in `out`
    progress: called with what is going on, how many pictures are done, and of how many
    options: of `samrt.AutomaticMaskGenerator` (points_per_side=..., ...), or of `samrt.ProposalModel.propose`

    Killed at any moment, the same call goes on. A picture that fails is recorded; one without masks is in the report's
    `empty`, with a `hint` what to lower.
    Raises InputError for a source, an output or options that cannot be used.
    """
    watch = _Watch(progress)
    work = _EverythingWork(model, options, watch)
    work.check_batch(batch)
    report = run_job(work, source, out, formats=formats, batch=batch, overwrite=overwrite, progress=watch.pictures)
    return replace(report, empty=work.empty, hint=work.hint())


class _EverythingWork:
    """Nothing is asked; every picture stands alone."""

    def __init__(self, model: Model | ProposalModel, options: Mapping[str, Any], watch: _Watch):
        known: Callable[..., Any]
        if not hasattr(model, "propose"):
            check_prompted(model, "segment_everything")
        self._model, self._options, self._watch = model, options, watch
        self.empty: dict[str, dict[str, int]] = {}
        if isinstance(model, Model):
            from samrt.automatic import AutomaticMaskGenerator

            known = AutomaticMaskGenerator
            self._generator = AutomaticMaskGenerator(model, **options, progress=watch.points)
        else:
            known = model.propose
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

    def check_batch(self, batch: int) -> None:
        """Raises InputError where pictures cannot be encoded together."""
        layers = self.settings.get("crop_n_layers", 0)
        if batch > 1 and not isinstance(self._model, Model):
            got, expected = f"{self.settings['model']}, which proposes masks for one picture at a time", "a batch of 1"
        elif batch > 1 and layers:
            got, expected = f"a batch of {batch} and {layers} layers of crops", "one of them"
        else:
            return
        fix = "leave out batch (--batch)" + (", or crop_n_layers (--crop-n-layers)" if layers else "")
        raise InputError("pictures cannot be encoded together", got=got, expected=expected, fix=fix)

    def segment(self, files: Sequence[PictureFile], pictures: Sequence[NDArray[np.uint8]]) -> list[Segments]:
        together: Iterable[NDArray[np.uint8] | Features] = pictures
        if isinstance(self._model, Model) and len(pictures) > 1:
            together = self._model.encode([*pictures])
        found = []
        for index, (file, picture) in enumerate(zip(files, together, strict=True)):
            self._watch.part = (index, len(files))
            segments, dropped = self._find(picture)
            self.empty.pop(file.file_name, None)
            if not len(segments):
                self.empty[file.file_name] = dropped
            found.append(segments)
        return found

    def _find(self, picture: NDArray[np.uint8] | Features) -> tuple[Segments, dict[str, int]]:
        """The masks of a picture, and what became of its other candidates, where these are counted."""
        if not isinstance(self._model, Model):
            return self._model.propose(picture, **self._options), {}
        segments, dropped = self._generator.search(picture)
        return segments, asdict(dropped)

    def hint(self) -> str:
        """What took out the masks of the pictures without any; nothing where there are none."""
        if not self.empty:
            return ""
        if isinstance(self._model, Model):
            return hint_of_candidates(self.empty, self.settings)
        return hint_of_proposals(self.empty, self._options.get("confidence"), self._model.manifest)


class _Watch:
    """Shows the points of a picture beside the pictures of the job."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._last: tuple[str, int, int] = ("", 0, 1)
        self.part = (0, 1)
        """Which picture of how many that are done together."""

    def pictures(self, stage: str, done: int, total: int) -> None:
        self._last = (stage, done, total)
        if self._progress is not None:
            self._progress(stage, done, total)

    def points(self, done: int, total: int) -> None:
        stage, pictures_done, pictures = self._last
        index, together = self.part
        if self._progress is not None:
            points = f"{index * total + done} of {together * total} points"  # without crops all have as many
            self._progress(f"{stage} · {points}", pictures_done, pictures)


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
