"""Encoder and click on every CPU backend and PyTorch, in processor seconds of one thread.

    samrt export sam2.1-hiera-tiny --random-weights 0 -o bundles/tiny
    python benchmarks/cpu_backends.py bundles/tiny --out benchmarks/results/cpu_backends.json

Processor seconds are what is left to compare on a machine that other work shares: they leave out waiting. They say nothing
about how well a backend uses several cores; `samrt bench` measures that. One process, the contenders take turns, the order
rotates. PyTorch is transformers' `Sam2Model` with random weights, eager.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Sam2Config, Sam2Model

import samrt
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, absent_mask_hw
from samrt.machine import cpu_name, usable_cores
from samrt_engines import ProviderError
from samrt_engines.backends import available_backends

CONTENDERS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))

Calls = dict[str, Callable[[], Any]]


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    torch.set_num_threads(1)
    encode, click = pytorch_calls()
    for backend, precision in CONTENDERS:
        try:
            model = samrt.load(
                options.bundle, backend, device="cpu", threads=1, precision=None if precision == "fp32" else precision
            )
        except ProviderError as error:  # a CPU without bf16
            print(error)
            continue
        name = f"{backend} {precision}"
        encode[name], click[name] = samrt_calls(model)
    rows = [*measure("encoder", encode, options.encodes), *measure("click", click, options.clicks)]
    for row in rows:
        print(*row.values())
    if options.out is not None:
        versions = {backend.name: backend.version for backend in available_backends()}
        machine = {"cpu": cpu_name(), "cores": usable_cores(), "threads": 1, "torch": torch.__version__, **versions}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def samrt_calls(model: samrt.Model) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The graphs of an encoding and of a click, without what is around them: PyTorch's calls have that neither."""
    manifest, graphs = model.manifest, model.executors
    height, width = manifest.numbers.image.size_hw
    image = np.random.default_rng(0).uniform(0, 255, (1, height, width, 3)).astype(np.float32)
    prompt = {
        "point_coords": np.array([[[width / 2, height / 2], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.int32),
        "mask_input": np.zeros((1, 1, *absent_mask_hw(manifest)), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    features = graphs[IMAGE_ENCODER].run({"image": image})

    def click() -> Any:
        known = features | graphs[PROMPT_ENCODER].run(prompt)
        return graphs[MASK_DECODER].run({spec.name: known[spec.name] for spec in graphs[MASK_DECODER].inputs})

    return lambda: graphs[IMAGE_ENCODER].run({"image": image}), click


def pytorch_calls() -> tuple[Calls, Calls]:
    """The tiny variant's encoder, and a click on its features."""
    model = Sam2Model(Sam2Config()).eval()  # transformers' defaults are the tiny variant
    pixels = torch.rand(1, 3, 1024, 1024)
    point, label = torch.full((1, 1, 1, 2), 512.0), torch.ones(1, 1, 1, dtype=torch.int64)
    with torch.inference_mode():
        features = model.get_image_embeddings(pixels)

    def encode() -> Any:
        with torch.inference_mode():
            return model.get_image_embeddings(pixels)

    def click() -> Any:
        with torch.inference_mode():
            return model(image_embeddings=features, input_points=point, input_labels=label, multimask_output=True)

    return {"pytorch": encode}, {"pytorch": click}


def measure(task: str, calls: Calls, runs: int) -> list[dict[str, Any]]:
    """Median processor milliseconds of each, and the median of the ratios to PyTorch's of the same round."""
    names = list(calls)
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(runs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.process_time()
            calls[name]()
            times[name].append((time.process_time() - started) * 1e3)
    base = np.array(times["pytorch"])
    return [
        {
            "task": task,
            "contender": name,
            "runs": runs,
            "median_cpu_ms": round(float(np.median(values)), 1),
            "times_as_fast_as_pytorch": round(float(np.median(base / np.array(values))), 2),
        }
        for name, values in times.items()
    ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--encodes", type=int, default=7)
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
