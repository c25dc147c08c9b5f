"""From what the detector says about its anchors to the few boxes that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samrt.nms import nms
from samrt.numbers import ProposalNumbers
from samrt.proposals.letterbox import Letterbox

Float32Array = NDArray[np.float32]

IMAGE = "image"
BOXES, SCORES, COEFFICIENTS, PROTOTYPES = "boxes", "scores", "coefficients", "prototypes"


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes that stayed, best score first.

    boxes: float32 (M, 4) xyxy, input pixels
    scores: float32 (M,)
    coefficients: float32 (M, 32), of the prototypes that add up to a mask
    """

    boxes: Float32Array
    scores: Float32Array
    coefficients: Float32Array

    def __len__(self) -> int:
        return len(self.scores)


def find_detections(outputs: Mapping[str, Float32Array], letterbox: Letterbox, numbers: ProposalNumbers) -> Detections:
    """Filter by score, drop what overlaps, keep the best, and give whole-picture boxes the whole picture.

    outputs: of the detector: boxes (1, 4, A) as centre and size in input pixels, scores (1, 1, A), coefficients (1, 32, A)
    numbers: `confidence` a score has to exceed, `iou` two boxes may share, `max_detections`
    """
    scores = outputs[SCORES][0, 0]
    chosen = np.flatnonzero(scores > np.float32(numbers.confidence))
    centre, size = np.split(outputs[BOXES][0][:, chosen].T, 2, axis=1)  # (N, 2) each
    half = size / np.float32(2)
    boxes: Float32Array = np.concatenate((centre - half, centre + half), axis=1)
    sound = np.isfinite(boxes).all(axis=1) & (size > 0).all(axis=1)  # an overflow in half precision is no box
    chosen, boxes = chosen[sound], boxes[sound]
    kept = nms(boxes, scores[chosen], numbers.iou)[: numbers.max_detections]
    chosen = chosen[kept]
    found = Detections(boxes[kept], scores[chosen], outputs[COEFFICIENTS][0].T[chosen])
    return replace(found, boxes=fill_frame(found.boxes, letterbox, numbers))


def fill_frame(boxes: Float32Array, letterbox: Letterbox, numbers: ProposalNumbers) -> Float32Array:
    """Turn boxes that are nearly the whole picture into exactly that.

    Edges at most `full_frame_edge_px` input pixels from the picture's are put on them; a box whose IoU with the picture
    is then above `full_frame_iou` becomes the picture's frame. All others stay as they were.

    boxes: float32 (M, 4) xyxy, input pixels
    """
    (top, left), (height, width) = letterbox.offset_yx, letterbox.content_hw
    frame = np.array([left, top, left + width, top + height], np.float32)
    near = np.abs(boxes - frame) <= numbers.full_frame_edge_px
    snapped = np.where(near, frame, boxes)
    sides = np.minimum(snapped[:, 2:], frame[2:]) - np.maximum(snapped[:, :2], frame[:2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(snapped[:, 2:] - snapped[:, :2], axis=1) + np.float32(width * height) - shared
    return np.where((shared > numbers.full_frame_iou * union)[:, None], frame, boxes)
