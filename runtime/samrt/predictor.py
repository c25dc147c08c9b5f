"""A drop-in for ``SAM2ImagePredictor`` (and, its method names being the same, largely for ``SamPredictor``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.features import Features
from samrt.images import Image
from samrt.model import Model, check_prompted
from samrt.prompts import Prompts
from samrt_engines.errors import ImageError

Float32Array = NDArray[np.float32]
Prediction = tuple[NDArray[Any], Float32Array, Float32Array]
"""masks, scores and low-res logits, as `ImagePredictor.predict` documents them."""


class ImagePredictor:
    """Holds the features of one picture, or of a batch, between calls. State of its own: use one per thread.

    Argument names, order, defaults, shapes and return order are those of ``SAM2ImagePredictor``. Where it differs:

    - masks are bool, as ``SamPredictor``'s; upstream returns 0.0 and 1.0 as float32. Logits are float32 in both
    - ``hq_token_only`` of sam-hq's ``SamPredictor`` comes last, by name
    - arrays are numpy's, also from `get_image_embedding`
    - mistakes raise an error of samrt's tree: no prompt, a point far outside the picture, no picture set
    """

    def __init__(
        self,
        model: Model,
        mask_threshold: float | None = None,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
    ) -> None:
        """Wrap a model.

        mask_threshold: where a logit becomes mask; None is the model's own
        max_hole_area, max_sprinkle_area: largest holes to fill and specks to remove, in low-res pixels; 0 is off
        """
        check_prompted(model, "ImagePredictor")
        self.model = model
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self._features: Features | None = None
        self._is_batch = False

    def set_image(self, image: Image) -> None:
        """Encode the picture that `predict` is then asked about: uint8 (H, W, 3) RGB or a PIL image."""
        self.reset_predictor()
        self._features = self.model.encode(image)

    def set_image_batch(self, image_list: Sequence[Image]) -> None:
        """Encode the pictures that `predict_batch` is then asked about, of any sizes."""
        self.reset_predictor()
        self._features = self.model.encode(list(image_list))
        self._is_batch = True

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        hq_token_only: bool = False,
    ) -> Prediction:
        """Predict masks for the picture of `set_image`.

        point_coords: (N, 2) or (P, N, 2), x and y in original pixels
        point_labels: (N,) or (P, N), 1 on the object, 0 not on it
        box: (4,) or (P, 4), x0 y0 x1 y1 in original pixels
        mask_input: (1, h, w) or (P, 1, h, w), low-res logits of an earlier prediction
        multimask_output: several candidates, or a single one
        return_logits: masks as float32 logits, before the threshold
        normalize_coords: False when coordinates are in 0..1 already
        hq_token_only: of SAM-HQ models the HQ mask alone, see `Model.decode`; C is then 1

        returns: masks bool (C, H, W), scores float32 (C,), low-res logits float32 (C, h, w); for P > 1 prompts, each
            with a leading P
        Raises PromptError; ImageError when there is no picture; InputError for hq_token_only of a model that cannot.
        """
        features = self._stored(batch=False)
        prompts = Prompts(point_coords, point_labels, box, mask_input)
        return self._predict(features, prompts, multimask_output, return_logits, normalize_coords, hq_token_only)

    def predict_batch(
        self,
        point_coords_batch: Sequence[ArrayLike] | None = None,
        point_labels_batch: Sequence[ArrayLike] | None = None,
        box_batch: Sequence[ArrayLike] | None = None,
        mask_input_batch: Sequence[ArrayLike] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        hq_token_only: bool = False,
    ) -> tuple[list[NDArray[Any]], list[Float32Array], list[Float32Array]]:
        """Predict masks for each picture of `set_image_batch`: `predict`, with one entry per picture in every list."""
        features = self._stored(batch=True)
        batches = (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        for name, batch in zip(("point_coords", "point_labels", "box", "mask_input"), batches, strict=True):
            if batch is not None and len(batch) != len(features):
                raise ImageError(
                    f"{name}_batch does not match the pictures",
                    got=f"{len(batch)} entries",
                    expected=f"{len(features)}, one for each picture",
                )
        predictions = []
        for index, one in enumerate(features):
            prompts = Prompts(*(None if batch is None else batch[index] for batch in batches))
            predictions.append(
                self._predict(one, prompts, multimask_output, return_logits, normalize_coords, hq_token_only)
            )
        masks, scores, logits = zip(*predictions, strict=True)
        return list(masks), list(scores), list(logits)

    def get_image_embedding(self) -> Float32Array:
        """The features the decoder attends to, ``image_embed``: float32 (B, C, h, w), read-only."""
        features = self._stored(batch=self._is_batch)
        embedding: Float32Array = features.tensors["image_embed"]
        if embedding.ndim == 4:
            return embedding
        height, width = self.model.manifest.numbers.masks.size_hw  # (B, h * w, C): of the masks' proportions
        rows = math.isqrt(embedding.shape[1] * height // width)
        return embedding.transpose(0, 2, 1).reshape(len(embedding), embedding.shape[2], rows, -1)

    @property
    def device(self) -> str:
        """Where the model runs: "cpu" or "cuda"."""
        return self.model.device

    def reset_predictor(self) -> None:
        """Forget the picture."""
        self._features = None
        self._is_batch = False

    def _stored(self, batch: bool) -> Features:
        if self._features is None or self._is_batch != batch:
            call = "set_image_batch([image, ...])" if batch else "set_image(image)"
            got = "nothing set" if self._features is None else "a batch" if self._is_batch else "a single picture"
            raise ImageError("no picture to predict on", got=got, fix=f"predictor.{call} first")
        return self._features

    def _predict(
        self,
        features: Features,
        prompts: Prompts,
        multimask: bool,
        return_logits: bool,
        normalize_coords: bool,
        hq_token_only: bool,
    ) -> Prediction:
        if not normalize_coords:
            height, width = features.image_hw[0]
            prompts = prompts.scaled(width, height)
        result = self.model.decode(
            features,
            prompts,
            multimask,
            fill_hole_area=self.max_hole_area,
            remove_sprinkle_area=self.max_sprinkle_area,
            mask_threshold=self.mask_threshold,
            hq_token_only=hq_token_only,
        )
        masks = result.upscaled_logits() if return_logits else result.masks
        if len(result) == 1:
            return masks[0], result.scores[0], result.logits[0]
        return masks, result.scores, result.logits
