"""Segment everything: a grid of clicks, the masks that hold, each thing once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.automatic.crops import Crop, crop_boxes, cut_off
from samrt.automatic.dropped import Dropped
from samrt.automatic.found import Found, clean, drop_duplicates, drop_duplicates_of_crops, join
from samrt.automatic.grid import Grid
from samrt.automatic.outlines import boxes_from_turns, find_turns, stability_scores
from samrt.automatic.settings import Settings, read_count, read_grids
from samrt.features import Features
from samrt.images import Image, as_rgb_uint8
from samrt.model import Model, check_prompted
from samrt.prompts import Prompts
from samrt.result import Result
from samrt.segments import OutputMode, Segments
from samrt_engines.errors import ImageError, InputError

Float64Array = NDArray[np.float64]
Uint8Array = NDArray[np.uint8]
Progress = Callable[[int, int], object]


class AutomaticMaskGenerator:
    """Finds the masks of all things in a picture, as ``SamAutomaticMaskGenerator`` and SAM 2's do, record by record.

    The whole picture and, if wanted, crops of it are asked at a grid of points. Of the masks that come back, those stay that
    the model trusts, that are stable, that their crop does not cut off, and that no better one duplicates.

    It keeps nothing between calls: one generator, and one model, may be used from many threads at once.
    """

    def __init__(
        self,
        model: Model,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[ArrayLike] | None = None,
        min_mask_region_area: float = 0,
        output_mode: OutputMode = "binary_mask",
        *,
        multimask_output: bool = True,
        use_m2m: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """The official parameters, their names and defaults.

        points_per_side: points along each side of the picture and of each crop; None where `point_grids` gives the points
        points_per_batch: points asked in one run of the decoder; changes memory and speed, not the result
        pred_iou_thresh: masks must be expected to have a higher IoU; None is the model's own: 0.88 for SAM, 0.8 for SAM 2
        stability_score_thresh: least stability; None is the model's own
        stability_score_offset: how far the threshold is moved to measure it, in logits
        box_nms_thresh: of masks of one crop whose boxes have a higher IoU, the best-scored stays
        crop_n_layers: layers of crops; layer i has 4^i
        crop_nms_thresh: of masks of several crops whose boxes have a higher IoU, that of the smallest crop stays
        crop_overlap_ratio: by how much of the picture's shorter side the crops of the first layer overlap
        crop_n_points_downscale_factor: each layer of crops has so many times fewer points along a side
        point_grids: for each layer, points (N, 2) as shares of width and height
        min_mask_region_area: smaller holes are filled and smaller islands dropped, in pixels; 0 is off
        output_mode: segmentation in records as "binary_mask", "uncompressed_rle" or "coco_rle"
        multimask_output: ask for several masks at each point
        use_m2m: answer every mask with a mask once more, as SAM 2's generator can; costs three times the points again
        progress: called with (points done, points in all) after each batch

        Raises InputError for a parameter out of its range, PromptError for points outside the picture.
        """
        check_prompted(model, "AutomaticMaskGenerator")
        automatic = model.manifest.numbers.automatic
        self._model = model
        self._multimask, self._refine, self._progress = multimask_output, use_m2m, progress
        self._best_only = automatic.candidates == "best"
        self._settings = Settings(
            grids=read_grids(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor),
            points_per_batch=read_count("points_per_batch", points_per_batch, 1),
            pred_iou_thresh=automatic.pred_iou_thresh if pred_iou_thresh is None else pred_iou_thresh,
            stability_score_thresh=(
                automatic.stability_score_thresh if stability_score_thresh is None else stability_score_thresh
            ),
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=int(crop_n_layers),
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            min_mask_region_area=min_mask_region_area,
            output_mode=output_mode,
        )

    def generate(self, image: Image | Features) -> list[dict[str, Any]]:
        """Find all masks of a picture.

        image: uint8 (H, W, 3) RGB; also whatever else `samrt.as_rgb_uint8` takes; or the features of one picture, where no
            crops are asked for: many pictures are encoded in one run by ``model.encode(pictures)``
        returns: a record for each mask, as `Segments.records` describes them, in the official order; none if none is found
        Raises ImageError for what is not one picture, or features of another model; InputError for features where crops are
        asked for; BackendError when the backend fails or the model is closed.
        """
        return self.segments(image).records(self._settings.output_mode)

    def segments(self, image: Image | Features) -> Segments:
        """What `generate` finds, as compact `Segments`."""
        return self.search(image)[0]

    def search(self, image: Image | Features) -> tuple[Segments, Dropped]:
        """What `generate` finds, as compact `Segments`, and what became of the masks that are not among them."""
        settings = self._settings
        picture = _check_features(image, settings) if isinstance(image, Features) else as_rgb_uint8(image)
        image_hw = picture.image_hw[0] if isinstance(picture, Features) else (picture.shape[0], picture.shape[1])
        crops = crop_boxes(image_hw, settings.crop_n_layers, settings.crop_overlap_ratio)
        counter = _Counter(sum(len(settings.grids[crop.layer]) for crop in crops), self._progress)
        found = join([self._search_crop(self._encode(picture, crop), crop, image_hw, counter) for crop in crops])
        if len(crops) > 1:
            found = drop_duplicates_of_crops(found, settings.crop_nms_thresh)
        if settings.min_mask_region_area > 0:
            iou = max(settings.box_nms_thresh, settings.crop_nms_thresh)
            found = clean(found, image_hw, settings.min_mask_region_area, iou)
        return found.to_segments(image_hw), counter.dropped(len(found.turns))

    def _encode(self, picture: Uint8Array | Features, crop: Crop) -> Features:
        if isinstance(picture, Features):
            return picture
        return self._model.encode(picture[crop.y0 : crop.y1, crop.x0 : crop.x1])

    def _search_crop(self, features: Features, crop: Crop, image_hw: tuple[int, int], counter: _Counter) -> Found:
        """All masks of one crop, each thing once, in the picture's pixels."""
        settings = self._settings
        points = settings.grids[crop.layer] * np.array(crop.hw[::-1])
        parts = []
        for start in range(0, len(points), settings.points_per_batch):
            batch = points[start : start + settings.points_per_batch]
            parts.append(self._judge(self._ask(features, batch), batch, crop, image_hw, counter))
            counter.advance(len(batch))
        return drop_duplicates(join(parts), settings.box_nms_thresh)

    def _ask(self, features: Features, points: Float64Array) -> Result:
        """Decode one click for each point; then, if wanted, each mask once more with itself as a prompt."""
        labels = np.ones((len(points), 1), np.int32)
        result = self._model.decode(features, Prompts(points=points[:, None], labels=labels), self._multimask)
        if self._best_only and self._multimask:
            result = result.best()
        if not self._refine:
            return result
        each = result.scores.shape[1]
        prompts = Prompts(
            points=points.repeat(each, axis=0)[:, None],
            labels=labels.repeat(each, axis=0),
            masks=result.logits.reshape(-1, *result.logits.shape[2:]),
        )
        return self._model.decode(features, prompts, multimask=False)

    def _judge(
        self, result: Result, points: Float64Array, crop: Crop, image_hw: tuple[int, int], counter: _Counter
    ) -> Found:
        """The masks of one decode that are good enough. points: (P, 2) in the crop's pixels."""
        settings = self._settings
        scores = result.scores.reshape(-1)
        planes = result.mask_logits.reshape(-1, *result.mask_logits.shape[2:])
        points = points.repeat(len(scores) // len(points), axis=0)
        grid = Grid.plan(result.frames[0], (planes.shape[1], planes.shape[2]))
        kept = np.arange(len(scores))
        if settings.pred_iou_thresh > 0:
            kept = kept[scores > settings.pred_iou_thresh]
        trusted = len(kept)
        planes = planes[kept]
        stability = stability_scores(planes, grid, result.mask_threshold, settings.stability_score_offset)
        if settings.stability_score_thresh > 0:
            stable = stability >= settings.stability_score_thresh
            kept, planes, stability = kept[stable], planes[stable], stability[stable]
        turns = find_turns(planes, grid, result.mask_threshold, (crop.x0, crop.y0), image_hw)
        boxes = boxes_from_turns(turns, image_hw)
        found = Found(
            turns=tuple(turns),
            boxes=boxes,
            scores=scores[kept],
            stability=stability,
            points=points[kept] + np.array([crop.x0, crop.y0]),
            crops=np.tile(np.array(crop[:4], np.int64), (len(kept), 1)),
        )
        whole = found.take(~cut_off(boxes, crop, image_hw))
        counter.judged(len(scores), trusted, len(kept), len(whole.turns))
        return whole


class _Counter:
    """Counts points and masks of one picture, and tells who asked."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._candidates = self._trusted = self._stable = self._whole = 0

    def advance(self, points: int) -> None:
        self._done += points
        if self._progress is not None:
            self._progress(self._done, self._total)

    def judged(self, candidates: int, trusted: int, stable: int, whole: int) -> None:
        """How many masks one decode gave, and how many of them passed each filter and those before it."""
        self._candidates += candidates
        self._trusted += trusted
        self._stable += stable
        self._whole += whole

    def dropped(self, kept: int) -> Dropped:
        """What became of the others. kept: how many masks are left at the end."""
        return Dropped(
            candidates=self._candidates,
            below_pred_iou_thresh=self._candidates - self._trusted,
            below_stability_score_thresh=self._trusted - self._stable,
            cut_off=self._stable - self._whole,
            duplicates=self._whole - kept,
        )


def _check_features(features: Features, settings: Settings) -> Features:
    """Features of one whole picture. Raises ImageError for several, InputError where crops of it are to be encoded."""
    if len(features) != 1:
        raise ImageError(
            "masks are found in one picture at a time",
            got=f"features of {len(features)} pictures",
            expected="of one",
            fix="[generator.segments(one) for one in features]",
        )
    if settings.crop_n_layers:
        raise InputError(
            "crops are encoded each for itself",
            got=f"features, and crop_n_layers {settings.crop_n_layers}",
            expected="the picture, or no crops",
            fix="generator.segments(image), or crop_n_layers=0",
        )
    return features
