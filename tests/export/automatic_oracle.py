"""The official automatic mask generator (the segment-anything package) on any model's answers.

The package imports torchvision, which has no build for PyTorch's CPU wheels: what it uses of it is written here in torch,
from torchvision's documentation.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Sam2Model

import samrt


class Predictor(Protocol):
    """The part of ``SamPredictor`` that the generator uses."""

    def set_image(self, image: np.ndarray) -> None: ...

    def logits(self, points: np.ndarray) -> tuple[Tensor, Tensor]:
        """Clicks (P, 2) in pixels -> logits (P, C, H, W) at the picture's size, scores (P, C)."""


def box_area(boxes: Tensor) -> Tensor:
    """xyxy (N, 4) -> (N,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression, one box at a time, best first; equal scores in the order given."""
    assert not idxs.any(), "one category"
    order, kept, area = torch.sort(scores, descending=True, stable=True)[1].tolist(), [], box_area(boxes)
    while order:
        best, order = order[0], order[1:]
        kept.append(best)
        rest = torch.tensor(order, dtype=torch.long)
        low, high = torch.maximum(boxes[best, :2], boxes[rest, :2]), torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        iou = (overlap / (area[best] + area[rest] - overlap)).double()
        order = rest[~(iou > iou_threshold)].tolist()
    return torch.tensor(kept, dtype=torch.long)


def stub_modules() -> dict[str, types.ModuleType]:
    """Modules that stand in for torchvision and OpenCV while the package is imported and used, by name."""
    names = ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms")
    modules = {name: types.ModuleType(name) for name in (*names, "torchvision.transforms.functional", "cv2")}
    boxes: Any = modules["torchvision.ops.boxes"]
    boxes.batched_nms, boxes.box_area = batched_nms, box_area
    functional: Any = modules["torchvision.transforms.functional"]
    functional.resize = functional.to_pil_image = None  # of the package's own predictor, which is not used
    cv2: Any = modules["cv2"]
    cv2.connectedComponentsWithStats = connected_components
    return modules


def connected_components(mask: np.ndarray, connectivity: int) -> tuple[int, np.ndarray, np.ndarray, None]:
    """OpenCV's function, of which the generator reads the labels and the last column of the statistics, the areas."""
    from scipy import ndimage

    assert connectivity == 8
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return count + 1, labels, areas[:, None], None


class _Shim:
    """``SamPredictor`` as the generator sees it."""

    device = "cpu"

    def __init__(self, predictor: Predictor, threshold: float) -> None:
        self._predictor = predictor
        self.model = types.SimpleNamespace(mask_threshold=threshold)
        self.transform = types.SimpleNamespace(apply_coords=lambda coords, size: coords)

    def set_image(self, image: np.ndarray) -> None:
        self._predictor.set_image(np.ascontiguousarray(image))

    def reset_image(self) -> None:
        pass

    def predict_torch(self, points: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor, None]:
        assert options == {"multimask_output": True, "return_logits": True}
        assert points.shape[1:] == (1, 2)
        assert labels.shape == points.shape[:2]
        assert (labels == 1).all()
        masks, scores = self._predictor.logits(points[:, 0].numpy())
        return masks, scores, None


def official_records(
    predictor: Predictor, image: np.ndarray, *, threshold: float = 0.0, **parameters: Any
) -> list[dict[str, Any]]:
    """What ``SamAutomaticMaskGenerator(..., **parameters).generate(image)`` returns with this predictor."""
    own = stub_modules()
    before = {name: sys.modules.get(name) for name in own}
    sys.modules.update(own)
    try:
        from segment_anything import SamAutomaticMaskGenerator

        placeholder = types.SimpleNamespace(image_encoder=types.SimpleNamespace(img_size=1024))
        generator = SamAutomaticMaskGenerator(placeholder, **parameters)
        generator.predictor = _Shim(predictor, threshold)
        records: list[dict[str, Any]] = generator.generate(image)
        return records
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class SamrtPredictor:
    """Low-res logits of a samrt model, brought to the picture's size by `upscale`."""

    def __init__(
        self, model: samrt.Model, upscale: Callable[[samrt.Result], np.ndarray], multimask: bool = True
    ) -> None:
        self._model, self._upscale, self._multimask = model, upscale, multimask

    def set_image(self, image: np.ndarray) -> None:
        self._features = self._model.encode(image)

    def logits(self, points: np.ndarray) -> tuple[Tensor, Tensor]:
        prompts = samrt.Prompts(points=points[:, None], labels=np.ones((len(points), 1), int))
        result = self._model.decode(self._features, prompts, self._multimask)
        return torch.from_numpy(self._upscale(result)), torch.from_numpy(result.scores)


def upscale_official(result: samrt.Result) -> np.ndarray:
    """Low-res logits to the picture's size as ``Sam.postprocess_masks`` and ``SAM2Transforms.postprocess_masks`` do."""
    frame, logits = result.frames[0], torch.from_numpy(result.mask_logits)
    if frame.content_hw != frame.input_hw:
        height, width = frame.content_hw
        logits = F.interpolate(logits, frame.input_hw, mode="bilinear", align_corners=False)[..., :height, :width]
    return F.interpolate(logits, frame.image_hw, mode="bilinear", align_corners=False).numpy()


class Sam2Predictor:
    """transformers' SAM 2."""

    def __init__(self, oracle: Sam2Model, preprocess: Callable[[np.ndarray, int], Tensor]) -> None:
        self._oracle, self._preprocess = oracle, preprocess
        self._size = oracle.config.prompt_encoder_config.image_size

    def set_image(self, image: np.ndarray) -> None:
        self._hw = image.shape[:2]
        with torch.inference_mode():
            self._embeddings = self._oracle.get_image_embeddings(self._preprocess(image, self._size))

    def logits(self, points: np.ndarray) -> tuple[Tensor, Tensor]:
        scaled = points * np.array([self._size / self._hw[1], self._size / self._hw[0]])
        with torch.inference_mode():
            out = self._oracle(
                image_embeddings=self._embeddings,
                input_points=torch.from_numpy(scaled.astype(np.float32))[None, :, None],
                input_labels=torch.ones(1, len(points), 1, dtype=torch.int64),
                multimask_output=True,
            )
            masks = F.interpolate(out.pred_masks[0], self._hw, mode="bilinear", align_corners=False)
        return masks, out.iou_scores[0]
