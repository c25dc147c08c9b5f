"""A bundle that proposes masks, loaded: a picture in, all its masks out. No hidden state."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import NoReturn

from samrt.bundle import open_bundle
from samrt.images import Image, as_rgb_uint8
from samrt.manifest import Manifest
from samrt.numbers import ProposalNumbers
from samrt.opening import OpenGraph, open_graph, open_plan_graphs
from samrt.proposals.detections import BOXES, COEFFICIENTS, IMAGE, PROTOTYPES, SCORES, find_detections
from samrt.proposals.letterbox import Letterbox
from samrt.proposals.painting import paint_segments
from samrt.segments import Segments
from samrt_engines.choice import Decision
from samrt_engines.closing import ClosesItself
from samrt_engines.errors import BundleError, InputError, ManifestError
from samrt_engines.executor import Executor

DETECTOR = "detector"


class ProposalModel(ClosesItself):
    """A loaded model. Every call stands alone, so one model may be used from many threads at once.

    Close it, or use it in a ``with`` statement, to free the engine's memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        *,
        precision: str | None = None,
        allow_unverified: bool = False,
    ) -> None:
        """Open a bundle. Arguments as in `samrt.load`.

        Raises BundleError (ManifestError, ChecksumError, UnsafePathError) for a folder that is no sound bundle of such a
        model, BackendError, PlanError, SelfTestError.
        """
        self._bundle = open_bundle(path)
        self._numbers = check_proposals(self._bundle.manifest)
        self._resources = ExitStack()
        if backend == "tensorrt":
            graphs, self._resources = open_plan_graphs(
                self._bundle, (DETECTOR,), device=device, allow_unverified=allow_unverified
            )
            self._graph: OpenGraph = graphs[DETECTOR]
        else:
            self._graph = open_graph(
                self._bundle, DETECTOR, backend=backend, device=device, threads=threads, precision=precision
            )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about the model."""
        return self._bundle.manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which binds all files: the identity of the model."""
        return self._bundle.digest

    @property
    def executors(self) -> Mapping[str, Executor]:
        """Graph -> its executor, for measuring it."""
        return {DETECTOR: self._graph.executor}

    @property
    def providers(self) -> dict[str, str]:
        """Graph -> what it really runs on, as read back from the backend: "CPUExecutionProvider"."""
        return {DETECTOR: self._graph.executor.provider}

    @property
    def precisions(self) -> dict[str, str]:
        """Graph -> what it computes in."""
        return {DETECTOR: self._graph.precision}

    @property
    def decisions(self) -> dict[str, Decision]:
        """Graph -> how "auto" chose its backend, where it measured."""
        return {} if self._graph.decision is None else {DETECTOR: self._graph.decision}

    @property
    def device(self) -> str:
        """Where the model runs: "cpu" or "cuda"."""
        return self._graph.executor.device.partition(":")[0]

    def propose(
        self,
        image: Image,
        confidence: float | None = None,
        iou: float | None = None,
        *,
        max_detections: int | None = None,
    ) -> Segments:
        """Find the masks of a picture.

        image: uint8 (H, W, 3) RGB; also whatever else `samrt.as_rgb_uint8` takes, among it PIL images
        confidence: what a mask's score has to exceed, 0..1; None is the model's own
        iou: of two boxes that share more than this, 0..1, the one with the lower score is dropped; None is the model's own
        max_detections: how many masks at most; None is the model's own
        returns: `Segments`, best score first; none for a picture in which nothing is found
        Raises ImageError for what is not a picture, InputError for a threshold outside its range, BackendError when the
        backend fails or the model is closed.
        """
        picture = as_rgb_uint8(image)
        numbers = _with_limits(self._numbers, confidence, iou, max_detections)
        letterbox = Letterbox((picture.shape[0], picture.shape[1]), numbers)
        outputs = self._graph.executor.run({IMAGE: letterbox.image_to_input(picture)[None]})
        found = find_detections(outputs, letterbox, numbers)
        return paint_segments(found, outputs[PROTOTYPES][0], letterbox)

    def close(self) -> None:
        """Free the engine's memory. Closing twice is fine; `propose` then raises BackendError."""
        self._graph.executor.close()
        self._resources.close()


