"""Detector boxes in, masks out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.detections import Boxes, PictureBoxes, read_boxes
from samrt.folder.pictures import Found, PictureFile
from samrt.folder.run import JobReport, Progress, run_job
from samrt.model import Model
from samrt.prompts import Prompts
from samrt.segments import Segments
from samrt_engines.errors import PromptError

if TYPE_CHECKING:
    from samrt.proposals import ProposalModel

Float32Array = NDArray[np.float32]
Uint8Array = NDArray[np.uint8]

_BOXES_AT_ONCE = 256  # of SAM, 1 MB of logits each; the decoder itself takes 64
_NOTHING = -1  # no file has boxes under this key: image ids are not negative


def segment_boxes(
    model: Model | ProposalModel,
    source: str | os.PathLike[str],
    boxes: Boxes | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    multimask: bool = False,
    formats: Iterable[str] = ("coco", "png"),
    batch: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> JobReport:
    """Turn a detector's boxes into masks, for a picture or a whole folder; what is written where: `samrt.folder.job`.

    model: of a prompted model; or one that proposes masks, of which each box then gets the one that fits it best
    source: a picture, or a folder of pictures
    boxes: what `samrt.read_boxes` reads, or has read. Pictures without boxes get an empty result, without being encoded
    multimask: the best of several masks for each box. One is what upstream asks for: a box is rarely ambiguous
    formats: "coco" (always written), "png" (masks drawn on the picture), "masks" (one PNG each)
    batch: how many pictures are encoded together; more than 1 pays on GPUs
    overwrite: begin anew where a job is in `out`
    progress: called with what is going on, how many pictures are done, and of how many

    Masks carry the box's label and score. Killed at any moment, the same call goes on. A picture that fails is recorded.
    Raises InputError for a source or an output that cannot be used, PromptError for boxes that do not fit the pictures.
    """
    known = boxes if isinstance(boxes, Boxes) else read_boxes(boxes)
    work = _BoxWork(model, known, multimask)
    return run_job(work, source, out, formats=formats, batch=batch, overwrite=overwrite, progress=progress)


def clip_boxes(boxes: ArrayLike, image_hw: tuple[int, int]) -> Float32Array:
    """Bring boxes into the picture: detectors' often reach over its edge.

    boxes: float (P, 4) as x0, y0, x1, y1
    returns: float32 (P, 4)
    Raises PromptError for a box that lies outside altogether.
    """
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    height, width = image_hw
    outside = (array[:, :2] >= (width, height)).any(axis=1) | (array[:, 2:] <= 0).any(axis=1)
    if outside.any():
        index = int(np.argmax(outside))
        raise PromptError(
            f"box {index} lies outside the picture",
            got=", ".join(f"{value:g}" for value in array[index]),
            expected=f"within 0, 0, {width}, {height}",
        )
    return np.clip(array, 0, np.array([width, height, width, height], np.float32))


class _BoxWork:
    """The boxes of each picture, answered in one decode."""

    def __init__(self, model: Model | ProposalModel, boxes: Boxes, multimask: bool):
        self._model, self._boxes, self._multimask = model, boxes, multimask
        self._keys: dict[str, str | int | None] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "kind": "boxes",
            "model": self._model.manifest.source.model,
            "bundle": self._model.digest,
            "multimask": self._multimask,
        }

    def begin(self, found: Found) -> None:
        file_names = [picture.file_name for picture in found.pictures]
        self._keys = self._boxes.match(file_names, one=not found.folder)

    def asked(self, picture: PictureFile) -> str:
        boxes = self._of(picture)
        labels = [] if boxes.labels is None else boxes.labels.tolist()
        scores = [] if boxes.scores is None else boxes.scores.tolist()
        return repr((boxes.boxes.tolist(), labels, scores, sorted(self._boxes.names.items()), self.image_id(picture)))

    def image_id(self, picture: PictureFile) -> int | None:
        key = self._keys.get(picture.file_name)
        return key if isinstance(key, int) else None

    def segment(self, files: Sequence[PictureFile], pictures: Sequence[Uint8Array]) -> list[Segments]:
        for file, picture in zip(files, pictures, strict=True):
            self._check_size(file, _hw(picture))
        asked = [self._of(file) for file in files]
        clipped = [clip_boxes(boxes.boxes, _hw(picture)) for boxes, picture in zip(asked, pictures, strict=True)]
        if isinstance(self._model, Model):
            found = self._decode(self._model, clipped, pictures)
        else:
            found = {i: _choose(self._model, clipped[i], pictures[i]) for i in range(len(files)) if len(clipped[i])}
        names = dict(self._boxes.names)
        return [
            replace(
                found[index] if index in found else Segments.from_counts([], [], _hw(picture)),
                prompt_boxes=clipped[index],
                prompt_scores=asked[index].scores,
                labels=asked[index].labels,
                names=names,
            )
            for index, picture in enumerate(pictures)
        ]

    def _decode(
        self, model: Model, boxes: Sequence[Float32Array], pictures: Sequence[Uint8Array]
    ) -> dict[int, Segments]:
        """Encode the pictures that have boxes together, answer those of each in one decode."""
        prompted = [index for index, one in enumerate(boxes) if len(one)]
        if not prompted:
            return {}
        features = model.encode([pictures[index] for index in prompted])
        found: dict[int, Segments] = {}
        for place, index in enumerate(prompted):
            parts = [
                Segments.from_result(
                    model.decode(
                        features,
                        Prompts(boxes=boxes[index][start : start + _BOXES_AT_ONCE]),
                        self._multimask,
                        image_index=place,
                    )
                )
                for start in range(0, len(boxes[index]), _BOXES_AT_ONCE)
            ]
            counts = [one for part in parts for one in part.counts]
            scores = np.concatenate([part.scores for part in parts])
            found[index] = Segments.from_counts(counts, scores, _hw(pictures[index]))
        return found

    def _check_size(self, file: PictureFile, hw: tuple[int, int]) -> None:
        """Refuse boxes that were made on the picture in another size."""
        key = self._keys.get(file.file_name)
        size = None if key is None else self._boxes.sizes.get(key)
        if size is not None and size != hw:
            raise PromptError(
                f"{self._boxes.source}: the boxes are of {file.file_name} in another size",
                got="{1} x {0} in its table of images".format(*size),
                expected="{1} x {0}, the picture's".format(*hw),
                fix="scale the boxes, or name the picture they were made on",
            )

    def _of(self, picture: PictureFile) -> PictureBoxes:
        return self._boxes.of(self._keys.get(picture.file_name, _NOTHING))


def _choose(model: ProposalModel, boxes: Float32Array, picture: Uint8Array) -> Segments:
    """The proposed mask that fits each box best; an empty one with score 0 where none touches it."""
    from samrt.proposals import select_boxes

    proposed = model.propose(picture)
    chosen = [select_boxes(proposed, box) for box in boxes]
    nothing = np.array([picture.shape[0] * picture.shape[1]], np.int64)
    counts = [one.counts[0] if len(one) else nothing for one in chosen]
    return Segments.from_counts(counts, [one.scores[0] if len(one) else 0 for one in chosen], _hw(picture))


def _hw(picture: Uint8Array) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]
