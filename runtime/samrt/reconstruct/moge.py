"""MoGe v1 as a bundle: the picture at a size the network knows, weights that resize its positions, and its points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samrt.bundle import Bundle
from samrt.opening import open_graph
from samrt.reconstruct.depth import finish, resize_floats, resized
from samrt_engines.errors import BundleError

Float32Array = NDArray[np.float32]

GRAPH = "moge"
_CUBIC = -0.75  # torch's bicubic, where it does not antialias


class MogeBundle:
    """Makes pointmaps with a MoGe v1 bundle. The graph is open while it runs."""

    def __init__(self, bundle: Bundle, *, backend: str, device: str, threads: int | None) -> None:
        """Raises BundleError for a bundle of another model."""
        numbers = bundle.manifest.depth
        if numbers is None or GRAPH not in bundle.manifest.graphs:
            raise BundleError(
                f"{bundle.manifest.source.model} sees no depth",
                got=f"a bundle whose abilities are {', '.join(bundle.manifest.abilities)}",
                expected="a bundle of MoGe",
                fix="samrt export moge-vitl -o FOLDER",
            )
        self._bundle, self._numbers = bundle, numbers
        self._backend = "onnxruntime" if backend == "auto" else backend
        self._device, self._threads = device, threads

    def estimate(self, image: NDArray[np.uint8]) -> Float32Array:
        """See `samrt.reconstruct.depth.DepthModel`. Raises BackendError, BundleError."""
        numbers, (height, width) = self._numbers, image.shape[:2]
        near, hw = network_sizes((height, width), numbers.tokens[1], numbers.patch_px, self._sides())
        small = resize_floats(resized(image, near, cubic=True), hw)
        patches = hw[0] // numbers.patch_px, hw[1] // numbers.patch_px
        rows, columns = position_weights(numbers.position_grid, patches, numbers.position_offset)
        feeds = {"image": small[None], "row_weights": rows, "column_weights": columns}
        opened = open_graph(
            self._bundle, GRAPH, backend=self._backend, device=self._device, threads=self._threads, precision=None
        )
        with opened.executor as executor:
            made = executor.run(
                {spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in executor.inputs}
            )
        points, mask = (made[name][0].astype(np.float32) for name in ("pointmap", "pointmap_mask"))
        return finish(points, mask, (height, width), remap=numbers.remap, threshold=numbers.mask_threshold)

    def _sides(self) -> tuple[int, int]:
        """Fewest and most patches along a side that the graph takes."""
        graph = self._bundle.manifest.graphs[GRAPH]
        image = next(spec for spec in graph.inputs if spec.name == "image")
        ranges = [graph.profiles[size] for size in image.shape[1:3] if isinstance(size, str) and size in graph.profiles]
        least = max((profile.min for profile in ranges), default=1)
        most = min((profile.max for profile in ranges), default=1 << 20)
        patch = self._numbers.patch_px
        return max(1, -(-least // patch)), most // patch


def network_sizes(
    image_hw: tuple[int, int], tokens: int, patch_px: int, sides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of about `tokens` patches with the picture's aspect, and the whole patches in it.

    sides: fewest and most patches along a side; a picture too long or too narrow for them is squeezed
    """
    factor = (tokens * patch_px**2 / (image_hw[0] * image_hw[1])) ** 0.5
    least, most = (count * patch_px for count in sides)
    height, width = (min(max(int(side * factor), least), most + patch_px - 1) for side in image_hw)
    return (height, width), (height // patch_px * patch_px, width // patch_px * patch_px)


def position_weights(grid: int, patches: tuple[int, int], offset: float) -> tuple[Float32Array, Float32Array]:
    """What brings a table of positions to another number of patches: torch's bicubic resize without antialias.

    grid: the table's side; patches: down, across; offset: see `samrt.numbers.DepthNumbers`
    returns: float32 (down, grid), (across, grid): positions are down @ table @ across^T, for each channel
    """
    if patches == (grid, grid):
        return np.eye(grid, dtype=np.float32), np.eye(grid, dtype=np.float32)
    down, across = (_cubic_weights(grid, count, (count + offset) / grid) for count in patches)
    return down, across


def _cubic_weights(source: int, target: int, scale: float) -> Float32Array:
    """Keys' cubic convolution from `source` samples to `target`, edges repeated: float32 (target, source)."""
    place = (np.arange(target) + 0.5) / scale - 0.5
    first = np.floor(place).astype(np.intp)
    weights = np.zeros((target, source))
    for tap in range(-1, 3):
        distance = np.abs(place - (first + tap))
        near = (_CUBIC + 2) * distance**3 - (_CUBIC + 3) * distance**2 + 1
        far = _CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(
            weights,
            (np.arange(target), np.clip(first + tap, 0, source - 1)),
            np.where(distance <= 1, near, np.where(distance < 2, far, 0)),
        )
    return weights.astype(np.float32)
