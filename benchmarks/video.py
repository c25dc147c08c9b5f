"""Video through samrt: a frame step next to PyTorch, the cost of objects, a long stream. On the CPU.

    python benchmarks/video.py step --bundle D --out F      one object, seven memories, against transformers' Sam2VideoModel
    python benchmarks/video.py objects --bundle D --out F   1, 4 and 16 objects: what each adds to a frame
    python benchmarks/video.py stream --bundle D --out F    10,000 frames: memory and time per frame

``D`` is a bundle that ``samrt export MODEL --random-weights SEED`` or ``samrt export nano`` wrote. Contenders run in turns in one
process on the same weights and number of threads, and medians of times and of paired ratios are kept: wall time, and
processor time, which other work on the machine disturbs less. ``step`` first compares masks. Its PyTorch contender is
handed frames that are resized and normalised already; samrt starts from uint8 pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

import samrt
from samrt.bench.peak import probe_peak
from samrt.machine import cpu_name, usable_cores
from samrt_export.registry import find
from samrt_export.source import load_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "export"))
from oracle import preprocess  # type: ignore[import-not-found]  # the tests' oracle
from video_oracle import hf_video_model  # type: ignore[import-not-found]

Picture = NDArray[np.uint8]
WARM_FRAMES = 8  # until the bank is full
SIZE_HW = (480, 640)
MIN_IOU = 0.99


def clip(seed: int = 0) -> Iterator[Picture]:
    """Discs that move over a noisy ground, for ever."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 120, (*SIZE_HW, 3)).astype(np.uint8)
    colours = rng.integers(0, 256, (16, 3))
    y, x = np.indices(SIZE_HW)
    frame = 0
    while True:
        picture = ground.copy()
        for index, colour in enumerate(colours):
            centre_y = 60 + 120 * (index // 4) + 20 * np.sin(frame / 9 + index)
            centre_x = 80 + 150 * (index % 4) + 30 * np.cos(frame / 11 + index)
            picture[(y - centre_y) ** 2 + (x - centre_x) ** 2 < 40**2] = colour
        yield picture
        frame += 1


def click(index: int) -> list[list[float]]:
    """Where disc ``index`` is on the first frame."""
    return [[80 + 150 * (index % 4) + 30 * np.cos(index), 60 + 120 * (index // 4) + 20 * np.sin(index)]]


class PyTorch:
    """transformers' streaming session with one object."""

    def __init__(self, bundle: Path) -> None:
        manifest = samrt.load(bundle).manifest
        family = find(manifest.source.model)
        weights = load_weights(family, manifest.source.model, random_seed=manifest.source.seed)
        self.model = hf_video_model(weights.module, manifest.source.model)
        self.size = manifest.numbers.image.size_hw[0]
        self.session = Sam2VideoInferenceSession(
            video=None, video_height=SIZE_HW[0], video_width=SIZE_HW[1], dtype=torch.float32
        )

    def point_out(self, index: int) -> None:
        """A click about the next frame."""
        scale = np.array([self.size / SIZE_HW[1], self.size / SIZE_HW[0]])
        points = torch.from_numpy((np.array(click(index)) * scale).astype(np.float32))[None, None]
        row = self.session.obj_id_to_idx(index)
        inputs = {"point_coords": points, "point_labels": torch.ones(1, 1, 1, dtype=torch.int32)}
        self.session.add_point_inputs(row, 0, inputs)
        self.session.obj_with_new_inputs = [index]

    def step(self, pixels: torch.Tensor) -> NDArray[np.bool_]:
        """pixels: (1, 3, S, S) -> low-res mask."""
        with torch.inference_mode():
            out = self.model(inference_session=self.session, frame=pixels[0])
        return (out.pred_masks[0, 0] > 0).numpy()


def step(options: argparse.Namespace) -> dict[str, Any]:
    """One object in the steady state: time of a frame for each contender."""
    torch.set_num_threads(options.threads)
    peer = PyTorch(options.bundle)
    trackers = {}
    for name in options.contenders:
        backend, _, precision = name.partition(":")
        model = samrt.load(options.bundle, backend, device="cpu", threads=options.threads, precision=precision or None)
        trackers[name] = samrt.VideoTracker(model, fill_hole_area=0)
        trackers[name].add_points(0, click(0), [1])
    peer.point_out(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("pytorch", *trackers)}
    overlaps: dict[str, list[float]] = {name: [] for name in trackers}
    for number, picture in zip(range(WARM_FRAMES + options.runs), clip(), strict=False):
        pixels = preprocess(picture, peer.size)
        calls: dict[str, Callable[[], NDArray[np.bool_]]] = {"pytorch": lambda pixels=pixels: peer.step(pixels)}  # type: ignore[misc]
        for name, tracker in trackers.items():
            calls[name] = lambda tracker=tracker, picture=picture: tracker.step(picture).logits[0] > 0  # type: ignore[misc]
        names = list(calls)
        masks = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            masks[name], took = timed(calls[name])
            if number >= WARM_FRAMES:
                times[name].append(took)
        for name in trackers:
            overlaps[name].append(iou(masks[name], masks["pytorch"]))
    rows = summarise(times, "pytorch")
    for name, row in rows.items():
        row["lowest_iou_with_pytorch"] = min(overlaps[name]) if name in overlaps else None
    return {"rows": rows, "frames": options.runs, "memories": 7}


def objects(options: argparse.Namespace) -> dict[str, Any]:
    """What more objects cost, and how often the encoder runs."""
    model = samrt.load(options.bundle, options.contenders[0], device="cpu", threads=options.threads)
    trackers = {}
    for count in (1, 4, 16):
        trackers[str(count)] = samrt.VideoTracker(model)
        for index in range(count):
            trackers[str(count)].add_points(index, click(index), [1])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("encoder", *trackers)}
    for number, picture in zip(range(WARM_FRAMES + options.runs), clip(), strict=False):
        took = {"encoder": timed(lambda picture=picture: model.encode(picture))[1]}  # type: ignore[misc]
        for name, tracker in trackers.items():
            took[name] = timed(lambda tracker=tracker, picture=picture: tracker.step(picture))[1]  # type: ignore[misc]
        if number >= WARM_FRAMES:
            for name, value in took.items():
                times[name].append(value)
    rows = summarise(times, "1")
    encoder, single = rows["encoder"]["median_cpu_s"], rows["1"]["median_cpu_s"]
    for count in (1, 4, 16):
        bound = encoder + count * (single - encoder)
        rows[str(count)]["share_of_encoder_plus_k_times_the_rest"] = rows[str(count)]["median_cpu_s"] / bound
        rows[str(count)]["share_of_k_trackers"] = rows[str(count)]["median_cpu_s"] / (count * single)
    return {"rows": rows, "frames": options.runs}


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """A long stream: resident memory after 300 frames and at the end, processor time of the first and last thousand."""
    model = samrt.load(options.bundle, options.contenders[0], device="cpu", threads=options.threads)
    tracker = samrt.VideoTracker(model)
    for index in range(2):
        tracker.add_points(index, click(index), [1])
    took, resident = [], {}
    for number, picture in zip(range(options.frames), clip(), strict=False):
        started = time.process_time()
        tracker.step(picture).masks.any()
        took.append(time.process_time() - started)
        if number + 1 in (300, options.frames) or (number + 1) % 1000 == 0:
            resident[number + 1] = resident_mb()
            print(
                f"{number + 1} frames, {resident[number + 1]:.1f} MB, {np.median(took[-300:]) * 1e3:.1f} ms", flush=True
            )
    part = min(1000, options.frames // 2)
    first, last = np.median(took[8 : 8 + part]), np.median(took[-part:])
    return {
        "frames": options.frames,
        "objects": 2,
        "resident_mb": resident,
        "growth_after_300_mb": resident[options.frames] - resident[300],
        "median_cpu_ms_of_first_thousand": first * 1e3,
        "median_cpu_ms_of_last_thousand": last * 1e3,
        "last_over_first": last / first,
    }


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """The result, and (wall, processor) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def summarise(times: dict[str, list[tuple[float, float]]], base: str) -> dict[str, dict[str, Any]]:
    """Medians, and medians of the paired ratios ``base`` over each."""
    reference = np.array(times[base])
    rows = {}
    for name, values in times.items():
        pairs = np.array(values)
        wall, cpu = np.median(pairs, axis=0)
        ratio = reference / pairs
        rows[name] = {
            "median_wall_s": wall,
            "median_cpu_s": cpu,
            f"{base}_over_this_wall": np.median(ratio[:, 0]),
            f"{base}_over_this_cpu": np.median(ratio[:, 1]),
            "quartiles_cpu": np.percentile(ratio[:, 1], [25, 75]).tolist(),
        }
    return rows


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union; two empty masks agree."""
    union = float((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


def resident_mb() -> float:
    """This process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Run one part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("step", "objects", "stream"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contenders", nargs="+", default=["onnxruntime"], help="backend or backend:precision")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    options = parser.parse_args()
    found = {"step": step, "objects": objects, "stream": stream}[options.part](options)
    packages = ("samrt", "torch", "transformers", "onnxruntime", "openvino", "numpy")
    document = {
        "part": options.part,
        "model": samrt.load(options.bundle).manifest.source.model,
        "contenders": options.contenders,
        "threads": options.threads,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "peak_gflops": probe_peak(options.threads).gflops,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "note": options.note,
        **found,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