def check_proposals(manifest: Manifest) -> ProposalNumbers:
    """The numbers of a bundle that proposes masks, after a look at its graph.

    Raises BundleError for a bundle of another kind, ManifestError for a graph that is not such a detector.
    """
    if manifest.proposals is None:
        _refuse_kind(manifest)
    height, width = manifest.proposals.size_hw
    graph = manifest.graphs.get(DETECTOR)
    if graph is None:
        _refuse("graphs", ", ".join(manifest.graphs), DETECTOR)
    wanted_input = (1, height, width, 3)
    if [(spec.name, spec.dtype, spec.shape) for spec in graph.inputs] != [(IMAGE, "float32", wanted_input)]:
        _refuse("graphs.detector.inputs", ", ".join(map(str, graph.inputs)), f"'{IMAGE}': float32 {wanted_input}")
    shapes = {spec.name: spec.shape for spec in graph.outputs if spec.dtype == "float32"}
    missing = [name for name in (BOXES, SCORES, COEFFICIENTS, PROTOTYPES) if name not in shapes]
    if missing:
        _refuse("graphs.detector.outputs", ", ".join(map(str, graph.outputs)), f"float32 {', '.join(missing)}")
    anchors = shapes[BOXES][-1]
    channels, *map_hw = shapes[PROTOTYPES][1:]
    right = {
        BOXES: (1, 4, anchors),
        SCORES: (1, 1, anchors),
        COEFFICIENTS: (1, channels, anchors),
        PROTOTYPES: (1, channels, *map_hw),
    }
    sizes = (anchors, channels, *map_hw)
    if shapes | right != shapes or len(map_hw) != 2 or not all(isinstance(size, int) for size in sizes):
        _refuse(
            "graphs.detector.outputs",
            ", ".join(map(str, graph.outputs)),
            "boxes (1, 4, A), scores (1, 1, A), coefficients (1, C, A), prototypes (1, C, h, w) of fixed sizes",
        )
    return manifest.proposals


def _with_limits(
    numbers: ProposalNumbers, confidence: float | None, iou: float | None, max_detections: int | None
) -> ProposalNumbers:
    """The model's numbers with the caller's in their place. Raises InputError."""
    confidence = numbers.confidence if confidence is None else float(confidence)
    iou = numbers.iou if iou is None else float(iou)
    most = numbers.max_detections if max_detections is None else max_detections
    for name, value in (("confidence", confidence), ("iou", iou)):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise InputError(f"{name} is out of range", got=f"{value}", expected="a number from 0 to 1")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InputError("max_detections is out of range", got=f"{most!r}", expected="a whole number from 1")
    return replace(numbers, confidence=confidence, iou=iou, max_detections=most)


def _refuse_kind(manifest: Manifest) -> NoReturn:
    """Say what a bundle of another kind is for."""
    if manifest.prompted is not None:
        fix = "samrt.load(bundle) for prompts, samrt.AutomaticMaskGenerator(model) for all masks of a picture"
    elif manifest.reconstruction is not None:
        fix = "samrt.Reconstructor(bundle), or on the command line: samrt reconstruct IMAGE MASK -b BUNDLE"
    else:
        fix = "export a model that proposes masks: samrt export fast-sam-s --checkpoint FastSAM-s.onnx -o DIR"
    raise BundleError(
        f"{manifest.source.model} does not propose masks by itself",
        got=f"a bundle whose abilities are {', '.join(manifest.abilities)}",
        expected="a bundle of a model like fast-sam-s",
        fix=fix,
    )


def _refuse(place: str, got: str, expected: str) -> NoReturn:
    raise ManifestError(f"manifest.json: {place}", got=got, expected=expected, fix="samrt export, once more")
