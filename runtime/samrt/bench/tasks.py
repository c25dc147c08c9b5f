"""What is measured: each graph at several batch sizes, and what a user does from picture to masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, absent_mask_hw
from samrt.manifest import Form, Graph
from samrt.model import Model
from samrt.prompts import Prompts, to_tensors
from samrt.transforms import Frame, image_to_input

Arrays = Mapping[str, NDArray[Any]]

HD_HW = (1080, 1920)
IMAGE_BATCHES = (1, 2, 4)
PROMPT_BATCHES = (1, 4, 16)
ENCODE = "encode"


@dataclass(frozen=True)
class GraphTask:
    """One graph on given feeds. batch: pictures of the image encoder, objects of the memory graphs, prompts of the others."""

    graph: str
    batch: int
    feeds: Arrays


@dataclass(frozen=True)
class WholeTask:
    """What a user does, masks at the picture's size included; no prompts: only encode the picture.

    best: only the best of the candidates becomes masks of the picture's size.
    """

    name: str
    prompts: Prompts | None = None
    multimask: bool = True
    best: bool = False

    @property
    def batch(self) -> int:
        """Prompts answered, or pictures encoded."""
        return 1 if self.prompts is None else len(self.prompts)


def graph_tasks(model: Model, picture: NDArray[np.uint8]) -> list[GraphTask]:
    """What each graph really meets (this picture, clicks on it), at the batch sizes its profile allows.

    picture: uint8 (H, W, 3)
    """
    manifest = model.manifest
    encoder, prompter, decoder = (manifest.graphs[name] for name in (IMAGE_ENCODER, PROMPT_ENCODER, MASK_DECODER))
    spec = encoder.inputs[0]
    image = image_to_input(picture, manifest.numbers.image, spec.dtype)[None]
    features = model.executors[IMAGE_ENCODER].run({spec.name: image})
    frames = (Frame(_hw(picture), manifest.numbers.image),)
    tasks = [
        GraphTask(IMAGE_ENCODER, batch, {spec.name: np.repeat(image, batch, axis=0)})
        for batch in _allowed(IMAGE_BATCHES, encoder, spec.name)
    ]
    decodes: list[GraphTask] = []
    for batch in _allowed(PROMPT_BATCHES, prompter, "point_coords"):
        prompt = to_tensors(clicks(picture, batch), frames, manifest.numbers.prompts, None, absent_mask_hw(manifest))
        made = {**features, **model.executors[PROMPT_ENCODER].run(prompt)}
        tasks.append(GraphTask(PROMPT_ENCODER, batch, prompt))
        decodes.append(GraphTask(MASK_DECODER, batch, {tensor.name: made[tensor.name] for tensor in decoder.inputs}))
    return tasks + decodes


def whole_tasks(picture: NDArray[np.uint8]) -> list[WholeTask]:
    """From picture to features, and from prompts to masks of the picture's size."""
    box, click = middle_box(picture), clicks(picture, 1)
    return [
        WholeTask(ENCODE),
        WholeTask("click, best of 3 masks", click, best=True),
        WholeTask("click, 3 masks", click),
        WholeTask("box, 1 mask", box, multimask=False),
        WholeTask("16 clicks at once, best masks", clicks(picture, 16), best=True),
    ]


def run_whole(model: Model, task: WholeTask, features: Any, picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """A whole task on samrt: features by name, or {"masks": bool (P, C, H, W)}.

    features: of the picture, made before; unused by "encode"
    """
    if task.prompts is None:
        return dict(model.encode(picture).tensors)
    result = model.decode(features, task.prompts, multimask=task.multimask)
    return {"masks": (result.best() if task.best else result).masks}


def clicks(picture: NDArray[np.uint8], count: int) -> Prompts:
    """One click in the picture's middle, or a grid of ``count`` = 4 or 16 of them, one point for each prompt."""
    height, width = _hw(picture)
    side = int(count**0.5)
    places = np.linspace(0.2, 0.8, side) if side > 1 else np.array([0.5])
    x, y = np.meshgrid(places * width, places * height)
    return Prompts(points=np.stack((x, y), -1).reshape(-1, 1, 2), labels=np.ones((side * side, 1), np.int32))


def middle_box(picture: NDArray[np.uint8]) -> Prompts:
    """A box around the picture's middle, two fifths of its height and width."""
    height, width = _hw(picture)
    return Prompts(boxes=[width * 0.3, height * 0.3, width * 0.7, height * 0.7])


def made_up_picture(hw: tuple[int, int] = HD_HW) -> NDArray[np.uint8]:
    """uint8 (H, W, 3): discs on a gradient."""
    height, width = hw
    y, x = np.mgrid[:height, :width]
    picture = np.stack((x * 255 // width, y * 255 // height, (x + y) % 256), axis=-1).astype(np.uint8)
    for index, (cy, cx, radius) in enumerate(((0.5, 0.5, 0.24), (0.28, 0.26, 0.17), (0.7, 0.76, 0.2))):
        inside = (y - cy * height) ** 2 + (x - cx * width) ** 2 < (radius * height) ** 2
        picture[inside] = (220, 60 + 80 * index, 40)
    return picture


def flops_at(graph: Graph, form: Form, feeds: Arrays) -> float | None:
    """The work of one run in floating-point operations, where the bundle says it and it can be known for these feeds.

    The manifest gives it for the profiles' opt sizes. A graph with a single symbol, the first axis of all its inputs, does
    that much more for a larger batch; nothing is guessed for others.
    """
    known = form.flops
    if known is None:
        return None
    flops = float(known)
    found = {
        size: actual
        for spec in graph.inputs
        for size, actual in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(size, str)
    }
    if all(found.get(symbol) == profile.opt for symbol, profile in graph.profiles.items()):
        return flops
    if len(graph.profiles) == 1:
        ((symbol, profile),) = graph.profiles.items()
        if profile.opt and all(spec.shape[:1] == (symbol,) and symbol not in spec.shape[1:] for spec in graph.inputs):
            return float(flops * found[symbol] / profile.opt)
    return None


def _allowed(batches: tuple[int, ...], graph: Graph, tensor: str) -> list[int]:
    """Those batch sizes that an input's first axis takes."""
    size = next(spec.shape[0] for spec in graph.inputs if spec.name == tensor)
    if isinstance(size, int):
        return [size]
    profile = graph.profiles.get(size)
    return [batch for batch in batches if profile is None or profile.min <= batch <= profile.max]


def _hw(picture: NDArray[np.uint8]) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]
