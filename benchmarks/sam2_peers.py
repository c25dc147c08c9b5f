"""The same SAM 2.1 work through samrt, PyTorch and a peer's ONNX graphs, taking turns in one process.

    python benchmarks/sam2_peers.py --out benchmarks/results/sam2_peers.json

Contenders, all with the same random weights and the same number of threads:

- samrt: the bundle's graphs on ONNX Runtime
- pytorch: transformers' ``Sam2Model``, eager, fp32
- samexporter: graphs with the options of samexporter's SAM 2 export (TorchScript exporter, opset 17, constant folding, one
  image; the decoder holds the prompt encoder), on ONNX Runtime. samexporter itself needs the sam2 package and torchvision,
  which have no build for this CPU torch, so its options are applied to transformers' modules here.

The outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import samrt
from samrt.machine import cpu_name, usable_cores
from samrt_export.export import export_model
from samrt_export.families.sam2 import CONFIGS, FAMILY, MEAN, STD, Sam2
from samrt_export.source import load_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "export"))
from oracle import hf_image_model

Call = Callable[[], list[np.ndarray]]


class PeerEncoder(nn.Module):
    """Normalised picture -> image_embed, high_res_feats_0, high_res_feats_1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.model.get_image_embeddings(image)
        return coarse, fine, middle


class PeerDecoder(nn.Module):
    """Features and points -> masks, iou_predictions; the prompt encoder inside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("position", model.get_image_wide_positional_embeddings())

    def forward(
        self,
        embed: Tensor,
        fine: Tensor,
        middle: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        encoder = self.model.prompt_encoder
        sparse = encoder._embed_points(coords[:, None], labels[:, None], pad=True)
        no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = has_mask * encoder.mask_embed(mask) + (1 - has_mask) * no_mask
        masks, scores, _, _ = self.model.mask_decoder(
            image_embeddings=embed,
            image_positional_embeddings=self.position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=[fine, middle],
        )
        return masks, scores


def legacy_session(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], threads: int) -> Any:
    """Export with the TorchScript exporter and open on ONNX Runtime's CPU."""
    buffer = io.BytesIO()
    dynamic = {name: {1: "num_points"} for name in names if name.startswith("point_")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), inputs, buffer, dynamo=False, opset_version=17, do_constant_folding=True,
            input_names=names, dynamic_axes=dynamic,
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])


