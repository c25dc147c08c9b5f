"""Where the candidates went: what says why a picture has few masks, or none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many masks of one picture each filter took out. Every mask counts once, at the first filter it did not pass."""

    candidates: int
    """Masks that the model gave, before any filter."""
    below_pred_iou_thresh: int
    """Expected IoU not above `pred_iou_thresh`."""
    below_stability_score_thresh: int
    """Of the others: less stable than `stability_score_thresh`."""
    cut_off: int
    """Of the others: cut off by an edge of their crop."""
    duplicates: int
    """Of the others: those whose box a better one has, by `box_nms_thresh` and `crop_nms_thresh`."""
