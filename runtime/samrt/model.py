"""A bundle, loaded: pictures to features, features and prompts to masks. No hidden state."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from samrt.bundle import Bundle, open_bundle
from samrt.features import Features
from samrt.flow import Flow, readable, rows
from samrt.graphs import (
    GRAPHS,
    HQ_MASKS,
    IMAGE_ENCODER,
    MASK_DECODER,
    MASKS,
    OBJECT_SCORES,
    PROMPT_ENCODER,
    SCORES,
    absent_mask_hw,
    check_graphs,
    largest,
)
from samrt.images import Image, as_rgb_uint8
from samrt.manifest import Manifest
from samrt.masks import Candidates, choose_candidates, clean_masks, hq_candidates
from samrt.opening import OpenGraph, open_graph, open_plan_graphs
from samrt.prompts import Prompts, to_tensors
from samrt.result import Result
from samrt.transforms import Frame, image_to_input
from samrt_engines.choice import Decision
from samrt_engines.closing import ClosesItself
from samrt_engines.errors import BackendError, ImageError, InputError, ManifestError, PromptError
from samrt_engines.executor import Executor

_PROMPTS_ON_CPU = 16
"""Prompts of one run there. More are no faster, and of SAM ViT-B 64 take 4.0 GB where 16 take 1.5."""
_OBJECT_ASSUMED = 10.0  # what upstream takes for models without an object score: present


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    allow_unverified: bool = False,
) -> Model:
    """Load a bundle, checking every file it uses.

    path: the folder that ``samrt export`` wrote
    backend: "onnxruntime", "openvino", "tensorrt", or "auto": on a GPU ONNX Runtime; on a CPU whichever runs each graph
        fastest with the same answer, measured for a few seconds the first time and remembered (`Model.decisions`)
    device: "cpu", "cuda", "cuda:N", or "auto": CUDA where the backend has it and a GPU answers, else the CPU
    threads: CPU threads one run uses; None leaves it to the backend
    precision: "fp32" or "bf16" where the backend can choose (OpenVINO); None is fp32 there, else what the graphs are in
    allow_unverified: run TensorRT plans without the self-test that shows that they answer rightly on this GPU

    Raises BundleError (ManifestError, ChecksumError, UnsafePathError) for a folder that is not a sound bundle,
    BackendError (MissingExtraError, ProviderError, DeviceError) for a backend or device that cannot be had, PlanError for
    a plan that `samrt build` did not make for this machine, SelfTestError for one whose answers are wrong. Nothing falls
    back silently.
    """
    bundle = open_bundle(path)
    check_graphs(bundle.manifest)
    if backend == "tensorrt":  # all at once: they share scratch memory
        names = tuple(bundle.manifest.graphs)
        return Model(bundle, *open_plan_graphs(bundle, names, device=device, allow_unverified=allow_unverified))
    open_one = partial(open_graph, bundle, backend=backend, device=device, threads=threads, precision=precision)
    return Model(bundle, _open_all(GRAPHS, open_one), open_graph=open_one)


def check_prompted(model: object, what: str) -> None:
    """Refuse what is not a `Model`, saying what it is for. what: that needs one. Raises InputError."""
    if isinstance(model, Model):
        return
    of_its_own = "model.propose(image) finds all masks by itself; samrt.proposals chooses among them"
    raise InputError(
        f"{what} needs a model that is prompted",
        got=type(model).__name__,
        expected="what samrt.load returns",
        fix=of_its_own if hasattr(model, "propose") else "samrt.load(path)",
    )


class Model(ClosesItself):
    """A loaded model. Every call stands alone, so one model may be used from many threads at once.

    Made by `load`. Close it, or use it in a ``with`` statement, to free the engines' memory. Features stay usable as
    data; those on a GPU hold their memory there until they are gone.
    """

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, OpenGraph],
        resources: ExitStack | None = None,
        *,
        open_graph: Callable[[str], OpenGraph] | None = None,
    ) -> None:
        """graphs: the open ones; resources: closed after the executors: what they share; open_graph: opens another one"""
        self._bundle = bundle
        self._resources = resources or ExitStack()
        self._open_graph = open_graph
        self._opening = threading.Lock()
        self._closed = False
        self._graphs = dict(graphs)
        self._executors = {name: graph.executor for name, graph in graphs.items()}
        self._flow = Flow(self._executors)
        encoder, prompter, decoder = (bundle.manifest.graphs[name] for name in GRAPHS)
        embeddings = {spec.name for spec in prompter.outputs}
        # The tensors that link the graphs, and how much of each kind one run takes.
        self._image_tensors = [spec.name for spec in decoder.inputs if spec.name not in embeddings]
        self._inputs = [spec.name for spec in decoder.inputs]
        made = {spec.name for spec in decoder.outputs}
        self._gives_hq_masks = HQ_MASKS in made
        self._scores = [name for name in (SCORES, OBJECT_SCORES) if name in made]
        self._most_images = largest(encoder, encoder.inputs[0].name, axis=0)
        self._absent_mask_hw = absent_mask_hw(bundle.manifest)
        self._most_points = largest(prompter, "point_coords", axis=1)
        decoder_limits = {name: largest(decoder, name, axis=0) for name in self._inputs}
        prompt_limits = [decoder_limits[name] for name in self._inputs if name in embeddings]
        self._most_prompts = min([largest(prompter, "point_coords", axis=0), *prompt_limits])
        if self._flow.place(MASK_DECODER) == "cpu":
            self._most_prompts = min(self._most_prompts, _PROMPTS_ON_CPU)
        self._most_pairs = min([self._most_prompts, *decoder_limits.values()])  # where each prompt has its own picture

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
        """Graph -> its executor, for measuring graphs one by one."""
        return dict(self._executors)

    def open_graphs(self, names: Sequence[str]) -> Flow:
        """Open further graphs of the bundle, as `load` opened the first ones, and return what runs all that are open.

        What a picture needs is open from the start. Other abilities ask for theirs when they are used (a `VideoTracker` for
        the memory graphs), so that nobody waits for what he does not need.
        Raises ManifestError for a graph that the bundle does not have, and what `load` raises.
        """
        with self._opening:
            if self._closed:
                raise BackendError("the model is closed", expected="an open model", fix="samrt.load(...)")
            missing = [name for name in names if name not in self._executors]
            unknown = [name for name in missing if self._open_graph is None or name not in self.manifest.graphs]
            if unknown:
                raise ManifestError(
                    f"{self.manifest.source.model}: the bundle has no {', '.join(unknown)}",
                    got=f"graphs {', '.join(self.manifest.graphs)}",
                    expected=", ".join(names),
                    fix="export a model that can do this, with this version of samrt: samrt models lists what each can do",
                )
            assert self._open_graph is not None or not missing
            opened = _open_all(missing, self._open_graph) if self._open_graph is not None else {}
            # New dictionaries: others may be reading the old ones.
            self._graphs = self._graphs | opened
            self._executors = self._executors | {name: graph.executor for name, graph in opened.items()}
            return Flow(self._executors)

    @property
    def providers(self) -> dict[str, str]:
        """Graph -> what it really runs on, as read back from the backend: "CPUExecutionProvider"."""
        return {name: executor.provider for name, executor in self._executors.items()}

    @property
    def precisions(self) -> dict[str, str]:
        """Graph -> what it computes in, as read back from a backend that chooses: "fp32"."""
        return {name: graph.precision for name, graph in self._graphs.items()}

    @property
    def decisions(self) -> dict[str, Decision]:
        """Graph -> how "auto" chose its backend, where it measured: times, errors, what was refused and why."""
        return {name: graph.decision for name, graph in self._graphs.items() if graph.decision is not None}

    @property
    def device(self) -> str:
        """Where the model runs: "cpu" or "cuda"."""
        return self._executors[MASK_DECODER].device.partition(":")[0]

    def encode(self, image: Image | Sequence[Image]) -> Features:
        """Encode a picture, or a list of B pictures of any sizes as one batch.

        image: uint8 (H, W, 3) RGB; also whatever else `samrt.as_rgb_uint8` takes, among it PIL images
        returns: frozen `Features`, B = 1 for a single picture. Where encoder and decoder run on one GPU they lie there;
            those of a list longer than the model's largest batch, which runs in parts, are joined on the host
        Raises ImageError for what is not a picture, BackendError when the backend fails or the model is closed.
        """
        images = [as_rgb_uint8(one) for one in image] if isinstance(image, list | tuple) else [as_rgb_uint8(image)]
        if not images:
            raise ImageError("there is no picture", got="an empty list", expected="one picture or more")
        image_hw = tuple((one.shape[0], one.shape[1]) for one in images)
        encoder = self._executors[IMAGE_ENCODER]
        tensors = self._encode_all(images)
        return Features(tensors, image_hw, self.digest, encoder.provider, self.precisions[IMAGE_ENCODER])

    def decode(
        self,
        features: Features,
        prompts: Prompts,
        multimask: bool = True,
        *,
        image_index: int | None = None,
        fill_hole_area: float = 0,
        remove_sprinkle_area: float = 0,
        mask_threshold: float | None = None,
        hq_token_only: bool = False,
    ) -> Result:
        """Answer P prompts with masks.

        features: of one picture, which all prompts then point at; or of P pictures, one for each prompt
        multimask: several candidates for each prompt (for ambiguous ones, like a single click), or a single one
        image_index: use only this picture of the features
        fill_hole_area, remove_sprinkle_area: largest holes to fill and specks to remove, in low-res pixels; 0 is off
        mask_threshold: where a logit becomes mask; None is the model's own
        hq_token_only: of SAM-HQ models: the HQ mask alone, where they otherwise give it added to SAM's. One for each prompt,
            with the score of SAM's single mask, or with `multimask` of the best of several

        returns: `Result`; more prompts than the model takes at once run in parts, with the same answer
        Raises PromptError for prompts that do not fit the pictures or the model, ImageError for features of another
        model, InputError for hq_token_only of a model that cannot, BackendError when the backend fails or the model is
        closed.
        """
        if features.model_digest != self.digest:
            raise ImageError(
                "these features are of another model",
                got=f"features of bundle {features.model_digest[:12]}",
                expected=f"bundle {self.digest[:12]}, {self.manifest.source.model}",
                fix="encode the picture with this model: model.encode(image)",
            )
        if image_index is not None:
            features = features[image_index]
        numbers = self.manifest.numbers
        threshold = numbers.masks.threshold if mask_threshold is None else float(mask_threshold)
        _check_options(features, prompts, threshold, fill_hole_area, remove_sprinkle_area)
        frames = tuple(Frame(hw, numbers.image) for hw in features.image_hw)
        if hq_token_only and not self._gives_hq_masks:
            self._refuse_hq_masks()
        candidates, object_scores = self._decode_all(features, prompts, frames, multimask, hq_token_only)
        clamp = np.float32(numbers.masks.logits_clamp)
        return Result(
            scores=candidates.scores,
            logits=np.clip(candidates.logits, -clamp, clamp),
            object_scores=object_scores,
            mask_logits=clean_masks(
                candidates.logits,
                fill_hole_area=fill_hole_area,
                remove_sprinkle_area=remove_sprinkle_area,
                threshold=threshold,
            ),
            frames=frames,
            mask_threshold=threshold,
            provider=self._executors[MASK_DECODER].provider,
            precision=self.precisions[MASK_DECODER],
        )

    def close(self) -> None:
        """Free the engines' memory. Closing twice is fine; encode and decode then raise BackendError."""
        with self._opening:
            self._closed = True
            for executor in self._executors.values():
                executor.close()
            self._resources.close()

    def _encode_all(self, images: Sequence[NDArray[np.uint8]]) -> Mapping[str, NDArray[Any]]:
        """The image tensors. What fits into one run stays on the GPU that the decoder runs on; more would fill it up."""
        most, names = self._most_images, self._image_tensors
        if len(images) <= most and self._flow.place(IMAGE_ENCODER) == self._flow.place(MASK_DECODER):
            return readable(self._flow.run_device(IMAGE_ENCODER, self._pictures(images), names))
        batches = (self._pictures(images[start : start + most]) for start in range(0, len(images), most))
        parts = [self._flow.run(IMAGE_ENCODER, batch, names) for batch in batches]
        return readable({name: _joined([part[name] for part in parts]) for name in names})

    def _pictures(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """One batch, as the image encoder takes it."""
        spec = self.manifest.graphs[IMAGE_ENCODER].inputs[0]
        inputs = [image_to_input(image, self.manifest.numbers.image, spec.dtype) for image in images]
        return {spec.name: inputs[0][None] if len(inputs) == 1 else np.stack(inputs)}

    def _decode_all(
        self, features: Features, prompts: Prompts, frames: tuple[Frame, ...], multimask: bool, hq_token_only: bool
    ) -> tuple[Candidates, NDArray[np.float32]]:
        """Run the prompts through prompt encoder and mask decoder, in parts where there are too many for one run."""
        numbers = self.manifest.numbers
        tensors = to_tensors(prompts, frames, numbers.prompts, self._most_points, self._absent_mask_hw)
        images = features.feeds(self._flow.place(MASK_DECODER))
        most = self._most_prompts if len(features) == 1 else self._most_pairs
        masks, choose = (HQ_MASKS, hq_candidates) if hq_token_only else (MASKS, choose_candidates)
        chosen: list[Candidates] = []
        object_scores: list[NDArray[np.float32]] = []
        for start in range(0, len(prompts), most):
            part = slice(start, start + most)
            known = self._flow.run_device(PROMPT_ENCODER, {name: tensor[part] for name, tensor in tensors.items()})
            for name, tensor in images.items():
                known[name] = tensor if len(features) == 1 else rows(tensor, start, start + most)
            feeds = {name: known[name] for name in self._inputs}
            outputs = self._flow.run(MASK_DECODER, feeds, [masks, *self._scores])
            chosen.append(choose(outputs[masks], outputs[SCORES], numbers.masks, multimask=multimask))
            assumed = np.full((len(outputs[SCORES]), 1), _OBJECT_ASSUMED, np.float32)
            object_scores.append(outputs.get(OBJECT_SCORES, assumed)[:, 0])
        logits = _joined([one.logits for one in chosen])
        return Candidates(logits, _joined([one.scores for one in chosen])), _joined(object_scores)

    def _refuse_hq_masks(self) -> NoReturn:
        raise InputError(
            f"{self.manifest.source.model}: this bundle cannot give the HQ mask alone",
            got=f"hq_token_only, of a mask_decoder without the output {HQ_MASKS}",
            expected="a bundle of SAM-HQ or Light HQ-SAM (sam-hq-vit-b, -l, -h, -tiny) that has it; older ones do not",
            fix="leave hq_token_only out; or export one of these models, once more if need be: samrt export sam-hq-vit-b",
        )


def _open_all(names: Sequence[str], open_one: Callable[[str], OpenGraph]) -> dict[str, OpenGraph]:
    """Open graphs, all or none."""
    graphs: dict[str, OpenGraph] = {}
    try:
        for name in names:
            graphs[name] = open_one(name)
    except BaseException:
        for graph in graphs.values():
            graph.executor.close()
        raise
    return graphs


def _check_options(
    features: Features, prompts: Prompts, threshold: float, fill_hole_area: float, remove_sprinkle_area: float
) -> None:
    if len(features) not in (1, len(prompts)):
        raise PromptError(
            "prompts and pictures do not match",
            got=f"{len(prompts)} prompts for {len(features)} pictures",
            expected="one picture for all prompts, or one prompt for each picture",
            fix="choose a picture: model.decode(features, prompts, image_index=0)",
        )
    if not math.isfinite(threshold):
        raise PromptError("mask_threshold must be a finite number", got=f"{threshold}")
    for name, area in (("fill_hole_area", fill_hole_area), ("remove_sprinkle_area", remove_sprinkle_area)):
        if not area >= 0:
            raise PromptError(f"{name} must be 0 or more low-res pixels", got=f"{area}", fix=f"{name}=0 turns it off")


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
