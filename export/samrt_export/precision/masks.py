"""What a narrow precision costs in masks: nano's answers on held-out pictures, against those of its fp32 graphs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import samrt
from samrt import Model, Prompts
from samrt.bundle import Bundle, open_bundle
from samrt.graphs import choose_form
from samrt.manifest import MANIFEST_NAME, Form
from samrt_engines.errors import BundleError
from samrt_export.nano.clicks import box_around, innermost_point
from samrt_export.nano.evaluate import held_out, iou
from samrt_export.nano.scenes import Frame
from samrt_export.precision.emulate import runnable
from samrt_export.progress import Progress, silent
from samrt_export.writer import write_file, write_manifest

BARS = {"fp16": (0.998, 0.98), "int8": (0.99, 0.0)}
"""Precision -> smallest mean, and smallest single IoU, of the answers."""


@dataclass(frozen=True)
class MaskAgreement:
    """IoU with the fp32 masks over every prompt: a click into each visible shape, and its box.

    mean, smallest: of the answers, that is the candidate with the best score on each side. candidates_mean,
    candidates_smallest: of every candidate with its fp32 counterpart, also those that nobody is shown. changed: prompts
    answered by another candidate.
    """

    precision: str
    pictures: int
    prompts: int
    mean: float
    smallest: float
    candidates_mean: float
    candidates_smallest: float
    changed: int

    @property
    def ok(self) -> bool:
        """Whether the bars of `BARS` hold; a precision without bars is only reported."""
        mean, smallest = BARS.get(self.precision, (0.0, 0.0))
        return self.mean >= mean and self.smallest >= smallest

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return asdict(self) | {"ok": self.ok}


def compare_masks(
    reference: Model, others: Mapping[str, Model], count: int = 500, progress: Progress = silent
) -> tuple[MaskAgreement, ...]:
    """Ask the fp32 model and others (precision -> model) the same about ``count`` held-out pictures."""
    answers: dict[str, list[float]] = {name: [] for name in others}
    candidates: dict[str, list[float]] = {name: [] for name in others}
    changed = dict.fromkeys(others, 0)
    for index, frame in enumerate(held_out(count)):
        if index % 10 == 0:
            progress("masks", index, count)
        wanted = list(_answers(reference, frame))
        for name, other in others.items():
            for (theirs, best), (ours, chosen) in zip(wanted, _answers(other, frame), strict=True):
                changed[name] += int((best != chosen).sum())
                candidates[name] += [iou(a, b) for a, b in zip(_flat(ours), _flat(theirs), strict=True)]
                rows = zip(ours, chosen, theirs, best, strict=True)
                answers[name] += [iou(mask[one], other_mask[two]) for mask, one, other_mask, two in rows]
    progress("masks", count, count)
    return tuple(
        MaskAgreement(
            name,
            count,
            len(answers[name]),
            float(np.mean(answers[name])),
            float(np.min(answers[name])),
            float(np.mean(candidates[name])),
            float(np.min(candidates[name])),
            changed[name],
        )
        for name in others
    )


def _answers(model: Model, frame: Frame) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """Masks (P, C, H, W) and the best one's index (P,), for a click into each shape, then for the box of each."""
    features = model.encode(frame.image)
    shapes = [frame.mask(label) for label in frame.visible]
    points = np.array([[innermost_point(shape)] for shape in shapes])  # (P, 1, 2)
    boxes = np.array([box_around(shape) for shape in shapes])  # (P, 4)
    for asked in (Prompts(points=points, labels=np.ones(points.shape[:2], int)), Prompts(boxes=boxes)):
        result = model.decode(features, asked, multimask=True)
        yield result.masks, result.scores.argmax(1)


def _flat(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P, C, H, W) -> (P * C, H, W)."""
    return masks.reshape(-1, *masks.shape[2:])


@contextmanager
def open_forms(path: Path, precision: str, forms: Mapping[str, bytes] | None = None) -> Iterator[Model]:
    """A bundle's model on ONNX Runtime's CPU, of the forms of one precision; typed ones are emulated.

    Graphs without a form of that precision run in fp32. forms: graph -> ONNX file to run instead. The chosen files pass
    through a temporary bundle, so that the model is loaded as any other is.
    Raises BundleError when no graph has the precision.
    """
    bundle = open_bundle(path)
    chosen = {name: _form(bundle, name, precision) for name in bundle.manifest.graphs}
    if not forms and not any(form.precision == precision for form in chosen.values()):
        stored = sorted({form.precision for graph in bundle.manifest.graphs.values() for form in graph.forms})
        raise BundleError("the bundle has no graph of this precision", got=precision, expected=", ".join(stored))
    document = json.loads((path / MANIFEST_NAME).read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        for name, form in chosen.items():
            content = runnable((forms or {}).get(name) or bundle.read_model(form))
            entry = document["graphs"][name]
            (record,) = (one for one in entry["forms"] if one["file"] == form.file.file)
            content = content if isinstance(content, bytes) else content.read_bytes()
            entry["forms"] = [record | write_file(Path(folder), f"{name}.onnx", content) | {"targets": []}]
        write_manifest(Path(folder), document)
        with samrt.load(folder, "onnxruntime", device="cpu") as model:
            yield model


def _form(bundle: Bundle, name: str, precision: str) -> Form:
    """The form of a graph with this precision, or the one that a CPU would take."""
    graph = bundle.manifest.graphs[name]
    exact = [form for form in graph.forms if form.precision == precision]
    return exact[-1] if exact else choose_form(graph, name, "onnxruntime", "cpu")
