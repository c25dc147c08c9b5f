"""A model whose graphs are a few lines of numpy: small numbers, no weights, every input felt in every output.

Input 32 x 32, embedding 4 x 4 of 4 channels, masks 16 x 16. Objects are told apart by brightness: the decoder finds what
is about as bright as the points, the memory or the mask prompt say, near where they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samrt.features import Features
from samrt.flow import Flow
from samrt.images import as_rgb_uint8
from samrt.manifest import Graph, Manifest, Profile, Source
from samrt.numbers import ImageNumbers, MaskNumbers, Numbers, PromptNumbers, Stability, VideoNumbers
from samrt.transforms import image_to_input
from samrt_engines.errors import BackendError
from samrt_engines.tensors import Array, TensorSpec, check_feeds

SIZE, MASK, SIDE, DIM, WIDTH = 32, 16, 4, 4, 3
HW = SIDE * SIDE

VIDEO = VideoNumbers(
    max_conditioning_frames=None,
    recent_frames=6,
    temporal_stride=1,
    conditioning_time=6,
    max_object_pointers=16,
    past_pointers_only=True,
    signed_pointer_distance=True,
    multimask_points=(0, 1),
    empty_prompt_points=1,
    absent_logit=-1024.0,
    fill_hole_area=0,
)


def _specs(**shapes: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    int32 = ("point_labels", "memory_time")
    return tuple(TensorSpec(name, "int32" if name in int32 else "float32", shape) for name, shape in shapes.items())


def _image(symbol: str, fine: str) -> dict[str, tuple[int | str, ...]]:
    return {"image_embed": (symbol, HW, DIM), "image_keys": (symbol, HW, 2), "high_res_feats_0": (fine, MASK, MASK)}


_PROMPT = {"sparse_embeddings": ("prompts", "points", 3), "dense_embeddings": ("prompts", MASK, MASK)}


def graphs(most_objects: int = 64, slots: int = 16) -> dict[str, Graph]:
    """The tables of the graphs."""
    objects = {"objects": Profile(1, 1, most_objects)}
    prompts = {"prompts": Profile(1, 1, 64), "points": Profile(0, 2, 9)}
    tables = {
        "image_encoder": (_specs(image=("images", SIZE, SIZE, 3)), _specs(**_image("images", "images")), {}),
        "prompt_encoder": (
            _specs(
                point_coords=("prompts", "points", 2),
                point_labels=("prompts", "points"),
                mask_input=("prompts", 1, MASK, MASK),
                has_mask_input=("prompts",),
            ),
            _specs(**_PROMPT),
            prompts,
        ),
        "mask_decoder": (
            _specs(**_image("images", "frames"), **_PROMPT),
            _specs(
                low_res_masks=("prompts", 4, MASK, MASK),
                iou_predictions=("prompts", 4),
                object_score_logits=("prompts", 1),
                mask_tokens=("prompts", 4, DIM),
            ),
            {**prompts, "images": Profile(1, 1, 64), "frames": Profile(1, 1, 64)},
        ),
        "memory_attention": (
            _specs(
                image_embed=(1, HW, DIM),
                memory=("objects", "slots", HW, WIDTH),
                memory_time=("objects", "slots"),
                memory_valid=("objects", "slots"),
                object_pointers=("objects", "pointers", DIM),
                pointer_distance=("objects", "pointers"),
                pointer_valid=("objects", "pointers"),
            ),
            _specs(conditioned_embed=("objects", HW, DIM), conditioned_keys=("objects", HW, 2)),
            {**objects, "slots": Profile(1, 7, slots), "pointers": Profile(1, 16, 32)},
        ),
        "memory_encoder": (
            _specs(
                image_embed=(1, HW, DIM),
                mask_logits=("objects", 1, MASK, MASK),
                binarize=("objects",),
                object_score_logits=("objects", 1),
                object_token=("objects", DIM),
            ),
            _specs(frame_memory=("objects", HW, WIDTH), object_pointer=("objects", DIM)),
            objects,
        ),
        "mask_downsampler": (
            _specs(mask=("objects", 1, SIZE, SIZE)),
            _specs(mask_prompt=("objects", 1, MASK, MASK)),
            objects,
        ),
    }
    return {name: Graph(inputs, outputs, profiles, ()) for name, (inputs, outputs, profiles) in tables.items()}


def _cells(planes: Array) -> Array:
    """(..., MASK, MASK) -> means (..., HW)."""
    step = MASK // SIDE
    blocks = planes.reshape(*planes.shape[:-2], SIDE, step, SIDE, step)
    return blocks.mean(axis=(-3, -1)).reshape(*planes.shape[:-2], HW)


def _planes(cells: Array) -> Array:
    """(..., HW) -> (..., MASK, MASK), each value repeated."""
    step = MASK // SIDE
    return cells.reshape(*cells.shape[:-1], SIDE, SIDE).repeat(step, -2).repeat(step, -1)


def _sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))


def prompt_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    coords, labels = feeds["point_coords"], feeds["point_labels"]
    sparse = np.concatenate([coords, labels[..., None]], axis=-1)
    dense = feeds["mask_input"][:, 0] * feeds["has_mask_input"][:, None, None]
    return {"sparse_embeddings": sparse, "dense_embeddings": dense}


def image_tensors(image: Array) -> dict[str, Array]:
    """image: (1, SIZE, SIZE, 3)"""
    small = image.reshape(1, MASK, 2, MASK, 2, 3).mean(axis=(2, 4)) / 255
    embed = np.stack([*(_cells(small[..., channel]) for channel in range(3)), np.zeros((1, HW))], axis=-1)
    return {"image_embed": embed, "image_keys": embed[..., :2] * 0.5, "high_res_feats_0": small.mean(axis=-1)}


def memory_attention(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The last channel: where the object was, recent frames counting more, slightly moved by pointers and their age."""
    weight = feeds["memory_valid"] * (1.0 + 1.0 / (1 + feeds["memory_time"]))
    memory = np.einsum("ks,kshw->khw", weight, feeds["memory"]) / np.maximum(weight.sum(1), 1e-6)[:, None, None]
    nearness = feeds["pointer_valid"] * np.cos(feeds["pointer_distance"])
    pointer = np.einsum("kp,kpc->kc", nearness, feeds["object_pointers"]) / 16
    embed = np.repeat(feeds["image_embed"], len(memory), axis=0)
    embed[..., 3] = memory[..., 0] + 0.1 * memory[..., 1] + 0.05 * pointer.sum(1)[:, None]
    return {"conditioned_embed": embed, "conditioned_keys": embed[..., :2] * 0.5 + pointer[:, None, :2] * 0.01}


