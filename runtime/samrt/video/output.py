"""What a step of the tracker gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from samrt.transforms import Frame
from samrt.video.outcome import BoolArray, Float32Array, video_logits, video_masks


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """K objects on one frame. Masks are made at their first use, and then kept."""

    frame_index: int
    """Which frame it is, counted from 0."""
    obj_ids: tuple[int, ...]
    """The K objects, in the order in which they were added."""
    logits: Float32Array
    """float32 (K, h, w): low-res mask logits, small holes filled; -1024 all over where the object is not seen."""
    scores: Float32Array
    """float32 (K,): the IoU the model expects each mask to have; 1 for a mask that was given."""
    object_scores: Float32Array
    """float32 (K,): logits, above 0 where the object is seen."""
    frame: Frame
    """The frame's size and place in the model's input."""
    mask_threshold: float
    """Where a logit becomes mask."""
    non_overlap: bool
    """Whether each pixel belongs to one object at most, the one with the highest logit."""

    @cached_property
    def masks(self) -> BoolArray:
        """bool (K, H, W), the frame's pixels."""
        return video_masks(self.logits, self.frame, self.mask_threshold, non_overlap=self.non_overlap)

    def upscaled_logits(self) -> Float32Array:
        """float32 (K, H, W): logits in the frame's pixels. Not kept."""
        return video_logits(self.logits, self.frame, non_overlap=self.non_overlap)

    def __len__(self) -> int:
        """The number of objects, K."""
        return len(self.obj_ids)
