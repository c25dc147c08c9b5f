"""The official video predictor, told again in plain dicts over the doubles' functions: one object at a time, everything
kept, nothing shared with samrt.video. Source: sam2/sam2_video_predictor.py and sam2/modeling/sam2_base.py, with
``add_all_frames_to_correct_as_cond`` on and hole filling off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import doubles
from .doubles import MASK, SIZE

Array = Any


class Official:
    """Prompts, memories and masks of a clip, object by object."""

    def __init__(self, model: doubles.Model, frames: list[Array], num_maskmem: int = 7, max_pointers: int = 16) -> None:
        self.maps = [model.encode(frame).tensors for frame in frames]
        self.hw = frames[0].shape[:2]
        self.num_frames: int | None = len(frames)
        self.num_maskmem, self.max_pointers = num_maskmem, max_pointers
        self.objects: dict[int, dict[str, dict[int, Any]]] = {}

    def add(
        self, frame: int, obj_id: int, points: Array = (), labels: Array = (), box: Array = None, mask: Array = None
    ) -> Array:
        """A prompt; returns the low-res logits of the object on that frame."""
        known = self.objects.setdefault(obj_id, {"cond": {}, "non_cond": {}, "temp": {}, "tracked": {}})
        if mask is not None:
            known["temp"][frame] = self._from_mask(frame, mask)
            return known["temp"][frame]["logits"]
        scale = np.array([SIZE / self.hw[1], SIZE / self.hw[0]])
        points, labels = [*points], [*labels]
        if box is not None:
            points, labels = [box[:2], box[2:], *points], [2, 3, *labels]
        prev = known["temp"].get(frame) or known["cond"].get(frame) or known["non_cond"].get(frame)
        maps = self.maps[frame]
        if frame in known["tracked"]:
            maps = self._conditioned(known, frame, known["tracked"][frame])
        known["temp"][frame] = self._heads(
            maps, np.array(points) * scale, labels, None if prev is None else np.clip(prev["logits"], -32, 32)
        )
        return known["temp"][frame]["logits"]

    def preflight(self) -> None:
        for known in self.objects.values():
            for frame, out in known["temp"].items():
                self._encode_memory(frame, out, binarize=True)
                known["cond"][frame] = out
                known["non_cond"].pop(frame, None)
            known["temp"].clear()

    def track(self, frame: int, reverse: bool = False) -> dict[int, Array]:
        """One frame of propagate_in_video: low-res logits by object."""
        found = {}
        for obj_id, known in self.objects.items():
            out = known["cond"].get(frame)
            if out is None:
                out = self._heads(self._conditioned(known, frame, reverse), np.zeros((0, 2)), [], None)
                self._encode_memory(frame, out, binarize=False)
                known["non_cond"][frame] = out
            known["tracked"][frame] = reverse
            found[obj_id] = out["logits"]
        return found

    def _conditioned(self, known: dict[str, dict[int, Any]], frame: int, reverse: bool) -> dict[str, Array]:
        memory, times, pointers, distances = [], [], [], []
        for out in known["cond"].values():
            memory.append(out["memory"])
            times.append(self.num_maskmem - 1)
        for t_rel in range(1, self.num_maskmem):
            out = known["non_cond"].get(frame + t_rel if reverse else frame - t_rel)
            if out is not None:
                memory.append(out["memory"])
                times.append(t_rel - 1)
        most = self.max_pointers if self.num_frames is None else min(self.num_frames, self.max_pointers)
        for t, out in known["cond"].items():
            if t >= frame if reverse else t <= frame:
                pointers.append(out["pointer"])
                distances.append((frame - t) * (-1 if reverse else 1))
        for t_diff in range(1, most):
            t = frame + t_diff if reverse else frame - t_diff
            if t < 0 or (self.num_frames is not None and t >= self.num_frames):
                break
            if t in known["non_cond"]:
                pointers.append(known["non_cond"][t]["pointer"])
                distances.append(t_diff)
        feeds = {
            "image_embed": self.maps[frame]["image_embed"],
            "memory": np.stack(memory)[None],
            "memory_time": np.array([times]),
            "memory_valid": np.ones((1, len(times))),
            "object_pointers": np.array(pointers).reshape(1, -1, doubles.DIM),
            "pointer_distance": np.array([distances]).reshape(1, -1) / max(most - 1, 1),
            "pointer_valid": np.ones((1, len(distances))),
        }
        made = doubles.memory_attention(feeds)
        return {
            "image_embed": made["conditioned_embed"],
            "image_keys": made["conditioned_keys"],
            "high_res_feats_0": self.maps[frame]["high_res_feats_0"],
        }

    def _heads(
        self, maps: Any, points: Array, labels: list[int], mask: Array | None, multimask: bool | None = None
    ) -> dict[str, Any]:
        """``_forward_sam_heads``. points: (N, 2) input pixels; mask: low-res logits (h, w)"""
        count = len(labels)
        multimask = count <= 1 if multimask is None else multimask
        if not count:
            points, labels = np.zeros((1, 2)), [-1]
        prompt = {
            "point_coords": np.concatenate([points, np.zeros((1, 2))])[None],
            "point_labels": np.array([[*labels, -1]]),
            "mask_input": (np.zeros((MASK, MASK)) if mask is None else mask)[None, None],
            "has_mask_input": np.array([0.0 if mask is None else 1.0]),
        }
        made = doubles.mask_decoder({**maps, **doubles.prompt_encoder(prompt)})
        masks, ious, tokens = made["low_res_masks"][0], made["iou_predictions"][0], made["mask_tokens"][0]
        best = 1 + int(np.argmax(ious[1:]))
        chosen, token = (best, best) if multimask else (0, 0)
        if not multimask:  # _dynamic_multimask_via_stability
            inner, outer = (masks[0] > 0.05).sum(), (masks[0] > -0.05).sum()
            if (inner / outer if outer else 1.0) < 0.98:
                chosen = best
        score = float(made["object_score_logits"][0, 0])
        logits = masks[chosen] if score > 0 else np.full((MASK, MASK), -1024.0)
        return {"logits": logits, "score": score, "pointer_score": score, "token": tokens[token]}

    def _from_mask(self, frame: int, mask: Array) -> dict[str, Any]:
        """``_use_mask_as_output``; masks have the model's input size here, so that nothing is resized but by four."""
        assert mask.shape == (SIZE, SIZE)
        small = doubles.mask_downsampler({"mask": mask[None, None] * 1.0})["mask_prompt"][0, 0]
        out = self._heads(self.maps[frame], np.zeros((0, 2)), [], small, multimask=False)
        shown = 10.0 if mask.any() else -10.0
        out["pointer_score"] = out["score"] if shown > 0 else -10.0
        out["score"] = shown
        return {**out, "logits": _antialiased(mask * 20.0 - 10.0)}

    def _encode_memory(self, frame: int, out: dict[str, Any], binarize: bool) -> None:
        def run(score: float) -> dict[str, Array]:
            return doubles.memory_encoder(
                {
                    "image_embed": self.maps[frame]["image_embed"],
                    "mask_logits": out["logits"][None, None],
                    "binarize": np.array([float(binarize)]),
                    "object_score_logits": np.array([[score]]),
                    "object_token": out["token"][None],
                }
            )

        out["memory"] = run(out["score"])["frame_memory"][0]
        out["pointer"] = run(out["pointer_score"])["object_pointer"][0]


def _antialiased(plane: Array) -> Array:
    """Half the size by the triangle filter of support 2: weights 1, 3, 3, 1 over each pair, less at the edges."""
    size = len(plane)
    weights = np.zeros((size // 2, size))
    for out in range(size // 2):
        centre = 2 * out + 1
        for source in range(size):
            weights[out, source] = max(0.0, 1 - abs(source + 0.5 - centre) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ plane @ weights.T