def mask_decoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    sparse, dense, fine = feeds["sparse_embeddings"], feeds["dense_embeddings"], feeds["high_res_feats_0"]
    count = len(sparse)
    embed = np.broadcast_to(feeds["image_embed"], (count, HW, DIM))
    keys = np.broadcast_to(feeds["image_keys"], (count, HW, 2))
    ys, xs = np.mgrid[:MASK, :MASK] * (SIZE / MASK) + 1
    logits = 8 * _planes(embed[..., 3]) + 4 * (fine - 0.5) + 0.02 * dense + _planes(keys.sum(-1)) - 1.5
    for point in range(sparse.shape[1]):
        x, y, label = (sparse[:, point, axis, None, None] for axis in range(3))
        near = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 60)
        sign = np.where(label >= 1, 10.0, np.where(label == 0, -10.0, 0.0))
        logits = logits + sign * near - 0.01 * (label == -1)
    shift = np.array([0, 0.5, -0.5, 1.0])[None, :, None, None]
    masks = logits[:, None] + shift
    area = _sigmoid(masks).mean(axis=(2, 3))
    scores = 1 - np.abs(area - 0.15)
    visible = _sigmoid(masks[:, 0]).max(axis=(1, 2))[:, None] * 10 - 5
    tokens = np.stack([area, scores, masks.mean((2, 3)), np.tile(visible, (1, 4))], axis=-1)
    return {"low_res_masks": masks, "iou_predictions": scores, "object_score_logits": visible, "mask_tokens": tokens}