def build_tasks(model: str, work: Path, threads: int) -> dict[str, dict[str, Call]]:
    """Task -> contender -> call."""
    bundle = work / model
    if not (bundle / "manifest.json").exists():
        export_model(model, bundle, random_seed=0)
    runtime = samrt.load(bundle, device="cpu", threads=threads)
    module = load_weights(FAMILY, model, random_seed=0).module
    assert isinstance(module, Sam2)
    oracle = hf_image_model(module, model)
    size, mask_size = CONFIGS[model].image_size, CONFIGS[model].mask_size

    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    pixels = torch.from_numpy(((picture / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    image = {"image": picture[None].astype(np.float32)}
    encoder, prompter, decoder = (runtime.executors[n] for n in ("image_encoder", "prompt_encoder", "mask_decoder"))

    coords, labels = np.array([[[size / 2, size / 3]]], np.float32), np.array([[1]], np.int32)
    mask = np.zeros((1, 1, mask_size, mask_size), np.float32)
    prompt = {
        "point_coords": np.concatenate((coords, np.zeros_like(coords)), 1),
        "point_labels": np.array([[1, -1]], np.int32),
        "mask_input": mask,
        "has_mask_input": np.zeros(1, np.float32),
    }
    features = encoder.run(image)

    peer_encoder, peer_decoder = PeerEncoder(oracle).eval(), PeerDecoder(oracle).eval()
    with torch.inference_mode():
        maps = [tensor.clone() for tensor in peer_encoder(pixels)]
    click = [*maps, *map(torch.from_numpy, (coords, labels.astype(np.int64), mask, np.zeros((1, 1, 1, 1), np.float32)))]
    encoder_session = legacy_session(peer_encoder, (pixels,), ["image"], threads)
    names = [
        "image_embed",
        "high_res_feats_0",
        "high_res_feats_1",
        "point_coords",
        "point_labels",
        "mask_input",
        "has_mask",
    ]
    decoder_session = legacy_session(peer_decoder, tuple(click), names, threads)
    click_feeds = {i.name: v.numpy() for i, v in zip(decoder_session.get_inputs(), click, strict=True)}

    def samrt_click() -> list[np.ndarray]:
        out = decoder.run({**features, **prompter.run(prompt)}, ["low_res_masks", "iou_predictions"])
        return [out["low_res_masks"][:, 1:], out["iou_predictions"][:, 1:]]

    def torch_call(part: nn.Module, *inputs: Tensor) -> list[np.ndarray]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in part(*inputs)]

    return {
        "image encoder": {
            "samrt": lambda: [encoder.run(image)["image_embed"]],
            "pytorch": lambda: torch_call(peer_encoder, pixels)[:1],
            "samexporter": lambda: encoder_session.run(None, {"image": pixels.numpy()})[:1],
        },
        "one click": {
            "samrt": samrt_click,
            "pytorch": lambda: torch_call(peer_decoder, *click),
            "samexporter": lambda: decoder_session.run(None, click_feeds)[:2],
        },
    }


def measure(tasks: dict[str, dict[str, Call]], runs: int) -> list[dict[str, Any]]:
    """Compare the outputs, then time the contenders in turns."""
    rows = []
    for task, calls in tasks.items():
        reference = calls["samrt"]()
        errors = {}
        for name, call in calls.items():
            pairs = zip(call(), reference, strict=True)
            errors[name] = max(float(np.linalg.norm(a.ravel() - b.ravel()) / np.linalg.norm(b)) for a, b in pairs)
            assert errors[name] <= 1e-4, (task, name, errors[name])
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(runs if task == "image encoder" else runs * 5):
            for name, call in calls.items():
                start = time.perf_counter_ns()
                call()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
        for name, values in times.items():
            paired = np.array(values) / np.array(times["samrt"])
            rows.append(
                {
                    "task": task,
                    "contender": name,
                    "ran_on": "cpu",
                    "precision": "fp32",
                    "runs": len(values),
                    "p50_ms": round(float(np.median(values)), 2),
                    "p95_ms": round(float(np.percentile(values, 95)), 2),
                    "min_ms": round(min(values), 2),
                    "times_samrt": round(float(np.median(values) / np.median(times["samrt"])), 2),
                    "quartiles": [round(float(np.percentile(paired, q)), 2) for q in (25, 75)],
                    "relative_l2": float(f"{errors[name]:.1e}"),
                }
            )
    return rows


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    machine = report["machine"]
    lines = [
        f"{report['model']}, {machine['cpu']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {value}" for name, value in report["versions"].items())
        + f"; {report['time']}",
        "",
        "| task | contender | runs | p50 ms | p95 ms | min ms | times samrt (quartiles) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratio = f"{row['times_samrt']} ({row['quartiles'][0]} to {row['quartiles'][1]})"
        figures = " | ".join(str(row[key]) for key in ("task", "contender", "runs", "p50_ms", "p95_ms", "min_ms"))
        lines.append(f"| {figures} | {ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2.1-hiera-tiny")
    parser.add_argument("--runs", type=int, default=20, help="of the encoder; clicks run five times as often")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--work", type=Path, default=Path("bundles"), help="where bundles are kept between runs")
    parser.add_argument("--out", type=Path, help="JSON report; a Markdown table goes beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(build_tasks(arguments.model, arguments.work, arguments.threads), arguments.runs)
    report = {
        "model": arguments.model,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cores": usable_cores(), "threads": arguments.threads},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("samrt", "torch", "onnxruntime", "transformers")},
        "rows": rows,
    }
    print(table(report))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
