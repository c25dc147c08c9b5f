"""What is measured of a model that tracks: its memory graphs, and a frame with all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.bench.tasks import Arrays, GraphTask, clicks
from samrt.flow import to_host
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, MASKS, OBJECT_SCORES, PROMPT_ENCODER, absent_mask_hw
from samrt.model import Model
from samrt.prompts import Prompts, to_tensors
from samrt.transforms import Frame, image_to_input
from samrt.video.bank import MemoryBank
from samrt.video.steps import CONDITIONED, MEMORY_ATTENTION, MEMORY_ENCODER, TOKENS, Steps

OBJECTS = (1, 4, 16)
_FRAMES = 16  # until as many pointers are remembered as ever will be

RunGraph = Callable[[str, Arrays], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class FrameTask:
    """One frame of a video with K objects whose banks are full: encode, attend to memory, decode, encode memory.

    Each contender runs its graphs on the same feeds; what comes out is compared.
    """

    name: str
    batch: int
    """Objects, K."""
    image: Arrays
    bank: Arrays
    prompt: Arrays
    """Of objects that nobody points at."""
    decoder_inputs: tuple[str, ...]

    def run(self, run_graph: RunGraph) -> dict[str, NDArray[Any]]:
        """The whole chain. Returns the candidates' low-res logits, object scores and the new memory."""
        known = dict(run_graph(IMAGE_ENCODER, self.image))
        embed = known["image_embed"]
        conditioned = run_graph(MEMORY_ATTENTION, {"image_embed": embed, **self.bank})
        known |= {CONDITIONED[name]: value for name, value in conditioned.items()}
        known |= run_graph(PROMPT_ENCODER, self.prompt)
        decoded = run_graph(MASK_DECODER, {name: known[name] for name in self.decoder_inputs})
        memory = run_graph(MEMORY_ENCODER, memory_feeds(embed, decoded))
        return {MASKS: decoded[MASKS], OBJECT_SCORES: decoded[OBJECT_SCORES], **memory}


def video_tasks(model: Model, picture: NDArray[np.uint8]) -> list[GraphTask | FrameTask]:
    """The memory graphs on what they really meet, and whole frames, with 1, 4 and 16 objects.

    picture: uint8 (H, W, 3), taken for every frame of the video
    Raises BundleError for a model that cannot track.
    """
    steps = Steps(model)
    manifest = model.manifest
    spec = manifest.graphs[IMAGE_ENCODER].inputs[0]
    image = {spec.name: image_to_input(picture, manifest.numbers.image, spec.dtype)[None]}
    features = model.encode(picture)
    frame = Frame((picture.shape[0], picture.shape[1]), manifest.numbers.image)
    attention, encoder, frames = [], [], []
    for count in OBJECTS:
        bank = _full_bank(steps, features, clicks(picture, count))
        # On the host, whatever device they were made on: every contender runs on the same feeds.
        feeds = {name: to_host(feed) for name, feed in bank.feeds(range(count), _FRAMES).items()}
        prompt = _no_prompt(model, frame, count)
        task = FrameTask(
            f"frame of a video, {count} object{'s' * (count > 1)}",
            count,
            image,
            feeds,
            prompt,
            tuple(one.name for one in manifest.graphs[MASK_DECODER].inputs),
        )
        attention.append(GraphTask(MEMORY_ATTENTION, count, {"image_embed": features.tensors["image_embed"], **feeds}))
        logits = np.ones((count, 4, *manifest.numbers.masks.size_hw), np.float32)
        width = next(one.shape[1] for one in manifest.graphs[MEMORY_ENCODER].inputs if one.name == "object_token")
        tokens = np.ones((count, 4, int(width)), np.float32)
        decoded = {MASKS: logits, OBJECT_SCORES: np.ones((count, 1), np.float32), TOKENS: tokens}
        encoder.append(GraphTask(MEMORY_ENCODER, count, memory_feeds(features.tensors["image_embed"], decoded)))
        frames.append(task)
    return [*attention, *encoder, *frames]


def memory_feeds(embed: NDArray[Any], decoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the memory encoder takes of a frame that was decoded: each object's second candidate, whichever is best."""
    count = len(decoded[OBJECT_SCORES])
    return {
        "image_embed": embed,
        "mask_logits": np.ascontiguousarray(decoded[MASKS][:, 1:2]),
        "binarize": np.zeros(count, np.float32),
        "object_score_logits": decoded[OBJECT_SCORES],
        "object_token": np.ascontiguousarray(decoded[TOKENS][:, 1]),
    }


def _full_bank(steps: Steps, features: Any, prompts: Prompts) -> MemoryBank:
    """Objects that were pointed out on frame 0 and seen in the same place ever since."""
    bank = MemoryBank(steps.video, most_conditioning=1)
    outcome = steps.prompt(features, prompts)
    memory, pointers = steps.remember(features, outcome)
    rows = [bank.add_object() for _ in range(len(prompts))]
    for frame in range(_FRAMES):
        bank.write(frame, rows, memory, pointers, [frame == 0] * len(rows))
    return bank


def _no_prompt(model: Model, frame: Frame, count: int) -> dict[str, NDArray[Any]]:
    numbers = model.manifest.numbers
    assert numbers.video is not None
    points = max(1, numbers.video.empty_prompt_points)
    prompts = Prompts(np.zeros((count, points, 2)), np.full((count, points), -1))
    return to_tensors(prompts, (frame,), numbers.prompts, None, absent_mask_hw(model.manifest))
