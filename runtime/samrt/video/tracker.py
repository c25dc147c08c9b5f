"""Tracking on a stream: frames come one at a time, for ever; objects come and go while it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from samrt.images import Image, as_rgb_uint8
from samrt.model import Model
from samrt.video.bank import MemoryBank
from samrt.video.outcome import Outcome
from samrt.video.output import TrackedFrame
from samrt.video.requests import Request, mask_request, point_request, prompts_of
from samrt.video.saving import read_state, write_state
from samrt.video.state import LastFrame, TrackerState
from samrt.video.steps import Steps, View, video_numbers
from samrt_engines.errors import ImageError, PromptError

When = Literal["next", "last"]
"""Which frame a prompt is about: the one that `step` gets next, or the one it got last."""

CONDITIONING_FRAMES = 4
"""How many conditioning frames of an object a tracker keeps where the model would attend to all of them."""


class VideoTracker:
    """Follows any number of objects through a stream of frames. State of its own: use one per stream and thread.

    ::

        tracker = samrt.VideoTracker(model)
        tracker.add_points(1, points=[[320, 200]], labels=[1])      # about the frame that comes next
        for frame in frames:                                        # uint8 (H, W, 3) RGB
            out = tracker.step(frame)                               # out.obj_ids, out.masks, out.object_scores
        tracker.add_points(1, [[300, 180]], [0], frame="last")      # corrects the frame on the screen, at once

    Prompts about the "next" frame wait for it. Prompts about the "last" one, the frame a viewer is looking at, change its
    masks at once and are returned. Either way the frame becomes a conditioning frame of that object: one it is always
    recognised by. An object that is tracked already is first found on the frame by its memory, then corrected; so
    ``add_points(...); step(frame)`` is ``step(frame); add_points(..., frame="last")``, but for one output.

    One pass of the image encoder per frame whatever happens; all objects in one batch; memory is bounded by
    construction: see `MemoryBank`.
    """

    def __init__(
        self,
        model: Model,
        *,
        non_overlap: bool = False,
        fill_hole_area: float | None = None,
        max_conditioning_frames: int | None = None,
    ) -> None:
        """Wrap a model.

        non_overlap: give each pixel to one object at most, the one with the highest logit
        fill_hole_area: the largest holes in masks to fill, in low-res pixels; None is the model's number, 0 is off
        max_conditioning_frames: how many frames with prompts an object keeps: the first and the newest ones. None is the
            model's number, or 4 where that is without limit

        Raises BundleError for a model that cannot track, PromptError for options that make no sense.
        """
        self._steps = Steps(model, fill_hole_area)
        self._non_overlap = non_overlap
        most = self._steps.most_conditioning
        if max_conditioning_frames is None:
            max_conditioning_frames = min(self._steps.video.max_conditioning_frames or CONDITIONING_FRAMES, most)
        if not 1 <= max_conditioning_frames <= most:
            got, expected = f"{max_conditioning_frames}", f"1 to {most}, what the model's graphs have room for"
            raise PromptError("max_conditioning_frames is out of range", got=got, expected=expected)
        self._most_conditioning = max_conditioning_frames
        self._state = self._fresh()

    @property
    def model(self) -> Model:
        """The model that tracks."""
        return self._steps.model

    @property
    def obj_ids(self) -> tuple[int, ...]:
        """The objects that are tracked; not those whose first prompt waits for a frame."""
        return tuple(self._state.obj_ids)

    @property
    def pending(self) -> tuple[int, ...]:
        """The objects with a prompt that waits for the next frame."""
        return tuple(self._state.pending)

    @property
    def frame_index(self) -> int:
        """The number of the frame that comes next, counted from 0."""
        return self._state.next_index

    @property
    def nbytes(self) -> int:
        """Memory that the objects' memory takes, in bytes. It does not grow with the number of frames."""
        return self._state.bank.nbytes

    def add_points(
        self,
        obj_id: int,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        box: ArrayLike | None = None,
        frame: When = "next",
        clear_old: bool = False,
    ) -> TrackedFrame | None:
        """Point an object out, or correct it.

        obj_id: any whole number; a new one adds an object
        points: (N, 2) x and y in the frame's pixels; labels: (N,) 1 on the object, 0 not on it
        box: (4,) x0 y0 x1 y1
        frame: the "next" one given to `step`, or the "last" one
        clear_old: forget what was asked before about this object on this frame; else points add up

        returns: the last frame with its new masks, or None where the prompt waits for the next one
        Raises PromptError; for points outside the frame, where that is still to come, `step` does.
        """
        return self._add(obj_id, point_request(points, labels, box), frame, clear_old)

    def add_box(
        self, obj_id: int, box: ArrayLike, *, frame: When = "next", clear_old: bool = False
    ) -> TrackedFrame | None:
        """Point an object out by a box (4,), x0 y0 x1 y1 in the frame's pixels. Otherwise as `add_points`."""
        return self._add(obj_id, point_request(None, None, box), frame, clear_old)

    def add_mask(self, obj_id: int, mask: ArrayLike, *, frame: When = "next") -> TrackedFrame | None:
        """Say what the object's mask is: (H, W), the frame's pixels, not 0 on the object. Otherwise as `add_points`."""
        return self._add(obj_id, mask_request(mask, self._state.hw), frame, True)

    def remove_object(self, obj_id: int) -> None:
        """Forget an object, and its prompts that wait. Raises PromptError for one that is not there."""
        waits = self._state.pending.pop(obj_id, None) is not None
        if obj_id not in self._state.obj_ids:
            if waits:
                return
            raise PromptError(
                f"there is no object {obj_id!r}",
                got="an id that was never added, or was removed already",
                expected=f"one of {', '.join(map(str, self._state.obj_ids)) or 'none: there are no objects'}",
            )
        row = self._state.obj_ids.index(obj_id)
        self._state.bank.remove_object(row)
        del self._state.obj_ids[row]
        last = self._state.last
        if last is not None and last.outcome is not None:
            last.outcome = last.outcome.take([index for index in range(len(last.outcome)) if index != row])
            last.outcome = last.outcome if len(last.outcome) else None
            del last.tracked[row]
            last.requests.pop(obj_id, None)

    def reset(self) -> None:
        """Forget all objects, prompts and frames: the next frame is frame 0, and may have another size."""
        self._state = self._fresh()

    def step(self, frame: Image) -> TrackedFrame:
        """Find all objects on the next frame of the stream.

        frame: uint8 (H, W, 3) RGB, all of one size; also whatever else `samrt.as_rgb_uint8` takes
        returns: `TrackedFrame` with all K objects; K may be 0

        Raises ImageError for what is not a picture or has another size than the frames before, PromptError for a waiting
        prompt that does not fit the frame (that prompt is dropped); the tracker is then as before, and the frame can be
        given again. BackendError when the backend fails.
        """
        image, state = as_rgb_uint8(frame), self._state
        hw = image.shape[0], image.shape[1]
        self._check_size(hw)
        self._check_pending(hw)
        self._settle()
        last = LastFrame(state.next_index, None, None, None, [True] * len(state.obj_ids))
        if state.obj_ids or state.pending:
            last.features = self._steps.encode(image)
        else:
            last.image = image.copy()  # the caller may fill the same buffer again
        views: dict[int, View] = {}
        if last.features is not None and state.obj_ids:
            rows = range(len(state.obj_ids))
            corrected = {row for row in rows if state.obj_ids[row] in state.pending}
            last.outcome, views = self._steps.track(last.features, state.bank, rows, last.index, keep=corrected)
        self._apply(last, state.pending, views)
        state.pending, state.last, state.hw = {}, last, hw
        state.next_index += 1
        return self._output(last)

    def finish(self) -> None:
        """Say that no frame will come any more. Raises PromptError for prompts that still wait for one."""
        if self._state.pending:
            raise PromptError(
                "prompts were never used: the frame they were about did not come",
                got=f"prompts of object {', '.join(map(str, self._state.pending))} waiting for frame {self._state.next_index}",
                expected=f"a frame {self._state.next_index}; the stream had {self._state.next_index} frames",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state to one file (.npz), from which `restore` goes on with the same masks.

        It is written under a temporary name and renamed: a file with this name is whole. Raises OSError.
        """
        options = {
            "non_overlap": self._non_overlap,
            "fill_hole_area": self._steps.fill_hole_area,
            "max_conditioning_frames": self._most_conditioning,
        }
        write_state(path, self._state, self.model.digest, options)

    @classmethod
    def restore(cls, model: Model, path: str | os.PathLike[str]) -> Self:
        """Go on where `save` was called, with the same options. Raises InputError for a file that cannot be used here."""
        state, options = read_state(path, model.digest, video_numbers(model))
        tracker = cls(model, **options)
        tracker._state = state
        return tracker

    def _fresh(self) -> TrackerState:
        return TrackerState(MemoryBank(self._steps.video, most_conditioning=self._most_conditioning))

    def _add(self, obj_id: int, request: Request, frame: When, clear_old: bool) -> TrackedFrame | None:
        if isinstance(obj_id, bool) or not isinstance(obj_id, int | np.integer):
            raise PromptError("an object id must be a whole number", got=repr(obj_id), expected="an int")
        obj_id = int(obj_id)
        if frame == "next":
            self._state.pending[obj_id] = request.added_to(None if clear_old else self._state.pending.get(obj_id))
            return None
        if frame != "last":
            raise PromptError("unknown frame", got=repr(frame), expected="'next' or 'last'")
        if self._state.last is None:
            raise PromptError(
                "there is no last frame to point at",
                got="no frame so far",
                fix="frame='next', or tracker.step(...) first",
            )
        last = self._state.last
        if last.features is None:
            assert last.image is not None
            last.features, last.image = self._steps.encode(last.image), None
        self._apply(last, {obj_id: request.added_to(None if clear_old else last.requests.get(obj_id))})
        return self._output(last)

    def _apply(self, last: LastFrame, requests: Mapping[int, Request], views: Mapping[int, View] | None = None) -> None:
        """Change what the last frame shows of some objects; new ones are added. Nothing has changed when it raises.

        views: of the bank's rows, where they are known
        """
        if not requests:
            return
        state, outcome = self._state, last.outcome
        new = [obj_id for obj_id in requests if obj_id not in state.obj_ids]
        obj_ids = state.obj_ids + new
        for ids in self._groups(last, requests):
            part = self._prompted(last, ids, [requests[obj_id] for obj_id in ids], views or {})
            known = part.take([]) if outcome is None else outcome
            outcome = known.replaced([obj_ids.index(obj_id) for obj_id in ids], part)
        for _ in new:
            state.bank.add_object()
        state.obj_ids, last.outcome, last.tracked = obj_ids, outcome, last.tracked + [False] * len(new)
        last.requests |= requests

    def _groups(self, last: LastFrame, requests: Mapping[int, Request]) -> list[list[int]]:
        """The objects that can be decoded together: by kind of prompt, and by what is known of them."""
        groups: dict[object, list[int]] = {}
        for obj_id, request in requests.items():
            known = obj_id in self._state.obj_ids
            tracked = known and last.tracked[self._state.obj_ids.index(obj_id)]
            key = "mask" if request.mask is not None else (request.kind, known, tracked)
            groups.setdefault(key, []).append(obj_id)
        return list(groups.values())

    def _prompted(
        self, last: LastFrame, ids: Sequence[int], requests: Sequence[Request], views: Mapping[int, View]
    ) -> Outcome:
        """Decode the prompts of one group."""
        assert last.features is not None
        masks = [one.mask for one in requests if one.mask is not None]
        if masks:
            return self._steps.prompt_masks(last.features, masks)
        if last.outcome is None or ids[0] not in self._state.obj_ids:  # the object is new
            return self._steps.prompt(last.features, prompts_of(requests))
        rows = [self._state.obj_ids.index(obj_id) for obj_id in ids]
        clamp = self.model.manifest.numbers.masks.logits_clamp
        prompts = prompts_of(requests, np.clip(last.outcome.logits[rows], -clamp, clamp))
        if not last.tracked[rows[0]]:  # it was new on this frame
            return self._steps.prompt(last.features, prompts)
        if not all(row in views for row in rows):
            views = dict(zip(rows, self._steps.look(last.features, self._state.bank, rows, last.index), strict=True))
        return self._steps.prompt(last.features, prompts, [views[row] for row in rows])

    def _settle(self) -> None:
        """Put the last frame into memory: it is not corrected any more."""
        last = self._state.last
        if last is not None and last.outcome is not None:
            assert last.features is not None
            memory, pointers = self._steps.remember(last.features, last.outcome)
            rows = range(len(self._state.obj_ids))
            self._state.bank.write(last.index, rows, memory, pointers, last.outcome.prompted.tolist())
        self._state.last = None

    def _output(self, last: LastFrame) -> TrackedFrame:
        assert self._state.hw is not None
        numbers = self.model.manifest.numbers
        empty = np.zeros(0, np.float32)
        outcome = last.outcome
        return TrackedFrame(
            frame_index=last.index,
            obj_ids=tuple(self._state.obj_ids),
            logits=np.zeros((0, *numbers.masks.size_hw), np.float32) if outcome is None else outcome.logits,
            scores=empty if outcome is None else outcome.scores,
            object_scores=empty if outcome is None else outcome.object_scores,
            frame=self._steps.frame(self._state.hw),
            mask_threshold=numbers.masks.threshold,
            non_overlap=self._non_overlap,
        )

    def _check_size(self, hw: tuple[int, int]) -> None:
        known = self._state.hw
        if known is not None and hw != known:
            raise ImageError(
                f"frame {self._state.next_index} has another size than the frames before",
                got=f"{hw[1]} x {hw[0]}",
                expected=f"{known[1]} x {known[0]}",
                fix="resize it, or tracker.reset() to begin a new video",
            )

    def _check_pending(self, hw: tuple[int, int]) -> None:
        """Check the waiting prompts before anything changes. A bad one is dropped, so that a stream can go on."""
        for obj_id, request in list(self._state.pending.items()):
            try:
                request.check(hw, obj_id)
                if request.mask is None:
                    self._steps.check_points(prompts_of([request]), hw)
            except PromptError:
                del self._state.pending[obj_id]
                raise
