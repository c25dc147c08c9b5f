"""Measures a model on held-out pictures: mIoU at a click, with a box, after corrective clicks; honesty of the IoU head.

Works on anything that can encode and decode: the bundle through ``samrt``, or the PyTorch module through ``TorchSegmenter``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from samrt import Model, Prompts
from samrt_export.families.sam2 import Sam2
from samrt_export.nano.clicks import box_around, corrective_click, innermost_point
from samrt_export.nano.scenes import HELD_OUT_SEED, Frame, scene_from_seed
from samrt_export.progress import Progress, silent

CLICKS = 5

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """The mask a user would be shown for one prompt, the score that came with it, and its low-res logits."""

    mask: Mask  # (H, W)
    score: float
    logits: NDArray[np.float32]  # (h, w)


class Segmenter(Protocol):
    """One picture at a time, one prompt at a time."""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """image: (H, W, 3) RGB."""

    def segment(
        self,
        points: list[tuple[int, int]],
        labels: list[int],
        box: tuple[int, int, int, int] | None,
        logits: NDArray[np.float32] | None,
        multimask: bool,
    ) -> Answer:
        """Prompt the picture; with ``multimask`` the best of several candidates by predicted score."""


@dataclass(frozen=True)
class Scores:
    """Means over all prompts of all pictures. ``iou_mae``: mean |predicted - true IoU| over every mask looked at."""

    pictures: int
    prompts: int
    one_click: float
    box: float
    five_clicks: float
    iou_mae: float

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def held_out(count: int) -> Iterator[Frame]:
    """Pictures that training never sees, at moments of their motion; those with nothing to ask about are passed over."""
    seed = HELD_OUT_SEED
    while count:
        frame = scene_from_seed(seed).render(time=(seed - HELD_OUT_SEED) * 0.37 % 6.0)
        seed += 1
        if frame.visible:
            count -= 1
            yield frame


def evaluate(segmenter: Segmenter, count: int = 500, progress: Progress = silent) -> Scores:
    """Ask for every visible shape of ``count`` held-out pictures: by one click and then corrections, and by its box.

    The first click takes the best of three candidates, later rounds the single one with the last logits as mask prompt, as
    SAM's own evaluation does.
    """
    clicks: list[list[float]] = [[] for _ in range(CLICKS)]
    boxes: list[float] = []
    errors: list[float] = []
    for index, frame in enumerate(held_out(count)):
        if index % 10 == 0:
            progress("pictures", index, count)
        segmenter.set_image(frame.image)
        for label in frame.visible:
            target = frame.mask(label)
            answer = segmenter.segment([], [], box_around(target), None, False)
            boxes.append(iou(answer.mask, target))
            errors.append(abs(answer.score - boxes[-1]))
            for round_index, answer in enumerate(_click_rounds(segmenter, target)):
                clicks[round_index].append(iou(answer.mask, target))
                errors.append(abs(answer.score - clicks[round_index][-1]))
    progress("pictures", count, count)
    return Scores(
        pictures=count,
        prompts=len(boxes),
        one_click=float(np.mean(clicks[0])),
        box=float(np.mean(boxes)),
        five_clicks=float(np.mean(clicks[-1])),
        iou_mae=float(np.mean(errors)),
    )


def _click_rounds(segmenter: Segmenter, target: Mask) -> Iterator[Answer]:
    """CLICKS answers: to the first click, and after each correction. A perfect mask is repeated."""
    points, labels = [innermost_point(target)], [1]
    answer = segmenter.segment(points, labels, None, None, True)
    yield answer
    for _ in range(CLICKS - 1):
        click = corrective_click(answer.mask, target)
        if click is not None:
            points.append(click[0])
            labels.append(click[1])
            answer = segmenter.segment(points, labels, None, answer.logits, False)
        yield answer


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks; 1 for two empty ones."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


class BundleSegmenter:
    """A bundle, through the public runtime."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """See `Segmenter`."""
        self.features = self.model.encode(image)

    def segment(
        self,
        points: list[tuple[int, int]],
        labels: list[int],
        box: tuple[int, int, int, int] | None,
        logits: NDArray[np.float32] | None,
        multimask: bool,
    ) -> Answer:
        """See `Segmenter`."""
        clicked = {"points": np.array(points), "labels": np.array(labels)} if points else {}
        result = self.model.decode(self.features, Prompts(**clicked, boxes=box, masks=logits), multimask=multimask)
        best = int(result.scores[0].argmax())
        return Answer(result.masks[0, best], float(result.scores[0, best]), result.logits[0, best])


class TorchSegmenter:
    """The PyTorch module, with the predictor's steps written out a second time: a check on the runtime's."""

    def __init__(self, model: Sam2) -> None:
        self.model = model.eval()

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """See `Segmenter`."""
        self.size_hw = image.shape[:2]
        side = self.model.config.image_size
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        if self.size_hw != (side, side):
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        with torch.inference_mode():
            self.maps = self.model.encode(pixels.permute(0, 2, 3, 1))
            self.position = self.model.sam_prompt_encoder.dense_position()

    def segment(
        self,
        points: list[tuple[int, int]],
        labels: list[int],
        box: tuple[int, int, int, int] | None,
        logits: NDArray[np.float32] | None,
        multimask: bool,
    ) -> Answer:
        """See `Segmenter`."""
        corners = [] if box is None else [(box[0], box[1]), (box[2], box[3])]
        xy = torch.tensor([*corners, *points], dtype=torch.float32).reshape(1, -1, 2)
        height, width = self.size_hw
        coords = xy / torch.tensor([width, height]) * self.model.config.image_size
        codes = torch.tensor([[*([2, 3] if corners else []), *labels, -1]], dtype=torch.int32)
        coords = torch.cat((coords, torch.zeros(1, 1, 2)), dim=1)
        side = self.model.config.mask_size
        mask = torch.zeros(1, 1, side, side) if logits is None else torch.from_numpy(logits)[None, None]
        encoder, (image, fine, middle) = self.model.sam_prompt_encoder, self.maps
        with torch.inference_mode():
            dense = encoder.embed_masks(mask, torch.tensor([float(logits is not None)]))
            sparse = encoder.embed_points(coords, codes)
            masks, scores, _, _ = self.model.sam_mask_decoder(
                image + dense, self.position, sparse, (fine, middle), (self.model.config.embed_size,) * 2
            )
            choice = self._choose(masks[0], scores[0], multimask)
            full = F.interpolate(masks[:, choice, None], size=self.size_hw, mode="bilinear", align_corners=False)
        return Answer((full[0, 0] > 0).numpy(), float(scores[0, choice]), masks[0, choice].clamp(-32, 32).numpy())

    @staticmethod
    def _choose(masks: torch.Tensor, scores: torch.Tensor, multimask: bool) -> int:
        """masks: (4, h, w), scores: (4,) -> the candidate shown: token 0 when stable, else the best of the others."""
        inner, outer = int((masks[0] > 0.05).sum()), int((masks[0] > -0.05).sum())
        if not multimask and (outer == 0 or inner / outer >= 0.98):
            return 0
        return 1 + int(scores[1:].argmax())
