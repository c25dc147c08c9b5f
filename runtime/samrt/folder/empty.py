"""What to tell somebody whose pictures have no masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samrt.manifest import Manifest


def hint_of_candidates(empty: Mapping[str, Mapping[str, int]], settings: Mapping[str, Any]) -> str:
    """Of pictures without masks: how many candidates each filter took out, and which options to lower.

    Duplicates are not named: where one was dropped, the better one stayed.

    empty: picture -> `samrt.automatic.Dropped` as a dictionary; at least one
    settings: the thresholds, by name
    """
    totals = {name: sum(counts[name] for counts in empty.values()) for name in next(iter(empty.values()))}
    filters = [
        (totals["below_pred_iou_thresh"], "not above", "pred_iou_thresh"),
        (totals["below_stability_score_thresh"], "below", "stability_score_thresh"),
    ]
    met = sorted((one for one in filters if one[0]), reverse=True)
    parts = [f"{count} {how} {name} {settings[name]:g}" for count, how, name in met]
    parts += [f"{totals['cut_off']} cut off by their crop"] if totals["cut_off"] else []
    lower = f"; lower {' or '.join(_option(name) for _, _, name in met)}" if met else ""
    return f"no mask in {_told(empty)}: of {totals['candidates']} candidates {', '.join(parts)}{lower}"


def hint_of_proposals(empty: Mapping[str, Any], confidence: float | None, manifest: Manifest) -> str:
    """The same for a model that proposes masks. confidence: as asked for; None is the model's own"""
    if confidence is None and manifest.proposals is not None:
        confidence = manifest.proposals.confidence
    return f"no mask in {_told(empty)}: none above confidence {confidence:g}; lower {_option('confidence')}"


def _told(empty: Mapping[str, Any]) -> str:
    return next(iter(empty)) if len(empty) == 1 else f"{len(empty)} pictures"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
