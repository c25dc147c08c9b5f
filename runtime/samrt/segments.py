"""All masks found in one picture, compact: run lengths instead of pixels.

A picture of 12 megapixels with 200 masks is 2.4 GB of bool planes and a few MB of run lengths. Masks are therefore made one
at a time, when somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.masks import binary_masks
from samrt.rle import (
    Counts,
    area_of_counts,
    box_of_counts,
    compressed_rle,
    count_runs,
    fill_columns,
    uncompressed_rle,
)
from samrt_engines.errors import ImageError, InputError, MissingExtraError

if TYPE_CHECKING:
    from samrt.result import Result

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]

OUTPUT_MODES: tuple[OutputMode, ...] = ("binary_mask", "uncompressed_rle", "coco_rle")
NO_CATEGORY = 1
"""The category of masks that have none, in COCO files: tools expect ids from 1 on."""

_PART_PIXELS = 2**24  # how many mask pixels are at full resolution at once
_COLUMNS = ("boxes", "areas", "scores", "stability", "points", "crop_boxes", "prompt_boxes", "prompt_scores", "labels")


@dataclass(frozen=True, eq=False, repr=False)
class Segments:
    """M masks of one picture. Boxes are float32 (M, 4) as x0, y0, x1, y1 in original pixels."""

    image_hw: tuple[int, int]
    """Height and width of the picture."""
    counts: tuple[Counts, ...]
    """M uncompressed COCO run lengths, int64 (N,): column by column, pixels outside first; see `samrt.rle.count_runs`."""
    boxes: Float32Array
    """(M, 4): first and last pixel column and row, the last ones included, as upstream's ``batched_mask_to_box``."""
    areas: NDArray[np.int64]
    """(M,): pixels."""
    scores: Float32Array
    """(M,): the IoU the model expects the mask to have; from detectors that make masks themselves, their confidence."""
    stability: Float32Array | None = None
    """(M,): how little the mask changes with its threshold, 0..1."""
    points: Float32Array | None = None
    """(M, 2): the point that found it, x and y in original pixels."""
    crop_boxes: Float32Array | None = None
    """(M, 4): the crop of the picture it was found in."""
    prompt_boxes: Float32Array | None = None
    """(M, 4): the box it answers."""
    labels: NDArray[np.int64] | None = None
    """(M,): category ids."""
    names: Mapping[int, str] | None = None
    """Category id -> name."""
    prompt_scores: Float32Array | None = None
    """(M,): the detector's confidence in the box it answers, 0..1; NaN where the detector gave none."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in _COLUMNS if getattr(self, name) is not None}
        wrong = {name: length for name, length in lengths.items() if length != len(self.counts)}
        if wrong:
            got = ", ".join(f"{length} {name}" for name, length in wrong.items())
            raise InputError(
                "segments that do not match", got=got, expected=f"one for each of {len(self.counts)} masks"
            )
        pixels = self.image_hw[0] * self.image_hw[1]
        if odd := [int(counts.sum()) for counts in self.counts if counts.sum() != pixels]:
            height, width = self.image_hw
            raise InputError(
                "the runs do not fill the mask", got=f"{odd[0]} pixels", expected=f"{height} x {width} = {pixels}"
            )

    @classmethod
    def from_counts(
        cls, counts: Iterable[Counts], scores: ArrayLike, image_hw: tuple[int, int], **columns: Any
    ) -> Self:
        """Segments of run lengths; boxes and areas are read from them.

        counts: int64 (N,) each, see `samrt.rle.count_runs`; scores: (M,); columns: the other fields, by name
        Raises InputError for fields of other lengths, or runs that do not fill the size.
        """
        kept = tuple(counts)
        return cls(
            image_hw=image_hw,
            counts=kept,
            boxes=np.array([box_of_counts(one, image_hw) for one in kept], np.float32).reshape(-1, 4),
            areas=np.array([area_of_counts(one) for one in kept], np.int64),
            scores=np.asarray(scores, np.float32).reshape(-1),
            **columns,
        )

    @classmethod
    def from_masks(cls, masks: BoolArray, scores: ArrayLike, **columns: Any) -> Self:
        """Segments of masks.

        masks: bool (M, H, W); scores: (M,); columns: the other fields, by name (stability=..., points=...)
        Raises InputError for masks of another dtype or shape, and fields of other lengths.
        """
        if not isinstance(masks, np.ndarray) or masks.ndim != 3 or masks.dtype != np.bool_:
            got = (
                f"{masks.dtype} array of shape {masks.shape}" if isinstance(masks, np.ndarray) else type(masks).__name__
            )
            raise InputError("not masks", got=got, expected="bool (M, H, W)")
        return cls.from_counts(map(count_runs, masks), scores, (masks.shape[1], masks.shape[2]), **columns)

    @classmethod
    def from_result(cls, result: Result, **columns: Any) -> Self:
        """The best candidate of each prompt, brought to the picture's size a few at a time.

        result: of one picture; columns: the other fields, by name, one for each prompt (prompt_boxes=..., labels=...)
        Raises ImageError for a result of several pictures, InputError for fields of other lengths.
        """
        if len(result.frames) > 1:
            raise ImageError(
                "segments are of one picture",
                got=f"a result of {len(result.frames)} pictures",
                expected="one",
                fix="[samrt.Segments.from_result(one) for one in result]",
            )
        frame, best = result.frames[0], result.best()
        step = max(1, _PART_PIXELS // (frame.image_hw[0] * frame.image_hw[1]))
        counts: list[Counts] = []
        for start in range(0, len(best), step):
            part = best.mask_logits[start : start + step]
            masks = binary_masks(part, frame.image_hw, result.mask_threshold, frame)  # (step, 1, H, W)
            counts.extend(count_runs(mask) for mask in masks[:, 0])
        return cls.from_counts(counts, best.scores[:, 0], frame.image_hw, **columns)

    def __len__(self) -> int:
        """The number of masks, M."""
        return len(self.counts)

    def __getitem__(self, index: int | slice | ArrayLike) -> Self:
        """Some of them, in the order asked for. index: int (M = 1), slice, int (K,), or bool (M,)."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"mask {index} of {len(self)}")
            rows = np.array([index])
        elif isinstance(index, slice):
            rows = np.arange(len(self))[index]
        else:
            chosen = np.asarray(index)
            rows = np.arange(len(self))[chosen if chosen.size or chosen.dtype == np.bool_ else chosen.astype(np.int64)]
        taken = {name: getattr(self, name)[rows] for name in _COLUMNS if getattr(self, name) is not None}
        return replace(self, counts=tuple(self.counts[row] for row in rows), **taken)

    def __repr__(self) -> str:
        return f"Segments({len(self)} masks, {self.image_hw[1]} x {self.image_hw[0]})"

    def __iter__(self) -> Iterator[Self]:
        return (self[index] for index in range(len(self)))

    def mask(self, index: int) -> BoolArray:
        """One mask. returns: bool (H, W). Raises IndexError for one that is not there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"mask {index} of {len(self)}")
        plane = np.zeros(self.image_hw, np.bool_)
        window, inside = self.window(index)
        plane[window] = inside
        return plane

    def window(self, index: int, margin_px: int = 0) -> tuple[tuple[slice, slice], BoolArray]:
        """Where one mask is: its box with a margin, cut off at the picture's edges, and the mask in it.

        returns: rows and columns of the picture, and bool (h, w)
        """
        height, width = self.image_hw
        x0, y0, x1, y1 = box_of_counts(self.counts[index], self.image_hw)
        rows = slice(max(0, y0 - margin_px), min(height, y1 + 1 + margin_px))
        columns = slice(max(0, x0 - margin_px), min(width, x1 + 1 + margin_px))
        inside = fill_columns(self.counts[index], height, columns.start, columns.stop)[rows]
        return (rows, columns), inside

    def masks(self) -> BoolArray:
        """All masks at once: M x H x W bytes, 2.4 GB for 200 masks of 12 megapixels. returns: bool (M, H, W)."""
        planes = np.empty((len(self), *self.image_hw), np.bool_)
        for index in range(len(self)):
            planes[index] = self.mask(index)
        return planes

    def order(self, by: Literal["area", "score"] = "area") -> Self:
        """The same, largest area or highest score first. Raises InputError for another word."""
        if by not in ("area", "score"):
            raise InputError("unknown order", got=repr(by), expected="area or score")
        return self[np.argsort(-(self.areas if by == "area" else self.scores), kind="stable")]

    def records(self, output_mode: OutputMode = "binary_mask") -> list[dict[str, Any]]:
        """What the official ``SamAutomaticMaskGenerator.generate`` returns, key by key.

        Keys: segmentation, area, bbox, predicted_iou, point_coords, stability_score, crop_box; those of fields that are
        not set are left out. Boxes are x, y, width, height; width is the last column minus the first, as upstream's.

        output_mode: segmentation as "binary_mask" bool (H, W), "uncompressed_rle", or "coco_rle" text
        Raises InputError for another mode.
        """
        if output_mode not in OUTPUT_MODES:
            raise InputError("unknown output_mode", got=repr(output_mode), expected=", ".join(OUTPUT_MODES))
        return [self._record(index, output_mode) for index in range(len(self))]

    def _record(self, index: int, output_mode: OutputMode) -> dict[str, Any]:
        segmentation: Any
        if output_mode == "binary_mask":
            segmentation = self.mask(index)
        else:
            encode = uncompressed_rle if output_mode == "uncompressed_rle" else compressed_rle
            segmentation = encode(self.counts[index], self.image_hw)
        record: dict[str, Any] = {
            "segmentation": segmentation,
            "area": int(self.areas[index]),
            "bbox": _xywh(self.boxes[index]),
            "predicted_iou": float(self.scores[index]),
        }
        if self.points is not None:
            record["point_coords"] = [self.points[index].tolist()]
        if self.stability is not None:
            record["stability_score"] = float(self.stability[index])
        if self.crop_boxes is not None:
            record["crop_box"] = _xywh(self.crop_boxes[index])
        return record

    def to_coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations with compressed RLE, as pycocotools reads them.

        Keys: id, image_id, category_id (`NO_CATEGORY` without labels), segmentation, area, bbox, iscrowd, score (the
        detector's where there is one, else predicted_iou), predicted_iou, and of the fields that are set: stability_score,
        point_coords, crop_box, prompt_box. Boxes are x, y, width, height; width counts pixels, as ``pycocotools.toBbox``.
        """
        return [self._annotation(index, image_id, first_id + index) for index in range(len(self))]

    def _annotation(self, index: int, image_id: int, annotation_id: int) -> dict[str, Any]:
        expected = _rounded(self.scores[index])
        given = None if self.prompt_scores is None else _rounded(self.prompt_scores[index])
        annotation: dict[str, Any] = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": NO_CATEGORY if self.labels is None else int(self.labels[index]),
            "segmentation": compressed_rle(self.counts[index], self.image_hw),
            "area": int(self.areas[index]),
            "bbox": _xywh(self.boxes[index], last=1 if self.areas[index] else 0),
            "iscrowd": 0,
            "score": expected if given is None else given,
            "predicted_iou": expected,
        }
        if self.stability is not None:
            annotation["stability_score"] = _rounded(self.stability[index])
        if self.points is not None:
            annotation["point_coords"] = [[_rounded(value) for value in self.points[index]]]
        if self.crop_boxes is not None:
            annotation["crop_box"] = _xywh(self.crop_boxes[index])
        if self.prompt_boxes is not None:
            annotation["prompt_box"] = _xywh(self.prompt_boxes[index])
        return annotation

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with all masks at full resolution.

        confidence is the detector's where there is one, else the IoU the model expects. Boxes are the masks' own, with
        edges: x1 and y1 are one past the last pixel, as supervision's areas and IoUs are worked out and detectors say them
        (its `mask_to_xyxy` says the last pixel unless asked otherwise).
        Raises MissingExtraError where supervision is not installed.
        """
        try:
            supervision = import_module("supervision")
        except ImportError as error:
            raise MissingExtraError(  # of no extra of ours: who asks for it has it
                "the package supervision is needed for its Detections",
                got="not installed",
                fix="pip install supervision",
            ) from error
        data: dict[str, Any] = {"predicted_iou": self.scores}
        if self.labels is not None and self.names is not None:
            data["class_name"] = np.array([self.names.get(int(label), str(label)) for label in self.labels], np.str_)
        return supervision.Detections(
            xyxy=self.boxes + np.where(self.areas[:, None] > 0, np.array([0, 0, 1, 1], np.float32), np.float32(0)),
            mask=self.masks(),
            confidence=self.scores if self.prompt_scores is None else self.prompt_scores,
            class_id=None if self.labels is None else self.labels.astype(int),
            data=data,
        )


def _xywh(box: Float32Array, last: int = 0) -> list[int | float]:
    """x, y, width, height of a box; whole numbers as such. last: 1 where x1 and y1 are pixels that belong to it."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return [int(value) if value.is_integer() else value for value in (x0, y0, x1 - x0 + last, y1 - y0 + last)]


def _rounded(value: np.float32) -> float | None:
    """Six digits, which is what a float32 score has; None for NaN, which JSON does not have."""
    return None if np.isnan(value) else round(float(value), 6)
