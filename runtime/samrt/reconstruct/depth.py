"""Pointmaps from a picture alone: MoGe v1 as a bundle, or an official MoGe-2 ONNX file.

Both see a resized picture and give points up to an unknown shift in depth, in OpenCV's axes. The shift is the one with which
the points best project onto their own pixels through some focal length (microsoft/MoGe, `recover_focal_shift`). Points are
brought to the picture's size before the network's last remapping, as the official code does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samrt.bilinear import resize_planes
from samrt.bundle import open_bundle
from samrt.reconstruct.pointmap import from_opencv
from samrt.reconstruct.preprocess import nearest
from samrt_engines.errors import BundleError, InputError
from samrt_engines.executor import Executor, open_executor

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

MOGE2_TOKENS = 3600
"""What the official code takes at its highest resolution level."""
_MOGE2_FINE = 16  # pixels of MoGe-2's finest features to a token: a larger picture shows it nothing more
_SAMPLES = 64  # a side, of the points that the shift is found with
_ITERATIONS = 100


class DepthModel(Protocol):
    """Makes pointmaps."""

    def estimate(self, image: NDArray[np.uint8]) -> Float32Array:
        """image: uint8 (H, W, 3). returns: float32 (H, W, 3), PyTorch3D axes, NaN where nothing is known."""


def open_depth(path: str | os.PathLike[str], *, backend: str, device: str, threads: int | None) -> DepthModel:
    """Open a source of depth: a bundle folder of MoGe, or an official MoGe-2 ONNX file. It is loaded when it is used.

    Raises BundleError, InputError for anything else.
    """
    source = Path(path)
    if source.is_dir():
        from samrt.reconstruct.moge import MogeBundle  # after this module: it uses what is here

        return MogeBundle(open_bundle(source), backend=backend, device=device, threads=threads)
    if source.suffix == ".onnx" and source.is_file():
        return Moge2File(source, device=device, threads=threads)
    raise InputError(
        "no such source of depth",
        got=str(source),
        expected="a bundle folder of MoGe, or an official MoGe-2 ONNX file",
        fix="samrt export moge-vitl -o FOLDER; or download model.onnx of Ruicheng/moge-2-vitl-normal-onnx",
    )


class Moge2File:
    """An official MoGe-2 ONNX file: image (1, 3, H, W) 0..1 and num_tokens in, points, mask and metric_scale out."""

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        self._path, self._device, self._threads = path, device, threads

    def estimate(self, image: NDArray[np.uint8]) -> Float32Array:
        """See `DepthModel`. The points are metric. Raises InputError for another file, BackendError."""
        height, width = image.shape[:2]
        fine = (MOGE2_TOKENS / (height * width)) ** 0.5 * _MOGE2_FINE
        small = resized(
            image, (max(1, round(height * fine)), max(1, round(width * fine))) if fine < 1 else (height, width)
        )
        with open_executor(self._path, backend="onnxruntime", device=self._device, threads=self._threads) as executor:
            self._check(executor)
            tokens = next(spec for spec in executor.inputs if spec.name == "num_tokens")
            made = executor.run(
                {
                    "image": np.ascontiguousarray(small.transpose(2, 0, 1)[None]),
                    "num_tokens": np.full([1] * len(tokens.shape), MOGE2_TOKENS, tokens.dtype),
                },
                ["points", "mask", *(["metric_scale"] if _has(executor, "metric_scale") else [])],
            )
        metric = float(made["metric_scale"].reshape(-1)[0]) if "metric_scale" in made else 1.0
        return finish(made["points"][0], made["mask"][0], (height, width), remap="exp", threshold=0.5, unit=metric)

    def _check(self, executor: Executor) -> None:
        inputs = [spec.name for spec in executor.inputs]
        if set(inputs) != {"image", "num_tokens"} or not _has(executor, "points") or not _has(executor, "mask"):
            raise InputError(
                f"{self._path} is no MoGe-2 file",
                got=f"inputs {', '.join(inputs)}; outputs {', '.join(spec.name for spec in executor.outputs)}",
                expected="inputs image, num_tokens; outputs points, mask, metric_scale",
                fix="download model.onnx of Ruicheng/moge-2-vitl-normal-onnx",
            )


def _has(executor: Executor, output: str) -> bool:
    return any(spec.name == output for spec in executor.outputs)


def resized(image: NDArray[np.uint8], hw: tuple[int, int], *, cubic: bool = False) -> Float32Array:
    """A picture at another size, antialiased, unrounded: float32 (h, w, 3), 0..1 (bicubic may leave that a little)."""
    return resize_floats(image.astype(np.float32) / np.float32(255), hw, cubic=cubic)


def resize_floats(planes: Float32Array, hw: tuple[int, int], *, cubic: bool = False) -> Float32Array:
    """float32 (H, W, C) at another size, antialiased: Pillow's filters on mode "F" are torch's."""
    import PIL.Image

    kind = PIL.Image.Resampling.BICUBIC if cubic else PIL.Image.Resampling.BILINEAR
    out = [
        np.asarray(PIL.Image.fromarray(np.ascontiguousarray(planes[..., channel])).resize((hw[1], hw[0]), kind))
        for channel in range(planes.shape[2])
    ]
    return np.stack(out, axis=2)


_REMAPS: dict[str, tuple[Callable[[Float32Array], Float32Array], Callable[[Float32Array], Float32Array]]] = {
    "linear": (lambda points: points, lambda raw: raw),
    "exp": (
        lambda points: np.concatenate([points[..., :2] / points[..., 2:], np.log(points[..., 2:])], axis=-1),
        lambda raw: np.concatenate([raw[..., :2] * np.exp(raw[..., 2:]), np.exp(raw[..., 2:])], axis=-1),
    ),
}
"""Remapping -> what takes it back, and what applies it."""


def finish(
    points: Float32Array,
    mask: Float32Array,
    image_hw: tuple[int, int],
    *,
    remap: str,
    threshold: float,
    unit: float = 1.0,
) -> Float32Array:
    """From a network's answer to a pointmap: to the picture's size, shifted into place, axes turned.

    points: float32 (h, w, 3), remapped, OpenCV's axes; mask: float32 (h, w)
    remap: "exp" or "linear"; threshold: of the mask; unit: of the points, in metres
    returns: float32 (H, W, 3), PyTorch3D axes, NaN where the mask says that there is nothing
    Raises BundleError for an unknown remapping.
    """
    if remap not in _REMAPS:
        raise BundleError("unknown remapping of points", got=repr(remap), expected=", ".join(_REMAPS))
    undo, apply = _REMAPS[remap]
    if points.shape[:2] != image_hw:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what is broken turns NaN, and is dropped
            raw = resize_planes(np.ascontiguousarray(undo(points).transpose(2, 0, 1)), image_hw).transpose(1, 2, 0)
            points = apply(raw)
        mask = resize_planes(np.ascontiguousarray(mask[None]), image_hw)[0]
    known = (mask > threshold) & np.isfinite(points).all(axis=2)
    _, shift = recover_focal_shift(points, known)
    placed = from_opencv((points + np.array([0, 0, shift], np.float32)) * np.float32(unit))
    placed[~known | (placed[..., 2] <= 0)] = np.nan
    return placed


def view_plane(height: int, width: int) -> Float32Array:
    """Where pixels lie on the view plane, the picture's corners at half its diagonal: float32 (H, W, 2)."""
    diagonal = float(np.hypot(height, width))
    u = ((np.arange(width) + 0.5) * 2 - width) / diagonal
    v = ((np.arange(height) + 0.5) * 2 - height) / diagonal
    return np.stack(np.meshgrid(u, v), axis=-1).astype(np.float32)


