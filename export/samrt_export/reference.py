"""PyTorch as a contender in ``samrt bench --against pytorch`` and ``--against pytorch-compile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samrt.bench.tasks import WholeTask
from samrt.bundle import open_bundle
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, MASKS, PROMPT_ENCODER, SCORES, absent_mask_hw
from samrt.manifest import Manifest
from samrt.masks import choose_candidates
from samrt.numbers import ImageNumbers
from samrt.prompts import Prompts, to_tensors
from samrt.transforms import Frame
from samrt_engines.errors import BackendError
from samrt_export.registry import GraphSpec
from samrt_export.source import reference_graphs

MODES = ("eager", "compile")

Tensors = dict[str, Tensor]


class TorchReference:
    """The modules a bundle was made from, in fp32, as they are or through torch.compile."""

    def __init__(self, manifest: Manifest, specs: tuple[GraphSpec, ...], *, mode: str = "eager", device: str = "cpu"):
        self._manifest = manifest
        self._specs = {spec.name: spec for spec in specs}
        self._mode, self._device = mode, torch.device(device)
        self._modules: dict[str, Callable[..., tuple[Tensor, ...]]] = {}
        for spec in specs:
            module: nn.Module = spec.module.to(self._device)
            self._modules[spec.name] = torch.compile(module) if mode == "compile" else module

    def ran_on(self, graph: str) -> str:
        """The device, with the GPU's name."""
        if self._device.type == "cpu":
            return "cpu"
        return f"{self._device}, {torch.cuda.get_device_name(self._device)}"

    def on_gpu(self, graph: str) -> bool:
        """Whether that is a GPU."""
        return self._device.type != "cpu"

    def precision(self, graph: str) -> str:
        """fp32; on a GPU PyTorch's own default lets convolutions use TF32."""
        tf32 = self._device.type != "cpu" and torch.backends.cudnn.allow_tf32
        return "fp32, convolutions TF32" if tf32 else "fp32"

    def allocated_bytes(self) -> int | None:
        """The most that PyTorch's CUDA allocator handed out."""
        return None if self._device.type == "cpu" else torch.cuda.max_memory_allocated(self._device)

    def run_graph(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph's module on a graph's feeds. Raises BackendError."""
        outputs = self._run(name, {key: torch.from_numpy(value) for key, value in feeds.items()})
        return {key: value.cpu().numpy() for key, value in outputs.items()}

    def whole(self, task: WholeTask, picture: NDArray[np.uint8]) -> Callable[[], dict[str, NDArray[Any]]]:
        """A task from picture to masks, with PyTorch's own resizing at both ends. Raises BackendError."""
        prompts = task.prompts
        if prompts is None:
            return lambda: {key: value.cpu().numpy() for key, value in self._encode(picture).items()}
        features = self._encode(picture)
        frame = Frame((picture.shape[0], picture.shape[1]), self._manifest.numbers.image)
        return lambda: {"masks": self._masks(features, prompts, frame, task)}

    def close(self) -> None:
        """Drop the modules."""
        self._specs, self._modules = {}, {}

    def _encode(self, picture: NDArray[np.uint8]) -> Tensors:
        """uint8 (H, W, 3) -> the features the mask decoder takes, by name."""
        name = self._specs[IMAGE_ENCODER].inputs[0].name
        image = torch.from_numpy(picture).to(self._device)
        with torch.inference_mode():
            return self._run(IMAGE_ENCODER, {name: input_from_picture(image, self._manifest.numbers.image)})

    def _masks(self, features: Tensors, prompts: Prompts, frame: Frame, task: WholeTask) -> NDArray[np.bool_]:
        """Prompts -> bool (P, C, H, W). The choice among candidates is samrt's, on the low-res logits."""
        numbers = self._manifest.numbers
        arrays = to_tensors(prompts, (frame,), numbers.prompts, None, absent_mask_hw(self._manifest))
        feeds = {name: torch.from_numpy(value) for name, value in arrays.items()}
        known = features | self._run(PROMPT_ENCODER, feeds)
        outputs = self._run(MASK_DECODER, {spec.name: known[spec.name] for spec in self._specs[MASK_DECODER].inputs})
        chosen = choose_candidates(
            outputs[MASKS].cpu().numpy(), outputs[SCORES].cpu().numpy(), numbers.masks, multimask=task.multimask
        )
        logits = chosen.logits
        if task.best:
            logits = logits[np.arange(len(logits)), np.argmax(chosen.scores, axis=1)][:, None]
        with torch.inference_mode():
            masks = picture_logits(torch.from_numpy(logits).to(self._device), frame) > numbers.masks.threshold
        result: NDArray[np.bool_] = masks.cpu().numpy()
        return result

    def _run(self, name: str, feeds: Tensors) -> Tensors:
        spec = self._specs[name]
        arguments = [feeds[tensor.name].to(self._device) for tensor in spec.inputs]
        try:
            with torch.inference_mode():
                outputs = self._modules[name](*arguments)
        except (RuntimeError, ImportError, OSError) as error:  # what a compiler or its absence ends in, and CUDA
            what = "torch.compile cannot compile or run" if self._mode == "compile" else "PyTorch cannot run"
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise BackendError(f"{what} {name}", got=lines[0][:300]) from error
        return {tensor.name: value for tensor, value in zip(spec.outputs, outputs, strict=True)}


def open_reference(
    bundle: Path,
    *,
    mode: str = "eager",
    checkpoint: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> TorchReference:
    """Rebuild the PyTorch model of a bundle.

    Raises CheckpointError when its weights are not at hand, BackendError for a mode or device that is not there.
    """
    if mode not in MODES:
        known = ", ".join("pytorch" if one == "eager" else f"pytorch-{one}" for one in MODES)
        raise BackendError("unknown reference", got=repr(f"pytorch-{mode}"), expected=known)
    if torch.device(device).type != "cpu" and not torch.cuda.is_available():
        raise BackendError(
            "this PyTorch has no CUDA",
            got=f"torch {torch.__version__}",
            expected=f"one for {device}",
            fix="--device cpu",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    manifest = open_bundle(bundle).manifest
    return TorchReference(manifest, reference_graphs(manifest, checkpoint), mode=mode, device=device)


def input_from_picture(image: Tensor, numbers: ImageNumbers) -> Tensor:
    """What the official predictors do: resize with torch (SAM: with Pillow), and pad with the mean, which normalises to 0.

    image: uint8 (H, W, 3) -> float32 (1, S, S, 3), 0..255; the graph normalises
    """
    frame = Frame((image.shape[0], image.shape[1]), numbers)
    if numbers.resize_dtype == "uint8":
        size = (frame.content_hw[1], frame.content_hw[0])
        resized = PIL.Image.fromarray(image.cpu().numpy()).resize(size, PIL.Image.Resampling.BILINEAR)
        content = torch.from_numpy(np.array(resized, np.float32)).to(image.device)[None]
    else:
        planes = image.permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        content = F.interpolate(
            planes, frame.content_hw, mode="bilinear", align_corners=False, antialias=numbers.antialias
        ).permute(0, 2, 3, 1)
    if frame.content_hw == frame.input_hw:
        return content.contiguous()
    target = (content.new_tensor(numbers.mean) * 255).expand(1, *frame.input_hw, 3).clone()
    target[:, : frame.content_hw[0], : frame.content_hw[1]] = content
    return target


def picture_logits(logits: Tensor, frame: Frame) -> Tensor:
    """logits: float32 (P, C, h, w) -> (P, C, H, W) in the picture's pixels."""
    if frame.content_hw != frame.input_hw:  # the logits cover the padding too
        logits = F.interpolate(logits, frame.input_hw, mode="bilinear", align_corners=False)
        logits = logits[..., : frame.content_hw[0], : frame.content_hw[1]]
    return F.interpolate(logits, frame.image_hw, mode="bilinear", align_corners=False)
