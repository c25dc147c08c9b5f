"""A drop-in for ``SAM2VideoPredictor``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from samrt.model import Model
from samrt.video.outcome import Float32Array, Outcome, join_outcomes, video_logits
from samrt.video.requests import Request, mask_request, point_request, prompts_of
from samrt.video.steps import Steps
from samrt.video.video_state import Source, VideoState
from samrt_engines.errors import PromptError

Prediction = tuple[int, list[Any], Float32Array]
"""frame_idx, obj_ids, and video_res_masks: float32 (K, 1, H, W) logits, above 0 on the object."""


class VideoPredictor:
    """Prompts on any frame of a whole video, masks on all of them. The state is a `VideoState`, made by `init_state`.

    ::

        predictor = samrt.VideoPredictor(model)
        state = predictor.init_state("clip.mp4")
        predictor.add_new_points_or_box(state, frame_idx=0, obj_id=1, points=[[320, 200]], labels=[1])
        for frame_idx, obj_ids, video_res_masks in predictor.propagate_in_video(state):
            masks = video_res_masks[:, 0] > 0

    Argument names, order, meaning and return values are those of the official predictor. Where it differs:

    - a frame that was tracked and then corrected becomes a conditioning frame, so the correction takes effect. The
      official default (``add_all_frames_to_correct_as_cond=False``) keeps it as an ordinary frame, whose effect ends a
      few frames later; with that option on, both do the same
    - all objects that a frame needs are tracked in one batch; upstream takes them one by one
    - memory is kept as the model makes it; upstream rounds it to bfloat16
    - at most as many conditioning frames are attended to as the model's graphs have room for, 10 in SAM 2: the closest
    - arrays are numpy's; frames are read when they are needed and not kept; nothing is printed
    - mistakes raise an error of samrt's tree

    What it remembers grows with every frame that is tracked, as upstream's does. `VideoTracker` is for videos without end.
    """

    def __init__(
        self,
        model: Model,
        fill_hole_area: float | None = None,
        non_overlap_masks: bool = False,
        *,
        cached_features: int = 2,
    ) -> None:
        """Wrap a model.

        fill_hole_area: the largest holes in masks to fill, in low-res pixels; None is the model's number, 0 is off
        non_overlap_masks: let at most one object have each pixel, the one with the highest logit
        cached_features: of how many frames the features are kept, for several prompts on one frame

        Raises BundleError for a model that cannot track.
        """
        self.model = model
        self.non_overlap_masks = non_overlap_masks
        self._cached_features = max(1, cached_features)
        self._steps = Steps(model, fill_hole_area)

    def init_state(
        self,
        video_path: Source,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> VideoState:
        """Open a video.

        video_path: a video file, a folder of pictures, or the frames themselves: uint8 (H, W, 3) RGB
        offload_state_to_cpu: remember in host memory what a GPU computes: slower, and the GPU holds less in a long video
        offload_video_to_cpu, async_loading_frames: without effect; frames are read when needed

        Raises ImageError for a video without frames.
        """
        return VideoState(self._steps, video_path, self._cached_features, memory_on_host=offload_state_to_cpu)

    def add_new_points_or_box(
        self,
        inference_state: VideoState,
        frame_idx: int,
        obj_id: Any,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: ArrayLike | None = None,
    ) -> Prediction:
        """Point an object out on a frame, or correct it there.

        points: (N, 2) x and y; labels: (N,) 1 on the object, 0 not on it; box: (4,) x0 y0 x1 y1
        clear_old_points: forget the points given before for this object on this frame
        normalize_coords: coordinates are in the video's pixels; False when they are in 0..1 already

        returns: the frame's masks of all objects; -1024 where an object has none yet
        Raises PromptError.
        """
        state, frame_idx = inference_state, inference_state.check_frame(frame_idx)
        if box is not None and not clear_old_points:
            raise PromptError(
                "a box cannot be added to old points",
                got="box with clear_old_points=False",
                expected="the box first, then points",
                fix="clear_old_points=True",
            )
        request = point_request(points, labels, box)
        if not normalize_coords:
            scaled = prompts_of([request]).scaled(state.video_width, state.video_height)
            request = point_request(
                None if scaled.points is None else scaled.points[0],
                None if scaled.labels is None else scaled.labels[0],
                scaled.boxes,
            )
        self._steps.check_points(prompts_of([request]), state.hw)
        if obj_id in state.obj_ids and not clear_old_points:
            request = request.added_to(state.objects[state.row(obj_id)].requests.get(frame_idx))
        outcome = self._prompted(state, obj_id, frame_idx, request)
        known = state.objects[state.row(obj_id)]
        known.requests[frame_idx] = request
        known.fresh[frame_idx] = outcome
        return frame_idx, list(state.obj_ids), self._shown(state, frame_idx)

    def add_new_points(self, *args: Any, **kwargs: Any) -> Prediction:
        """The old name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(self, inference_state: VideoState, frame_idx: int, obj_id: Any, mask: ArrayLike) -> Prediction:
        """Say what an object's mask is on a frame: (H, W), not 0 on the object. Returns and raises as for points."""
        state, frame_idx = inference_state, inference_state.check_frame(frame_idx)
        request = mask_request(mask, state.hw)
        assert request.mask is not None
        outcome = self._steps.prompt_masks(state.features(frame_idx), [request.mask])
        known = state.objects[state.row(obj_id)]
        known.requests[frame_idx] = request
        known.fresh[frame_idx] = outcome
        return frame_idx, list(state.obj_ids), self._shown(state, frame_idx)

    def propagate_in_video(
        self,
        inference_state: VideoState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Prediction]:
        """Track all objects through the video.

        start_frame_idx: None is the first frame with a prompt
        max_frame_num_to_track: how many frames after the first one; None is all
        reverse: towards the beginning

        Yields each frame's masks. Raises PromptError where there is no object, or one without any prompt.
        """
        state = inference_state
        self._preflight(state)
        obj_ids = list(state.obj_ids)
        if start_frame_idx is None:
            start_frame_idx = min(frame for row in range(len(obj_ids)) for frame in state.bank.conditioning_frames(row))
        start_frame_idx = state.check_frame(start_frame_idx)
        most = state.num_frames if max_frame_num_to_track is None else max_frame_num_to_track
        if reverse:  # as upstream, nothing at all from frame 0
            order = range(start_frame_idx, max(start_frame_idx - most, 0) - 1, -1) if start_frame_idx else range(0)
        else:
            order = range(start_frame_idx, min(start_frame_idx + most, state.num_frames - 1) + 1)
        for frame_idx in order:
            rows = [state.obj_ids.index(obj_id) for obj_id in obj_ids if obj_id in state.obj_ids]
            self._track(state, frame_idx, rows, reverse)
            logits = np.stack([state.objects[row].logits[frame_idx] for row in rows])
            yield frame_idx, [state.obj_ids[row] for row in rows], self._video_res(state, logits)

    def clear_all_prompts_in_frame(
        self, inference_state: VideoState, frame_idx: int, obj_id: Any, need_output: bool = True
    ) -> Prediction | None:
        """Take back what was asked about an object on a frame; what was tracked stays. Returns the frame's masks.

        Raises PromptError for an object or a frame that is not there.
        """
        state, frame_idx = inference_state, inference_state.check_frame(frame_idx)
        if obj_id not in state.obj_ids:
            self._unknown(state, obj_id)
        row = state.obj_ids.index(obj_id)
        known = state.objects[row]
        known.requests.pop(frame_idx, None)
        known.fresh.pop(frame_idx, None)
        if frame_idx in state.bank.conditioning_frames(row):
            state.bank.demote(row, frame_idx)
            known.tracked.pop(frame_idx, None)
        return (frame_idx, list(state.obj_ids), self._shown(state, frame_idx)) if need_output else None

    def remove_object(
        self, inference_state: VideoState, obj_id: Any, strict: bool = False, need_output: bool = True
    ) -> tuple[list[Any], list[tuple[int, Float32Array]]]:
        """Forget an object.

        strict: an object that is not there is an error; else nothing happens

        returns: the objects that are left; and (frame_idx, video_res_masks) of the frames where the object had prompts
        Raises PromptError.
        """
        state = inference_state
        if obj_id not in state.obj_ids:
            if strict:
                self._unknown(state, obj_id)
            return list(state.obj_ids), []
        row = state.obj_ids.index(obj_id)
        frames = sorted(state.objects[row].requests)
        state.remove(row)
        if not state.obj_ids or not need_output:
            return list(state.obj_ids), []
        return list(state.obj_ids), [(frame, self._shown(state, frame)) for frame in frames]

    def reset_state(self, inference_state: VideoState) -> None:
        """Forget all objects; the video stays open."""
        inference_state.reset()

    def _prompted(self, state: VideoState, obj_id: Any, frame: int, request: Request) -> Outcome:
        """Decode points. An object that was tracked on the frame is looked for by what it remembers, too."""
        features, prompts = state.features(frame), prompts_of([request])
        if obj_id not in state.obj_ids:
            return self._steps.prompt(features, prompts)
        row = state.row(obj_id)
        known = state.objects[row]
        earlier = known.shown(frame)
        if earlier is not None:
            clamp = self.model.manifest.numbers.masks.logits_clamp
            prompts = prompts_of([request], np.clip(earlier[None], -clamp, clamp))
        if frame not in known.tracked or not state.bank.conditioning_frames(row):
            return self._steps.prompt(features, prompts)
        reverse = known.tracked[frame]
        views = self._steps.look(features, state.bank, [row], frame, reverse=reverse, num_frames=state.num_frames)
        return self._steps.prompt(features, prompts, views)

    def _preflight(self, state: VideoState) -> None:
        """Put what prompts gave into memory, all objects of a frame at once."""
        if not state.obj_ids:
            raise PromptError(
                "there is nothing to track", got="no objects", fix="predictor.add_new_points_or_box(...) first"
            )
        for frame in sorted({frame for known in state.objects for frame in known.fresh}):
            rows = [row for row, known in enumerate(state.objects) if frame in known.fresh]
            outcome = join_outcomes([state.objects[row].fresh[frame] for row in rows])
            memory, pointers = self._steps.remember(state.features(frame), outcome)
            state.bank.write(frame, rows, memory, pointers, [True] * len(rows))
            for row in rows:
                known = state.objects[row]
                known.logits[frame] = known.fresh.pop(frame).logits[0]
        for row, obj_id in enumerate(state.obj_ids):
            if not state.bank.conditioning_frames(row):
                raise PromptError(
                    f"object {obj_id!r} has no prompt left",
                    got="all of them were cleared",
                    expected="a prompt on some frame",
                    fix="point it out again, or predictor.remove_object(state, obj_id)",
                )

    def _track(self, state: VideoState, frame: int, rows: list[int], reverse: bool) -> None:
        """Find on a frame the objects that nobody pointed out there."""
        unprompted = [row for row in rows if frame not in state.bank.conditioning_frames(row)]
        if unprompted:
            features = state.features(frame)
            outcome, _ = self._steps.track(
                features, state.bank, unprompted, frame, reverse=reverse, num_frames=state.num_frames
            )
            memory, pointers = self._steps.remember(features, outcome)
            state.bank.write(frame, unprompted, memory, pointers, [False] * len(unprompted))
            for index, row in enumerate(unprompted):
                state.objects[row].logits[frame] = outcome.logits[index].copy()
        for row in rows:
            state.objects[row].tracked[frame] = reverse

    def _shown(self, state: VideoState, frame: int) -> Float32Array:
        """The frame's masks of all objects, in the video's pixels."""
        absent = self._steps.video.absent_logit
        logits = np.full((len(state.obj_ids), *self.model.manifest.numbers.masks.size_hw), absent, np.float32)
        for target, known in zip(logits, state.objects, strict=True):
            found = known.shown(frame)
            if found is not None:
                target[...] = found
        return self._video_res(state, logits)

    def _video_res(self, state: VideoState, logits: Float32Array) -> Float32Array:
        return video_logits(logits, self._steps.frame(state.hw), non_overlap=self.non_overlap_masks)[:, None]

    def _unknown(self, state: VideoState, obj_id: Any) -> None:
        raise PromptError(
            f"there is no object {obj_id!r}",
            got="an id that was never added, or was removed already",
            expected=f"one of {', '.join(map(repr, state.obj_ids)) or 'none: there are no objects'}",
        )
