"""Which frames an object remembers at a frame: SAM 2's rules, on frame numbers alone.

Source: ``SAM2Base._prepare_memory_conditioned_features`` and ``select_closest_cond_frames`` of facebookresearch/sam2. A
*conditioning* frame is one where somebody pointed the object out; all other frames that were tracked are *recent* ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from samrt.numbers import VideoNumbers


@dataclass(frozen=True, slots=True)
class Recall:
    """What one object attends to at a frame."""

    slots: tuple[tuple[int, int], ...]
    """(frame, row of the temporal table) of each memory map."""
    pointers: tuple[tuple[int, float], ...]
    """(frame, distance) of each object pointer; the distance is 1 for the farthest recent pointer of a long video."""


def recall(
    frame: int,
    conditioning: Collection[int],
    recent: Collection[int],
    numbers: VideoNumbers,
    *,
    most_conditioning: int | None = None,
    reverse: bool = False,
    num_frames: int | None = None,
) -> Recall:
    """What an object with these remembered frames attends to at `frame`.

    most_conditioning: conditioning frames attended to at most; None is all
    reverse: the video is tracked backwards
    num_frames: length of the video; None for a stream, which counts as a long one
    """
    chosen = closest_conditioning(frame, conditioning, most_conditioning)
    # A conditioning frame that was not chosen still counts as one of the recent frames, where it is one.
    others = {*recent, *conditioning} - set(chosen)
    slots = [(one, numbers.conditioning_time) for one in chosen]
    wanted = recent_frames(frame, numbers.recent_frames, numbers.temporal_stride, reverse)
    slots += [(one, ago - 1) for ago, one in wanted if one in others]

    sign = -1 if reverse else 1
    most = numbers.max_object_pointers if num_frames is None else min(num_frames, numbers.max_object_pointers)
    distances = [(one, (frame - one) * sign) for one in chosen]
    if numbers.past_pointers_only:
        distances = [(one, distance) for one, distance in distances if distance >= 0]
    if not numbers.signed_pointer_distance:
        distances = [(one, abs(distance)) for one, distance in distances]
    distances += [(frame - sign * ago, ago) for ago in range(1, most) if frame - sign * ago in others]
    scale = max(most - 1, 1)  # upstream divides by 0 in a video of one frame
    return Recall(tuple(slots), tuple((one, distance / scale) for one, distance in distances))


def closest_conditioning(frame: int, conditioning: Collection[int], most: int | None) -> list[int]:
    """The conditioning frames attended to: the last one before `frame`, the first one from it on, then the closest.

    Of two at the same distance the one that was added first wins, as upstream.
    """
    if most is None or len(conditioning) <= most:
        return list(conditioning)
    before = max((one for one in conditioning if one < frame), default=None)
    after = min((one for one in conditioning if one >= frame), default=None)
    chosen = [one for one in (before, after) if one is not None][:most]
    rest = sorted((one for one in conditioning if one not in chosen), key=lambda one: abs(one - frame))
    return chosen + rest[: most - len(chosen)]


def recent_frames(frame: int, count: int, stride: int, reverse: bool) -> list[tuple[int, int]]:
    """(how many steps ago, frame) of the `count` recent frames: the neighbour, then every `stride`-th frame before it."""
    if reverse:
        first = -(-(frame + 2) // stride) * stride
        return [(1, frame + 1), *((ago, first + (ago - 2) * stride) for ago in range(2, count + 1))][:count]
    first = (frame - 2) // stride * stride
    return [(1, frame - 1), *((ago, first - (ago - 2) * stride) for ago in range(2, count + 1))][:count]


def is_still_needed(frame: int, now: int, numbers: VideoNumbers) -> bool:
    """Whether a recent frame's memory map may be attended to by any frame after `now`, tracking forwards."""
    wanted = recent_frames(now + 1, numbers.recent_frames, numbers.temporal_stride, reverse=False)
    if not wanted:
        return False
    return frame == now or (frame % numbers.temporal_stride == 0 and frame >= wanted[-1][1])


def is_pointer_needed(frame: int, now: int, numbers: VideoNumbers) -> bool:
    """Whether a recent frame's pointer may be attended to by any frame after `now`, tracking forwards."""
    return frame > now + 1 - numbers.max_object_pointers
