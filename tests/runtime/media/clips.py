"""Clips whose frames say their own number, and a tracker that finds colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

HW = (32, 128)
TICKS = 1000


def paint(index: int, hw: tuple[int, int] = HW) -> np.ndarray:
    """uint8 (H, W, 3): the bits of a number as eight white or black stripes, from the left; the top quarter is red."""
    image = np.zeros((*hw, 3), np.uint8)
    stripes = np.repeat([(index >> bit) & 1 for bit in range(8)], -(-hw[1] // 8))[: hw[1]]
    image[:] = (stripes * 255).astype(np.uint8)[None, :, None]
    image[: hw[0] // 4] = (200, 0, 0)
    return image


def number(image: np.ndarray) -> int:
    """The number painted into a picture."""
    stripe = -(-image.shape[1] // 8)
    row = image[image.shape[0] * 2 // 3, stripe // 2 :: stripe, 1]
    return int(sum(1 << bit for bit, value in enumerate(row[:8]) if value > 127))


def numbers(frames: Any) -> list[int]:
    return [number(image) for image in frames]


def collect(frames: Any, into: list[int]) -> None:
    """The numbers of frames, as far as they come."""
    for image in frames:
        into.append(number(image))


def write_clip(
    path: Path,
    count: int = 30,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    hw: tuple[int, int] = HW,
    fps: int = 10,
    times: Sequence[float] | None = None,
    rotation: int | None = None,
    gop: int = 8,
    movflags: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames 0, 1, ...; with B-frames where the codec has them, so that order of storing is not that of showing."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = hw[0], hw[1], pix_fmt
        stream.codec_context.gop_size = gop
        if times is not None:
            stream.codec_context.time_base = Fraction(1, TICKS)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(paint(index, hw), format="rgb24")
            frame.pts = index if times is None else round(times[index] * TICKS)
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    """A file's first bytes, as another file."""
    short = path.with_name(f"cut{path.suffix}")
    content = path.read_bytes()
    short.write_bytes(content[: int(len(content) * share)])
    return short


@dataclass
class Found:
    obj_ids: tuple[int, ...]
    masks: np.ndarray
    object_scores: np.ndarray


class ColourTracker:
    """A tracker of flat colours: an object is what has the colour that its first prompt met. Takes note of all calls."""

    def __init__(self, model: Any = None, *, non_overlap: bool = False) -> None:
        self.non_overlap = non_overlap
        self.colours: dict[int, np.ndarray] = {}
        self.calls: list[tuple[Any, ...]] = []
        self._waiting: dict[int, Any] = {}
        self.steps = 0

    def add_points(self, obj_id: int, points: Any = None, labels: Any = None, *, box: Any = None) -> None:
        self.calls.append((self.steps, "points", obj_id, points, labels, box))
        self._waiting.setdefault(obj_id, points[0])

    def add_box(self, obj_id: int, box: Any) -> None:
        self.calls.append((self.steps, "box", obj_id, box))
        self._waiting.setdefault(obj_id, [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])

    def add_mask(self, obj_id: int, mask: Any) -> None:
        self.calls.append((self.steps, "mask", obj_id, int(np.count_nonzero(mask))))
        rows, columns = np.nonzero(mask)
        self._waiting.setdefault(obj_id, [columns[0], rows[0]])

    def remove_object(self, obj_id: int) -> None:
        self.calls.append((self.steps, "remove", obj_id))
        del self.colours[obj_id]

    def step(self, frame: np.ndarray) -> Found:
        for obj_id, (x, y) in self._waiting.items():
            self.colours.setdefault(obj_id, frame[int(y), int(x)].astype(int))
        self._waiting.clear()
        self.steps += 1
        masks = [np.abs(frame.astype(int) - colour).max(axis=2) < 40 for colour in self.colours.values()]
        planes = np.array(masks) if masks else np.zeros((0, *frame.shape[:2]), bool)
        scores = np.where(planes.any(axis=(1, 2)), 4.0, -4.0).astype(np.float32)
        return Found(tuple(self.colours), planes, scores)
