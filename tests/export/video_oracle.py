"""An independent SAM 2 for video: transformers' ``Sam2VideoModel`` with our weights, driven as the official predictor is.

transformers supplies every network and the rules of memory (`_run_single_frame_inference`); this file supplies what its
own loop does otherwise than the official predictor:

- a corrective click gets the previous logits, and its frame becomes a conditioning frame
- memory is not rounded to bfloat16, and that of a prompted frame is made of the low-res mask
- the pointer of a mask prompt comes from the single mask's token, not from the best of three
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from oracle import hf_config, hf_state, preprocess
from torch.nn import functional as F
from transformers import Sam2VideoConfig, Sam2VideoMaskDecoderConfig, Sam2VideoModel, Sam2VideoPromptEncoderConfig
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from samrt_export.families.sam2 import CONFIGS, Sam2


def hf_video_config(model: str) -> Sam2VideoConfig:
    """transformers' configuration of one of our models."""
    config, image = CONFIGS[model], hf_config(model)
    dim = config.d_model
    return Sam2VideoConfig(
        vision_config=image.vision_config,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=dim, image_size=config.image_size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=dim,
            mlp_dim=config.mlp_dim,
            iou_head_hidden_dim=config.iou_hidden_dim,
            layer_norm_eps=1e-5,
            dynamic_multimask_via_stability=True,
        ),
        image_size=config.image_size,
        memory_attention_hidden_size=dim,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=config.mlp_dim,
        memory_attention_rope_feat_sizes=[config.embed_size] * 2,
        memory_encoder_hidden_size=dim,
        memory_encoder_output_channels=config.memory_dim,
        mask_downsampler_embed_dim=dim,
        memory_fuser_embed_dim=dim,
        memory_fuser_intermediate_dim=4 * dim,
        enable_occlusion_spatial_embedding=config.pointer_positions,
        enable_temporal_pos_encoding_for_object_pointers=config.pointer_positions,
    )


def hf_video_model(module: Sam2, model: str) -> Sam2VideoModel:
    """transformers' model with the weights of ours, every key matched."""
    oracle = Sam2VideoModel(hf_video_config(model)).eval()
    oracle.load_state_dict(hf_state(oracle.state_dict(), module.state_dict()), strict=True)
    return oracle


