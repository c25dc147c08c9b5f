"""Automatic masks: samrt against segment-anything's generator in PyTorch, in turns in one process; and memory at 4K.

Both sides run the same weights with the same parameters on one CPU. The peer is ``SamAutomaticMaskGenerator`` of the
segment-anything package, driven by transformers' model in PyTorch (tests/export/automatic_oracle.py says how). Times are taken
after encoding: the encoder is timed by itself and subtracted. Before timing, both must give the same masks in the same order.

``host`` is samrt's time outside its graphs. ``memory`` runs in a process of its own, one per row.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import samrt
from samrt.automatic import AutomaticMaskGenerator
from samrt.machine import cpu_name, usable_cores
from samrt_export.families.sam2 import FAMILY, Sam2
from samrt_export.nano.evaluate import iou
from samrt_export.nano.scenes import HELD_OUT_SEED, scene_from_seed
from samrt_export.source import load_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "export"))
from automatic_oracle import Sam2Predictor, official_records  # type: ignore[import-not-found]  # the tests' oracle
from oracle import hf_image_model, preprocess  # type: ignore[import-not-found]

PICTURES = {"1080p": (1080, 1920), "4K": (2160, 3840)}
PACKAGES = ("samrt", "segment-anything", "torch", "transformers", "onnxruntime", "numpy")


def picture(hw: tuple[int, int]) -> np.ndarray:
    """The upper part of a held-out scene."""
    return np.ascontiguousarray(scene_from_seed(HELD_OUT_SEED + 3).render(size=max(hw)).image[: hw[0], : hw[1]])


def clock(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, processor seconds, and what came back."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """A grid of points on a 1080p picture, after encoding: seconds, samrt and peer in turns."""
    image = picture(PICTURES["1080p"])
    torch.set_num_threads(options.threads)
    model = samrt.load(options.bundle, backend="onnxruntime", threads=options.threads)
    module = load_weights(FAMILY, "nano").module
    assert isinstance(module, Sam2)
    predictor = Sam2Predictor(hf_image_model(module, "nano"), preprocess)
    parameters = {
        "points_per_side": options.points_per_side,
        "points_per_batch": options.points_per_batch,
        "pred_iou_thresh": 0.8,
        "stability_score_thresh": 0.95,
    }
    generator = AutomaticMaskGenerator(model, **parameters)
    ours, theirs = generator.generate(image), official_records(predictor, image, **parameters)
    lowest = compare(ours, theirs)
    encode = {
        "samrt": statistics.median(clock(lambda: model.encode(image))[0] for _ in range(5)),
        "pytorch": statistics.median(clock(lambda: predictor.set_image(image))[0] for _ in range(5)),
    }
    calls = {
        "samrt": lambda: generator.generate(image),
        "pytorch": lambda: official_records(predictor, image, **parameters),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            wall, processor, _ = clock(call)
            seconds[name].append(wall - encode[name])
            cpu[name].append(processor)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "picture": "1080p",
        **parameters,
        "masks": len(ours),
        "lowest_iou_with_pytorch": lowest,
        "encode_s": encode,
        "seconds_after_encoding": median,
        "cpu_s": {name: statistics.median(values) for name, values in cpu.items()},
        "all_seconds": seconds,
        "pytorch_over_samrt": median["pytorch"] / median["samrt"],
        "paired_ratios": [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)],
        "host_share": host_share(generator, model, image),
    }


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The lowest IoU of masks in the same place. Stops where the numbers or the scores differ."""
    assert len(ours) == len(theirs) > 0, (len(ours), len(theirs))
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one["predicted_iou"] - other["predicted_iou"]) < 1e-4, (one, other)
    return min(iou(one["segmentation"], other["segmentation"]) for one, other in zip(ours, theirs, strict=True))


def host_share(generator: AutomaticMaskGenerator, model: samrt.Model, image: np.ndarray) -> float:
    """The share of samrt's time that is not spent in its graphs."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(generator.segments, image)
    stats: Any = pstats.Stats(profile)
    graphs = sum(row[2] for (_, _, name), row in stats.stats.items() if "onnxruntime" in name and "run" in name)
    return 1 - graphs / stats.total_tt


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """The most memory a process takes that finds everything in a picture with two layers of crops."""
    rows = {}
    for name in PICTURES:
        command = [sys.executable, __file__, "one", "--bundle", str(options.bundle), "--picture", name]
        command += ["--threads", str(options.threads), "--points-per-side", str(options.points_per_side)]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "rows": rows}


def one(options: argparse.Namespace) -> dict[str, Any]:
    """One run, alone in its process."""
    model = samrt.load(options.bundle, backend="onnxruntime", threads=options.threads)
    generator = AutomaticMaskGenerator(
        model, options.points_per_side, crop_n_layers=2, crop_n_points_downscale_factor=2, stability_score_thresh=0.8
    )
    wall, cpu, segments = clock(lambda: generator.segments(picture(PICTURES[options.picture])))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"masks": len(segments), "wall_s": wall, "cpu_s": cpu, "peak_rss_mib": peak_mib}


def main() -> None:
    """Run one part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "memory", "one"))
    parser.add_argument("--bundle", type=Path, required=True, help="the nano bundle")
    parser.add_argument("--out", type=Path, help="JSON file; the part is added to what is in it")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--picture", choices=tuple(PICTURES), default="1080p")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    options = parser.parse_args()
    found = {"speed": speed, "memory": memory, "one": one}[options.part](options)
    if options.part != "one":
        about = {
            "model": samrt.load(options.bundle).manifest.source.model,
            "threads": options.threads,
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
            "date": datetime.now(UTC).date().isoformat(),
            "note": options.note,
        }
        found = {**about, **found}
    if options.out is not None:
        document = json.loads(options.out.read_text()) if options.out.exists() else {}
        document[options.part] = found
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
