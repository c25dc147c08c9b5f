"""What is measured of a model that proposes masks: its detector, what the host makes of it, and the choice among the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt.bench.contenders import Outputs
from samrt.bench.tasks import ENCODE, Arrays, GraphTask, clicks, middle_box
from samrt.manifest import Manifest
from samrt.proposals.detections import IMAGE, PROTOTYPES, find_detections
from samrt.proposals.letterbox import Letterbox
from samrt.proposals.model import DETECTOR, ProposalModel
from samrt.proposals.painting import paint_segments
from samrt.proposals.selection import select_box, select_points
from samrt.segments import Segments
from samrt_engines.errors import BackendError, BundleError

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class ProposalTask:
    """What a user does with such a model. graph: the one that runs; None where all of it is done on the host."""

    name: str
    graph: str | None
    run: Callable[[], Outputs]
    batch: int = 1
    """Pictures, or prompts."""


def check_proposal_bench(manifest: Manifest, against: Sequence[str], video: bool) -> None:
    """Refuse what a model that proposes masks cannot be measured with; all other models pass.

    Raises BackendError for references, BundleError for video.
    """
    if manifest.proposals is None:
        return
    if against:
        raise BackendError(
            f"there is nothing to measure {manifest.source.model} against",
            got=", ".join(against),
            expected="no reference: a model that proposes masks comes as an ONNX file, without PyTorch code",
            fix="samrt bench BUNDLE, without --against",
        )
    if video:
        raise BundleError(
            f"{manifest.source.model} cannot track",
            got=f"a bundle whose abilities are {', '.join(manifest.abilities)}",
            expected="a bundle with the ability 'video'",
            fix="samrt bench BUNDLE, without --video",
        )


def proposal_tasks(model: ProposalModel, picture: Picture, segments: Segments) -> list[GraphTask | ProposalTask]:
    """The detector; each half of a proposal and the whole, at the model's own thresholds; a click and a box.

    picture: uint8 (H, W, 3)
    segments: what the model finds in it, which the prompts choose from
    """
    letterbox = _letterbox(model, picture)
    feeds = _feeds(letterbox, picture)
    outputs = model.executors[DETECTOR].run(feeds)
    click, box = clicks(picture, 1), middle_box(picture)
    return [
        GraphTask(DETECTOR, 1, feeds),
        ProposalTask(ENCODE, DETECTOR, lambda: detect(model, picture)),
        ProposalTask("post-process", None, lambda: _scores(post_process(outputs, letterbox))),
        ProposalTask("everything", DETECTOR, lambda: _scores(model.propose(picture))),
        ProposalTask("click, 1 mask", None, lambda: _masks(select_points(segments, click.points[0], click.labels[0]))),
        ProposalTask("box, 1 mask", None, lambda: _masks(select_box(segments, box.boxes[0]))),
    ]


def detect(model: ProposalModel, picture: Picture) -> Outputs:
    """The first half of `ProposalModel.propose`: letterbox a picture, run the detector. Returns its outputs by name."""
    return model.executors[DETECTOR].run(_feeds(_letterbox(model, picture), picture))


def post_process(outputs: Outputs, letterbox: Letterbox) -> Segments:
    """The second half: the detector's outputs to masks of the picture's size, on the host."""
    return paint_segments(find_detections(outputs, letterbox, letterbox.numbers), outputs[PROTOTYPES][0], letterbox)


def propose_and_click(model: ProposalModel, picture: Picture) -> NDArray[np.bool_]:
    """All masks of a picture, and the one under its middle: bool (H, W)."""
    click = clicks(picture, 1)
    return select_points(model.propose(picture), click.points[0], click.labels[0])


def _letterbox(model: ProposalModel, picture: Picture) -> Letterbox:
    assert model.manifest.proposals is not None
    return Letterbox((picture.shape[0], picture.shape[1]), model.manifest.proposals)


def _feeds(letterbox: Letterbox, picture: Picture) -> Arrays:
    return {IMAGE: letterbox.image_to_input(picture)[None]}


def _scores(segments: Segments) -> Outputs:
    return {"scores": segments.scores}


def _masks(mask: NDArray[np.bool_]) -> Outputs:
    return {"masks": mask[None, None]}