class VideoOracle:
    """One clip in transformers' model, object by object. Methods return low-res logits (h, w), holes not filled."""

    def __init__(self, model: Sam2VideoModel, frames: list[np.ndarray], *, streaming: bool = False) -> None:
        self.model, self.hw, self.streaming = model, frames[0].shape[:2], streaming
        self.size = model.config.image_size
        pixels = torch.cat([preprocess(frame, self.size) for frame in frames])
        self.session = Sam2VideoInferenceSession(
            video=pixels,
            video_height=self.hw[0],
            video_width=self.hw[1],
            dtype=torch.float32,
            max_vision_features_cache_size=4,
        )
        self.temp: dict[int, dict[int, Any]] = {}

    @property
    def obj_ids(self) -> list[int]:
        return list(self.session.obj_ids)

    @torch.inference_mode()
    def add(
        self,
        frame: int,
        obj_id: int,
        points: list[list[float]] | None = None,
        labels: list[int] | None = None,
        box: list[float] | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """A prompt in the frame's pixels."""
        row = self.session.obj_id_to_idx(obj_id)
        temp = self.temp.setdefault(obj_id, {})
        if mask is not None:
            temp[frame] = self._from_mask(frame, mask)
            return self._logits(temp[frame])
        coords = np.array([*([box[:2], box[2:]] if box else []), *(points or [])], np.float64)
        marks = [*([2, 3] if box else []), *(labels or [])]
        coords *= [self.size / self.hw[1], self.size / self.hw[0]]
        known = self.session.output_dict_per_obj[row]
        earlier = (
            temp.get(frame) or known["cond_frame_outputs"].get(frame) or known["non_cond_frame_outputs"].get(frame)
        )
        tracked = self.session.frames_tracked_per_obj[row]
        temp[frame] = self.model._run_single_frame_inference(
            inference_session=self.session,
            frame_idx=frame,
            obj_idx=row,
            batch_size=1,
            is_init_cond_frame=frame not in tracked,
            point_inputs={
                "point_coords": torch.from_numpy(coords.astype(np.float32))[None, None],
                "point_labels": torch.tensor(marks, dtype=torch.int32)[None, None],
            },
            mask_inputs=None,
            reverse=tracked.get(frame, {}).get("reverse", False),
            prev_sam_mask_logits=None if earlier is None else earlier["pred_masks"].clamp(-32, 32),
            streaming=self.streaming,
        )
        return self._logits(temp[frame])

    @torch.inference_mode()
    def preflight(self) -> None:
        """Put prompts into memory, as conditioning frames."""
        for obj_id, temp in self.temp.items():
            known = self.session.output_dict_per_obj[self.session.obj_id_to_idx(obj_id)]
            for frame, out in temp.items():
                self._remember(frame, out, binarize=True)
                known["cond_frame_outputs"][frame] = out
                known["non_cond_frame_outputs"].pop(frame, None)
            temp.clear()

    @torch.inference_mode()
    def track(self, frame: int, *, reverse: bool = False) -> dict[int, np.ndarray]:
        """One frame of a propagation, all objects."""
        found = {}
        for row, obj_id in enumerate(self.obj_ids):
            known = self.session.output_dict_per_obj[row]
            out = known["cond_frame_outputs"].get(frame)
            if out is None:
                out = self.model._run_single_frame_inference(
                    inference_session=self.session,
                    frame_idx=frame,
                    obj_idx=row,
                    batch_size=1,
                    is_init_cond_frame=False,
                    point_inputs=None,
                    mask_inputs=None,
                    reverse=reverse,
                    streaming=self.streaming,
                )
                self._remember(frame, out, binarize=False)
                known["non_cond_frame_outputs"][frame] = out
            self.session.frames_tracked_per_obj[row][frame] = {"reverse": reverse}
            found[obj_id] = self._logits(out)
        return found

    def masks(self, logits: dict[int, np.ndarray]) -> np.ndarray:
        """Low-res logits -> bool (K, H, W)."""
        large = F.interpolate(
            torch.from_numpy(np.stack(list(logits.values())))[:, None], self.hw, mode="bilinear", align_corners=False
        )
        return (large[:, 0] > 0).numpy()

    def _logits(self, out: dict[str, Any]) -> np.ndarray:
        return out["pred_masks"].reshape(out["pred_masks"].shape[-2:]).numpy()

    def _map(self, frame: int) -> torch.Tensor:
        """The coarse features, without the embedding that says that there is no memory: (1, C, h, w)."""
        features, _ = self.model._prepare_vision_features(self.session, frame, 1)
        return features[-1].permute(1, 2, 0).unflatten(2, self.model.backbone_feature_sizes[-1])

    def _from_mask(self, frame: int, mask: np.ndarray) -> dict[str, Any]:
        """Source: ``SAM2Base._use_mask_as_output``."""
        features, _ = self.model._prepare_vision_features(self.session, frame, 1)
        sizes = self.model.backbone_feature_sizes
        maps = [one.permute(1, 2, 0).unflatten(2, size) for one, size in zip(features[:-1], sizes[:-1], strict=True)]
        large = torch.from_numpy(mask.astype(np.float32))[None, None]
        if mask.shape != (self.size, self.size):
            large = F.interpolate(large, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        large = (large >= 0.5).float()
        low = F.interpolate(
            large * 20 - 10, (self.size // 4,) * 2, mode="bilinear", align_corners=False, antialias=True
        )
        pointer = self.model._single_frame_forward(
            input_masks=self.model.mask_downsample(large),
            image_embeddings=[*maps, self._map(frame)],
            multimask_output=False,
        ).object_pointer
        seen = bool(large.any())
        return {
            "pred_masks": low,
            "object_pointer": pointer if seen else self.model.no_object_pointer[None],
            "object_score_logits": torch.full((1, 1, 1), 10.0 if seen else -10.0),
        }

    def _remember(self, frame: int, out: dict[str, Any], *, binarize: bool) -> None:
        """Source: ``SAM2Base._encode_new_memory``."""
        model = self.model
        low = out["pred_masks"].reshape(1, 1, *out["pred_masks"].shape[-2:])
        large = F.interpolate(low, (self.size, self.size), mode="bilinear", align_corners=False)
        mask = ((large > 0).float() if binarize else large.sigmoid()) * 20 - 10
        memory, position = model.memory_encoder(self._map(frame), mask)
        absent = (out["object_score_logits"].reshape(1, 1, 1, 1) <= 0).float()
        if model.occlusion_spatial_embedding_parameter is not None:
            memory = memory + absent * model.occlusion_spatial_embedding_parameter[..., None, None]
        out["maskmem_features"] = memory.flatten(2).permute(2, 0, 1)
        out["maskmem_pos_enc"] = position.flatten(2).permute(2, 0, 1)
