"""What somebody asked about one object on one frame: points and a box, or a mask; read, kept, and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.prompts import Prompts
from samrt.video.mask_prompts import BoolArray, read_mask
from samrt_engines.errors import PromptError

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One object's prompt on one frame: a mask, or points and a box."""

    points: Float32Array
    """(N, 2) x and y in the frame's pixels."""
    labels: NDArray[np.int32]
    """(N,)"""
    box: Float32Array | None = None
    """(4,) x0 y0 x1 y1 in the frame's pixels."""
    mask: BoolArray | None = None
    """(H, W), the frame's pixels."""

    def added_to(self, earlier: Request | None) -> Request:
        """This one after an earlier one on the same frame: points add up, a new box replaces the old one, and a mask and
        points replace each other."""
        if earlier is None or self.mask is not None or earlier.mask is not None:
            return self
        points, labels = np.concatenate([earlier.points, self.points]), np.concatenate([earlier.labels, self.labels])
        return Request(points, labels, earlier.box if self.box is None else self.box)

    @property
    def kind(self) -> tuple[int, bool]:
        """What prompts must share to be decoded together: the number of points, and whether there is a box."""
        return len(self.points), self.box is not None

    def check(self, hw: tuple[int, int], obj_id: object) -> None:
        """Check that a mask fits a frame; points are checked where they are used. Raises PromptError."""
        if self.mask is not None and self.mask.shape != hw:
            raise PromptError(
                f"the mask of object {obj_id} has the wrong size",
                got=f"{self.mask.shape}",
                expected=f"({hw[0]}, {hw[1]}), the frame's pixels",
                fix="resize it to the frame",
            )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays; `from_arrays` reads them."""
        arrays: dict[str, NDArray[Any]] = {"points": self.points, "labels": self.labels}
        arrays |= {} if self.box is None else {"box": self.box}
        return arrays | ({} if self.mask is None else {"mask": self.mask})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Request:
        """What `to_arrays` gave. Raises KeyError, PromptError."""
        if "mask" in arrays:
            return mask_request(arrays["mask"])
        points = arrays["points"] if len(arrays["points"]) else None
        return point_request(points, arrays["labels"] if points is not None else None, arrays.get("box"))


_NO_POINTS = np.zeros((0, 2), np.float32)
_NO_LABELS = np.zeros(0, np.int32)


def point_request(points: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None) -> Request:
    """Read points (N, 2) with labels (N,), or a single point (2,), and a box (4,). Raises PromptError."""
    if points is not None and labels is not None:
        points, labels = _listed(points, labels)
    prompts = Prompts(points, labels, box)
    if len(prompts) != 1:
        raise PromptError(
            "one object takes one prompt",
            got=f"{len(prompts)} prompts",
            expected="points (N, 2), labels (N,), box (4,)",
            fix="one call for each object",
        )
    return Request(
        _NO_POINTS if prompts.points is None else prompts.points[0],
        _NO_LABELS if prompts.labels is None else prompts.labels[0],
        None if prompts.boxes is None else prompts.boxes[0],
    )


def mask_request(mask: ArrayLike, hw: tuple[int, int] | None = None) -> Request:
    """Read a mask (H, W). hw: the frame's size, where it is known. Raises PromptError."""
    return Request(_NO_POINTS, _NO_LABELS, mask=read_mask(mask, hw))


def prompts_of(requests: Sequence[Request], logits: Float32Array | None = None) -> Prompts:
    """Requests of one kind as one batch. logits: (P, h, w) low-res logits of what they correct."""
    count, has_box = requests[0].kind
    return Prompts(
        points=np.stack([one.points for one in requests]) if count else None,
        labels=np.stack([one.labels for one in requests]) if count else None,
        boxes=np.stack([one.box for one in requests if one.box is not None]) if has_box else None,
        masks=logits,
    )


def _listed(points: ArrayLike, labels: ArrayLike) -> tuple[Any, Any]:
    """A single point (2,) and its label as lists of one."""
    try:
        is_single = np.ndim(points) == 1 and np.size(points) == 2
    except ValueError:
        return points, labels
    return ([points], np.reshape(labels, -1)) if is_single else (points, labels)