def memory_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    logits, binary = feeds["mask_logits"][:, 0], feeds["binarize"][:, None, None]
    mask = np.where(binary > 0, (logits > 0) * 1.0, _sigmoid(logits))
    cells = _cells(mask)
    absent = feeds["object_score_logits"][:, 0] <= 0
    memory = np.stack([cells, cells * feeds["image_embed"][..., 0], cells * 0 + absent[:, None]], axis=-1)
    memory[absent, :, 0] -= 0.05
    pointer = np.where(absent[:, None], 0.3, np.tanh(feeds["object_token"]))
    return {"frame_memory": memory, "object_pointer": pointer}


def mask_downsampler(feeds: Mapping[str, Array]) -> dict[str, Array]:
    mask = feeds["mask"][:, 0].reshape(-1, MASK, 2, MASK, 2).mean(axis=(2, 4))
    return {"mask_prompt": (mask * 300 - 60)[:, None]}


RUNS = {
    "prompt_encoder": prompt_encoder,
    "mask_decoder": mask_decoder,
    "memory_attention": memory_attention,
    "memory_encoder": memory_encoder,
    "mask_downsampler": mask_downsampler,
}


class Executor:
    """Runs one of the functions above, after the check that every real executor makes."""

    provider, device, precision = "numpy", "cpu", "fp32"

    def __init__(self, name: str, graph: Graph, calls: Counter[str]) -> None:
        self.name, self.graph, self.calls = name, graph, calls
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.fails = False
        self.feeds: dict[str, Array] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        loose = [spec for spec in self.inputs if spec.name.startswith(("image_", "high_res"))]
        strict = [spec for spec in self.inputs if spec not in loose]
        check_feeds({spec.name: feeds[spec.name] for spec in strict}, strict, ranges=self.graph.ranges, graph=self.name)
        assert feeds.keys() == {spec.name for spec in self.inputs}
        if self.fails:
            raise BackendError(f"{self.name}: out of memory")
        self.calls[self.name] += 1
        self.feeds = dict(feeds)
        made = RUNS[self.name](feeds)
        return {name: np.ascontiguousarray(made[name], np.float32) for name in outputs or made}


class Model:
    """What the video runtime needs of a `samrt.Model`. `calls` counts the runs of each graph."""

    device = "cpu"

    def __init__(self, video: VideoNumbers | None = VIDEO, most_objects: int = 64, slots: int = 16, digest: str = "a"):
        numbers = Numbers(
            ImageNumbers((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, "stretch", True),
            PromptNumbers(0, 1, 2, 3, -1, "always", 8, (MASK, MASK)),
            MaskNumbers(0.0, 32.0, (MASK, MASK), (0,), (1, 2, 3), Stability(0.05, 0.98)),
            video,
        )
        source = Source("double", "random", None, 0, "Apache-2.0", "", "0", 18, {})
        self.manifest = Manifest(1, source, graphs(most_objects, slots), numbers, ("points", "video"))
        self.digest = digest * 64
        self.calls: Counter[str] = Counter()
        self.executors: dict[str, Any] = {
            name: Executor(name, graph, self.calls) for name, graph in self.manifest.graphs.items() if name in RUNS
        }
        self.fails = False

    def open_graphs(self, names: Sequence[str]) -> Flow:
        assert set(names) <= self.executors.keys()
        return Flow(self.executors)

    def encode(self, image: Any) -> Features:
        if self.fails:
            raise BackendError("image_encoder: out of memory")
        self.calls["image_encoder"] += 1
        image = as_rgb_uint8(image)
        tensors = image_tensors(image_to_input(image, self.manifest.numbers.image)[None])
        tensors = {name: np.ascontiguousarray(one, np.float32) for name, one in tensors.items()}
        return Features(tensors, (image.shape[:2],), self.digest, "numpy", "fp32")


def clip(frames: int, hw: tuple[int, int] = (40, 48), seed: int = 0) -> list[Array]:
    """Two squares that move over a noisy ground, the second one leaves the picture and returns."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(20, 70, (*hw, 3)).astype(np.uint8)
    pictures = []
    for time in range(frames):
        picture = ground.copy()
        left = 4 + time % 20
        picture[6:18, left : left + 12] = (250, 80, 80)
        right = 26 + (time * 3) % 60
        picture[24:36, right : right + 12] = (90, 90, 240)
        pictures.append(picture)
    return pictures
