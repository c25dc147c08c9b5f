"""The graphs of one frame, for all objects at once: condition on memory, decode, choose, encode memory.

    image_encoder ─► features ─┬─► memory_attention ─► mask_decoder ─► Outcome ─► memory_encoder ─► bank
                               └───────(first frame)──────┘

Everything here is a function of its arguments; what is remembered stands in a `MemoryBank`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from samrt.features import Features
from samrt.flow import Tensor, place_of, to_host
from samrt.flow import rows as rows_of
from samrt.graphs import (
    MASK_DECODER,
    MASKS,
    OBJECT_SCORES,
    PROMPT_ENCODER,
    SCORES,
    absent_mask_hw,
    largest,
)
from samrt.images import Image
from samrt.model import Model
from samrt.numbers import VideoNumbers
from samrt.prompts import Prompts, to_tensors
from samrt.transforms import Frame
from samrt.video.bank import MemoryBank
from samrt.video.mask_prompts import fit_masks, mask_logits
from samrt.video.outcome import Float32Array, Outcome, choose_masks, fill_small_holes, join_outcomes
from samrt_engines.device import device_parts
from samrt_engines.device_block import DeviceBlock
from samrt_engines.errors import BundleError
from samrt_engines.tensors import Array

GRAPHS = MEMORY_ATTENTION, MEMORY_ENCODER, MASK_DOWNSAMPLER = ("memory_attention", "memory_encoder", "mask_downsampler")
"""What video needs beside the graphs of a picture."""

TOKENS, MEMORY, POINTER, MASK_PROMPT = "mask_tokens", "frame_memory", "object_pointer", "mask_prompt"
CONDITIONED = {
    "conditioned_embed": "image_embed",
    "conditioned_queries": "image_queries",
    "conditioned_keys": "image_keys",
    "conditioned_values": "image_values",
}
"""Output of the memory attention -> the mask decoder's input it takes the place of."""
PLAIN = {name.replace("conditioned", "plain"): taken for name, taken in CONDITIONED.items()}
"""Output of the mask downsampler, where it has more than one -> the mask decoder's input it takes the place of."""

View = Mapping[str, Tensor]
"""What a frame looks like to an object that remembers: those of the mask decoder's inputs (1, ...) that this changes."""

_OBJECT_ASSUMED = 10.0  # of models without an object score: present