def recover_focal_shift(points: Float32Array, known: BoolArray) -> tuple[float, float]:
    """The focal length (in half diagonals) and the shift in depth with which points project onto their pixels.

    points: float32 (H, W, 3), OpenCV's axes; known: bool (H, W)
    Found on 64 x 64 of them. returns: (1, 0) where fewer than two are known
    """
    height, width = known.shape
    rows, columns = nearest(height, _SAMPLES)[:, None], nearest(width, _SAMPLES)
    chosen = known[rows, columns]
    uv = view_plane(height, width)[rows, columns][chosen].astype(np.float64)
    xyz = points[rows, columns][chosen].astype(np.float64)
    if len(xyz) < 2:
        return 1.0, 0.0
    return solve_focal_shift(uv, xyz)


def solve_focal_shift(uv: NDArray[np.float64], xyz: NDArray[np.float64]) -> tuple[float, float]:
    """Least squares of focal * xy / (z + shift) - uv, from shift 0 on (Levenberg-Marquardt; focal follows from shift).

    uv: (N, 2); xyz: (N, 3)
    returns: focal, shift
    """
    xy, z = xyz[:, :2], xyz[:, 2:]

    def residual(shift: float) -> tuple[float, float, NDArray[np.float64], NDArray[np.float64]]:
        """Cost, focal, residuals and their derivative."""
        p = xy / (z + shift)
        slope = -p / (z + shift)
        pp, pu, sp, su = (p * p).sum(), (p * uv).sum(), (slope * p).sum(), (slope * uv).sum()
        focal = pu / pp
        change = (su - 2 * focal * sp) / pp
        r = focal * p - uv
        return float((r * r).sum()), float(focal), r, change * p + focal * slope

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift, damping = 0.0, 1e-3
        cost, focal, r, j = residual(shift)
        for _ in range(_ITERATIONS):
            move = -float((j * r).sum() / ((j * j).sum() * (1 + damping)))
            tried = residual(shift + move)
            if np.isfinite(tried[0]) and tried[0] <= cost and (z + shift + move > 0).all():
                settled = cost - tried[0] <= 1e-12 * cost or abs(move) <= 1e-10 * (abs(shift) + 1e-6)
                shift, damping = shift + move, damping / 10
                cost, focal, r, j = tried
                if settled:
                    break
            else:
                damping *= 10
                if damping > 1e12:
                    break
    return focal, shift