class Steps:
    """A model's graphs, strung together for video. Holds no state but the embeddings of the empty prompt."""

    def __init__(self, model: Model, fill_hole_area: float | None = None) -> None:
        """fill_hole_area: the largest holes to fill, in low-res pixels; None is the model's number, 0 is off.

        Raises BundleError for a model without the ability.
        """
        self.model = model
        self.video = video_numbers(model)
        self.fill_hole_area = self.video.fill_hole_area if fill_hole_area is None else fill_hole_area
        self._numbers = model.manifest.numbers
        self._flow = model.open_graphs((MEMORY_ATTENTION, MEMORY_ENCODER, MASK_DOWNSAMPLER))
        graphs = model.manifest.graphs
        decoder = graphs[MASK_DECODER]
        self._decoder_inputs = [spec.name for spec in decoder.inputs]
        embeddings = {spec.name for spec in graphs[PROMPT_ENCODER].outputs}
        per_object = {*CONDITIONED.values(), *embeddings} & set(self._decoder_inputs)
        self._most = min(
            largest(graphs[MEMORY_ATTENTION], "memory", axis=0),
            largest(graphs[MEMORY_ENCODER], "mask_logits", axis=0),
            largest(graphs[PROMPT_ENCODER], "point_coords", axis=0),
            *(largest(decoder, name, axis=0) for name in per_object),
        )
        self._most_points = largest(graphs[PROMPT_ENCODER], "point_coords", axis=1)
        self._absent_mask_hw = absent_mask_hw(model.manifest)
        # The embeddings of an empty prompt, for as many objects as were last tracked.
        self._empty: dict[str, Tensor] = {}

    @property
    def most_conditioning(self) -> int:
        """How many conditioning frames fit the memory attention beside the recent ones; at most the model's number."""
        graph, numbers = self.model.manifest.graphs[MEMORY_ATTENTION], self.video
        room = min(
            largest(graph, "memory", axis=1) - numbers.recent_frames,
            largest(graph, "object_pointers", axis=1) - (numbers.max_object_pointers - 1),
        )
        return room if numbers.max_conditioning_frames is None else min(room, numbers.max_conditioning_frames)

    def frame(self, hw: tuple[int, int]) -> Frame:
        """Where a picture of this size lies in the model's input."""
        return Frame(hw, self._numbers.image)

    def encode(self, image: Image) -> Features:
        """One pass of the image encoder."""
        return self.model.encode(image)

    def check_points(self, prompts: Prompts, hw: tuple[int, int]) -> None:
        """Check points and boxes for a frame of this size. Raises PromptError."""
        to_tensors(prompts, [self.frame(hw)], self._numbers.prompts, self._most_points, self._absent_mask_hw)

    def track(
        self,
        features: Features,
        bank: MemoryBank,
        rows: Sequence[int],
        frame: int,
        *,
        reverse: bool = False,
        num_frames: int | None = None,
        keep: Collection[int] = (),
    ) -> tuple[Outcome, dict[int, View]]:
        """Find objects on a frame by what they remember. At least one; each remembers something.

        keep: the rows whose views are returned, too, for `prompt`
        """
        parts = []
        views: dict[int, View] = {}
        for start in range(0, len(rows), self._most):
            part = rows[start : start + self._most]
            seen = self._condition(features, bank.feeds(part, frame, reverse=reverse, num_frames=num_frames))
            image = {**features.feeds(self._flow.place(MASK_DECODER)), **seen}
            parts.append(self._decode(image, self._empty_prompt(len(part)), points=0, prompted=False))
            views |= {row: _view(seen, index) for index, row in enumerate(part) if row in keep}
        return join_outcomes(parts), views

    def look(
        self,
        features: Features,
        bank: MemoryBank,
        rows: Sequence[int],
        frame: int,
        *,
        reverse: bool = False,
        num_frames: int | None = None,
    ) -> list[View]:
        """What a frame looks like to objects that remember something: for each of `rows` its view, for `prompt`."""
        views = []
        for start in range(0, len(rows), self._most):
            part = rows[start : start + self._most]
            seen = self._condition(features, bank.feeds(part, frame, reverse=reverse, num_frames=num_frames))
            views += [_view(seen, index) for index in range(len(part))]
        return views

    def prompt(self, features: Features, prompts: Prompts, views: Sequence[View] = ()) -> Outcome:
        """Point objects out on a frame: P prompts of as many points each, whose masks are logits of an earlier outcome.

        views: of each prompt's object, which is then looked for by what it remembers, too; none for new objects
        Raises PromptError.
        """
        frames = [self.frame(features.image_hw[0])]
        hw = self._absent_mask_hw if prompts.masks is None else None
        tensors = to_tensors(prompts, frames, self._numbers.prompts, self._most_points, hw)
        points = _count_points(prompts)
        parts = []
        for start in range(0, len(prompts), self._most):
            part = slice(start, start + self._most)
            image = dict(features.feeds(self._flow.place(MASK_DECODER)))
            for name in views[start] if views else ():
                image[name] = _joined([view[name] for view in views[part]])
            embeddings = self._flow.run_device(PROMPT_ENCODER, {name: one[part] for name, one in tensors.items()})
            parts.append(self._decode(image, embeddings, points=points, prompted=True))
        return join_outcomes(parts)

    def prompt_masks(self, features: Features, masks: Sequence[Array]) -> Outcome:
        """Take masks as they are. The decoder only makes the objects' pointers of them.

        masks: bool (H, W) each, the frame's pixels
        """
        fitted = fit_masks(masks, self.frame(features.image_hw[0]))
        parts = [self._prompt_masks(features, fitted[at : at + self._most]) for at in range(0, len(fitted), self._most)]
        return join_outcomes(parts)

    def remember(self, features: Features, outcome: Outcome) -> tuple[Tensor, Tensor]:
        """What K objects remember of a frame: memory maps (K, tokens, width) and object pointers (K, C).

        They lie where the memory encoder runs.
        """
        parts = [
            self._remember(features, outcome.take(slice(at, at + self._most)))
            for at in range(0, len(outcome), self._most)
        ]
        memories, pointers = zip(*parts, strict=True)
        return _joined(memories), _joined(pointers)

    def _condition(self, features: Features, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the frame looks like to objects that remember: those of the decoder's image tensors that differ."""
        place = self._flow.place(MEMORY_ATTENTION)
        image = features.feeds(place)
        outputs = self._flow.run_device(MEMORY_ATTENTION, {"image_embed": image["image_embed"], **feeds})
        return {CONDITIONED[name]: one for name, one in outputs.items()}

    def _decode(
        self, image: Mapping[str, Tensor], embeddings: Mapping[str, Tensor], *, points: int, prompted: bool
    ) -> Outcome:
        least, most = self.video.multimask_points
        return self._decoded({**image, **embeddings}, multimask=least <= points <= most, prompted=prompted)

    def _decoded(self, known: Mapping[str, Tensor], *, multimask: bool, prompted: bool) -> Outcome:
        wanted = [spec.name for spec in self.model.manifest.graphs[MASK_DECODER].outputs]
        wanted = [name for name in wanted if name in (MASKS, SCORES, OBJECT_SCORES, TOKENS)]
        outputs = self._flow.run(MASK_DECODER, {name: known[name] for name in self._decoder_inputs}, wanted)
        logits, scores, token = choose_masks(outputs[MASKS], outputs[SCORES], self._numbers.masks, multimask=multimask)
        count = len(scores)
        assumed = np.full((count, 1), _OBJECT_ASSUMED, np.float32)
        object_scores = outputs.get(OBJECT_SCORES, assumed)[:, 0]
        absent = object_scores <= 0
        raw = np.where(absent[:, None, None], np.float32(self.video.absent_logit), logits)
        filled = fill_small_holes(raw, self.fill_hole_area)
        return Outcome(
            logits=filled,
            memory_logits=filled if prompted else raw,
            scores=scores,
            object_scores=object_scores,
            pointer_scores=object_scores,
            tokens=outputs[TOKENS][np.arange(count), token],
            prompted=np.full(count, prompted),
        )

    def _empty_prompt(self, count: int) -> dict[str, Tensor]:
        """The embeddings that stand for "no prompt on this frame", for `count` objects. They never change."""
        if not self._empty or next(iter(self._empty.values())).shape[0] != count:
            self._empty = self._flow.run_device(PROMPT_ENCODER, self._empty_feeds(count, None))
        return self._empty

    def _empty_feeds(self, count: int, masks: Array | None) -> dict[str, Array]:
        """The prompt encoder's feeds for points that are none, with or without masks (K, 1, h, w)."""
        points = self.video.empty_prompt_points
        prompts = Prompts(np.zeros((count, max(points, 1), 2)), np.full((count, max(points, 1)), -1), masks=masks)
        hw = self._absent_mask_hw if masks is None else None
        feeds = to_tensors(prompts, [self.frame((1, 1))], self._numbers.prompts, self._most_points, hw)
        if not points:
            for name in ("point_coords", "point_labels"):
                feeds[name] = np.ascontiguousarray(feeds[name][:, 1:])
        return feeds

    def _prompt_masks(self, features: Features, masks: Float32Array) -> Outcome:
        """masks: float32 (K, S, S) of 0 and 1. Source: ``SAM2Base._use_mask_as_output``."""
        count = len(masks)
        known = {"mask": masks[:, None], **features.feeds(self._flow.place(MASK_DOWNSAMPLER))}
        inputs = self.model.manifest.graphs[MASK_DOWNSAMPLER].inputs
        made = self._flow.run_device(MASK_DOWNSAMPLER, {spec.name: known[spec.name] for spec in inputs})
        embeddings = self._flow.run_device(PROMPT_ENCODER, self._empty_feeds(count, to_host(made.pop(MASK_PROMPT))))
        # Upstream shows the decoder the bare features here, which a model may make beside the prompt.
        image = {**features.feeds(self._flow.place(MASK_DECODER)), **{PLAIN[name]: one for name, one in made.items()}}
        decoded = self._decoded({**image, **embeddings}, multimask=False, prompted=True)
        seen = np.where(masks.any(axis=(1, 2)), np.float32(10), np.float32(-10))
        logits = mask_logits(masks, self._numbers.masks.size_hw)
        return Outcome(
            logits=fill_small_holes(logits, self.fill_hole_area),
            memory_logits=fill_small_holes(logits, self.fill_hole_area),
            scores=np.ones(count, np.float32),
            object_scores=seen,
            # The pointer goes by what the decoder sees, and by the mask.
            pointer_scores=np.minimum(seen, decoded.object_scores),
            tokens=decoded.tokens,
            prompted=decoded.prompted,
        )

    def _remember(self, features: Features, outcome: Outcome) -> tuple[Tensor, Tensor]:
        image = features.feeds(self._flow.place(MEMORY_ENCODER))["image_embed"]

        def run(part: Outcome, scores: Float32Array, wanted: Sequence[str]) -> dict[str, Tensor]:
            feeds: dict[str, Any] = {
                "image_embed": image,
                "mask_logits": part.memory_logits[:, None],
                "binarize": part.prompted.astype(np.float32),
                "object_score_logits": scores[:, None],
                "object_token": part.tokens,
            }
            return self._flow.run_device(MEMORY_ENCODER, feeds, wanted)

        outputs = run(outcome, outcome.object_scores, (MEMORY, POINTER))
        apart = np.flatnonzero((outcome.object_scores > 0) != (outcome.pointer_scores > 0)).tolist()
        if apart:  # rare: a mask was given where the decoder sees no object
            part = outcome.take(apart)
            pointers = to_host(outputs[POINTER])
            pointers[apart] = to_host(run(part, part.pointer_scores, (POINTER,))[POINTER])
            outputs[POINTER] = pointers
        return outputs[MEMORY], outputs[POINTER]


def video_numbers(model: Model) -> VideoNumbers:
    """The model's numbers for video. Raises BundleError for a model that has none, or lacks a graph."""
    numbers, graphs = model.manifest.numbers.video, model.manifest.graphs
    missing = [name for name in GRAPHS if name not in graphs]
    if numbers is None or missing:
        raise BundleError(
            f"{model.manifest.source.model} cannot track in this bundle",
            got="no numbers for video in the manifest" if numbers is None else f"no graph {', '.join(missing)}",
            expected="a bundle with the ability 'video'",
            fix="export it again with this samrt: samrt export MODEL -o BUNDLE",
        )
    return numbers


def _count_points(prompts: Prompts) -> int:
    """The points of each prompt as the model counts them: a box is two, padding is none."""
    return (0 if prompts.points is None else int(prompts.points.shape[1])) + (0 if prompts.boxes is None else 2)


def _view(seen: Mapping[str, Tensor], index: int) -> View:
    """One object's part; no copy."""
    return {name: rows_of(tensor, index, index + 1) for name, tensor in seen.items()}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other, along the first axis; on the GPU if any of them is there."""
    if len(parts) == 1:
        return parts[0]
    places = {place_of(part) for part in parts} - {"cpu"}
    if not places:
        return np.concatenate([to_host(part) for part in parts])
    objects = sum(part.shape[0] for part in parts)
    joined = DeviceBlock((objects, *parts[0].shape[1:]), parts[0].dtype, device_parts(places.pop())[1])
    start = 0
    for part in parts:
        joined.rows(start, start + part.shape[0]).write(part)
        start += part.shape[0]
    return joined
