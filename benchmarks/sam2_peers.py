"""SAM 2.1 graph work through samrt, PyTorch and samexporter's export, in turns in one process, on the CPU.

Contenders, all fp32, on the same random weights and the same number of threads:

- samrt: the bundle that ``samrt export`` writes, through ``samrt.load(...).executors``.
- pytorch: transformers' ``Sam2Model`` run eagerly with its sdpa attention in inference mode.
- samexporter: the graphs its SAM 2 export asks for, on ONNX Runtime with its default optimisations. samexporter
  itself needs the ``sam2`` package and torchvision, so its options are reproduced here on transformers' modules: the
  TorchScript exporter (``dynamo=False``), opset 17, constant folding, batch 1; the encoder ends in the projected fine
  features and an image embedding with the no-memory embedding added; the decoder holds the prompt encoder, which
  appends the padding point, computes the mask prompt always and blends it away with ``has_mask_input``, and is
  dynamic in the number of prompts and points; three masks come out, clamped to +-32.

Tasks: ``encoder`` (one picture), ``click`` (prompt encoder and mask decoder, two tokens: the click and its padding
point). Differences in the work: samrt normalises the picture inside its graph while the others are handed a
normalised one; samrt returns all four masks, the object score and the mask tokens, samexporter three masks and their
scores; pytorch computes no mask prompt, but makes position encodings in the encoder and at every click, as
transformers does; the image's positional embedding is a constant of samexporter's decoder, never repeated per prompt.
High-resolution features are each contender's own.

Before any timing every contender's results are compared with samrt's. Every timed run comes after a pause, in which
the others' threads stop spinning, and an untimed run of its own. The order rotates from round to round.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Sam2Model

import samrt
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, absent_mask_hw
from samrt.machine import cpu_name, usable_cores
from samrt_export.export import export_model
from samrt_export.families.sam2 import MEAN, STD, Sam2
from samrt_export.registry import find
from samrt_export.source import load_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "export"))
from oracle import hf_image_model  # type: ignore[import-not-found]  # the tests' oracle

Array = NDArray[Any]
Results = dict[str, Array]

SEED = 0
OPSET = 17
WARMUP = 3
PAUSE_S = 0.05
PARITY = 1e-4  # relative L2
CLAMP = 32.0
PACKAGES = ("samrt", "torch", "transformers", "onnx", "onnxruntime", "numpy")
ENCODER_OUTPUTS = ("high_res_feats_0", "high_res_feats_1", "image_embed")


@dataclass(frozen=True)
class Contender:
    """Two calls; each returns what is compared: ``image_embed``, and ``masks`` (three) and ``iou``."""

    name: str
    encode: Callable[[], Results]
    click: Callable[[], Results]


@dataclass(frozen=True)
class Row:
    """One contender at one task; times in milliseconds, ratios over samrt."""

    task: str
    contender: str
    runs: int
    median_ms: float
    p95_ms: float
    min_ms: float
    ratio_of_medians: float
    paired_ratio_quartiles: tuple[float, float]
    relative_l2: dict[str, float]


@dataclass(frozen=True)
class Inputs:
    """image: (1, S, S, 3) float 0..255; pixels: (1, 3, S, S) normalised; point: (1, 1, 2)."""

    image: Array
    pixels: Array
    point: Array
    mask_side: int


class PeerEncoder(nn.Module):
    """What samexporter exports as the encoder, on transformers' modules."""

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: (1, 3, S, S) normalised -> (1, C/8, S/4, S/4), (1, C/4, S/8, S/8), (1, C, S/16, S/16)."""
        fine, middle, coarse = self.model.vision_encoder(image, return_dict=True).fpn_hidden_states
        decoder = self.model.mask_decoder
        embed = coarse + self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return decoder.conv_s0(fine), decoder.conv_s1(middle), embed


class PeerDecoder(nn.Module):
    """samexporter's decoder on transformers' modules, whose axis of prompts per image has size 1 here."""

    position: Tensor

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.prompt_encoder = model.prompt_encoder
        self.side = float(model.prompt_encoder.input_image_size)  # type: ignore[arg-type]
        self.decoder = model.mask_decoder
        self.register_buffer("position", model.get_image_wide_positional_embeddings().detach())

    def forward(
        self,
        image_embed: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """point_coords: (P, N, 2), point_labels: (P, N) float -> (P, 3, S/4, S/4) logits, (P, 3) predicted IoU."""
        decoder = self.decoder
        sparse = self._embed_points(point_coords, point_labels)  # (P, 1, N + 1, C)
        own = torch.cat((decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight))
        tokens = torch.cat((own[None, None].expand(sparse.shape[0], -1, -1, -1), sparse), dim=2)
        image = image_embed + self._embed_mask(mask_input, has_mask_input)  # (P, C, h, w)
        tokens, keys = decoder.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=self.position,
            attention_similarity=None,
        )
        upscaled = decoder.upscale_conv1(keys.transpose(2, 3).reshape(image.shape)) + high_res_feats_1
        upscaled = decoder.activation(decoder.upscale_layer_norm(upscaled))
        upscaled = decoder.activation(decoder.upscale_conv2(upscaled) + high_res_feats_0)  # (P, C/8, 4h, 4w)
        mlps = decoder.output_hypernetworks_mlps
        filters = torch.stack([mlp(tokens[:, 0, 2 + i]) for i, mlp in enumerate(mlps)], dim=1)  # (P, 4, C/8)
        masks = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        iou = decoder.iou_prediction_head(tokens[:, 0, 1])
        return masks[:, 1:].clamp(-CLAMP, CLAMP), iou[:, 1:]

    def _embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """(P, N, 2), (P, N) -> (P, 1, N + 1, C): a padding point appended, one masked sum per kind of label."""
        encoder = self.prompt_encoder
        padding = torch.zeros((points.shape[0], 1, 2))
        points = torch.cat((points + 0.5, padding), dim=1)
        labels = torch.cat((labels, -torch.ones((labels.shape[0], 1))), dim=1)[:, None, :, None]
        embedding = encoder.shared_embedding(points[:, None] / self.side)
        embedding = embedding * (labels != -1) + encoder.not_a_point_embed.weight * (labels == -1)
        for kind in range(encoder.point_embed.num_embeddings):
            embedding = embedding + encoder.point_embed.weight[kind] * (labels == kind)
        return embedding  # type: ignore[no-any-return]

    def _embed_mask(self, mask: Tensor, has_mask: Tensor) -> Tensor:
        """(P, 1, S/4, S/4), (P,) -> (P, C, S/16, S/16)."""
        given = has_mask.reshape(-1, 1, 1, 1)
        none = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return given * self.prompt_encoder.mask_embed(mask) + (1 - given) * none  # type: ignore[no-any-return]


def main() -> None:
    """Export, compare, time, write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    module = load_weights(find(args.model), args.model, random_seed=SEED).module
    assert isinstance(module, Sam2)
    reference = hf_image_model(module, args.model).requires_grad_(False)
    assert reference.config._attn_implementation == "sdpa", reference.config._attn_implementation
    inputs = make_inputs(module.config.image_size, module.config.mask_size)

    bundle = args.work / f"{args.model}-samrt"
    if not (args.reuse and bundle.exists()):
        print(f"exporting {args.model} with samrt", flush=True)
        export_model(args.model, bundle, random_seed=SEED, overwrite=True)
    encoder, decoder = (args.work / f"{args.model}-samexporter.{part}.onnx" for part in ("encoder", "decoder"))
    if not (args.reuse and encoder.exists() and decoder.exists()):
        print(f"exporting {args.model} with samexporter's options", flush=True)
        export_peer(reference, inputs, encoder, decoder)

    with samrt.load(bundle, "onnxruntime", device="cpu", threads=args.threads) as model:
        contenders = (
            samrt_contender(model, inputs),
            pytorch_contender(reference, inputs),
            peer_contender(encoder, decoder, inputs, args.threads),
        )
        errors = checked_parity(contenders)
        rows: list[Row] = []
        for task in ("encoder", "click"):
            print(f"timing {task}", flush=True)
            calls = {c.name: c.encode if task == "encoder" else c.click for c in contenders}
            rows += rows_from_times(task, time_in_turns(calls, args.runs), errors[task])
        report = {
            "model": args.model,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpu": cpu_name(), "cores": usable_cores(), "system": platform.platform()},
            "threads": args.threads,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "bundle": model.digest,
            "rows": [asdict(row) for row in rows],
        }
    page = markdown(report)
    print(page)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="SAM 2.1 through samrt, PyTorch and samexporter's export, on the CPU.")
    parser.add_argument("--model", default="sam2.1-hiera-tiny", help="nano is a quick try of the script itself")
    parser.add_argument("--runs", type=positive, default=30, help="timed runs of every task and contender")
    parser.add_argument("--threads", type=positive, default=usable_cores())
    parser.add_argument("--work", type=Path, required=True, help="folder for the exported models")
    parser.add_argument("--reuse", action="store_true", help="take the exports that are already in --work")
    parser.add_argument("--out", type=Path, help="JSON file; a page with the same name and .md goes next to it")
    args = parser.parse_args()
    if args.out is not None and args.out.suffix == ".md":
        parser.error("--out names the JSON file; the page next to it is the .md")
    return args


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def make_inputs(size: int, mask_side: int) -> Inputs:
    """A picture of coloured tiles with noise, and a click off its centre."""
    rng = np.random.default_rng(SEED)
    tiles = rng.uniform(0, 255, (1, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2)
    image = np.clip(tiles + rng.normal(0, 20, tiles.shape), 0, 255).astype(np.float32)
    pixels = (image / 255 - np.array(MEAN)) / np.array(STD)
    point = np.array([[[0.4 * size, 0.6 * size]]], np.float32)
    return Inputs(image, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32), point, mask_side)


def export_peer(model: Sam2Model, inputs: Inputs, encoder_path: Path, decoder_path: Path) -> None:
    """samexporter's two ONNX files."""
    encoder, decoder = PeerEncoder(model).eval(), PeerDecoder(model).eval()
    pixels = torch.from_numpy(inputs.pixels)
    prompts = {
        "point_coords": torch.rand(1, 5, 2) * inputs.pixels.shape[-1],
        "point_labels": torch.zeros(1, 5),
        "mask_input": torch.randn(1, 1, inputs.mask_side, inputs.mask_side),
        "has_mask_input": torch.ones(1),
    }
    options: dict[str, Any] = {"opset_version": OPSET, "do_constant_folding": True, "dynamo": False}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes, and that this exporter is the old one
        features = dict(zip(ENCODER_OUTPUTS, encoder(pixels), strict=True))
        torch.onnx.export(
            encoder, (pixels,), encoder_path, input_names=["image"], output_names=list(ENCODER_OUTPUTS), **options
        )
        feeds = {name: features[name] for name in ("image_embed", "high_res_feats_0", "high_res_feats_1")} | prompts
        torch.onnx.export(
            decoder,
            tuple(feeds.values()),
            decoder_path,
            input_names=list(feeds),
            output_names=["masks", "iou_predictions"],
            dynamic_axes={
                "point_coords": {0: "num_labels", 1: "num_points"},
                "point_labels": {0: "num_labels", 1: "num_points"},
                "mask_input": {0: "num_labels"},
                "has_mask_input": {0: "num_labels"},
            },
            **options,
        )


def samrt_contender(model: samrt.Model, inputs: Inputs) -> Contender:
    """The bundle's three graphs."""
    encoder, prompts, decoder = (model.executors[name] for name in (IMAGE_ENCODER, PROMPT_ENCODER, MASK_DECODER))
    image = {"image": inputs.image}
    features = encoder.run(image)
    prompt = {
        "point_coords": np.concatenate((inputs.point, np.zeros((1, 1, 2), np.float32)), axis=1),
        "point_labels": np.array([[1, -1]], np.int32),
        "mask_input": np.zeros((1, 1, *absent_mask_hw(model.manifest)), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }

    def encode() -> Results:
        return {"image_embed": encoder.run(image)["image_embed"].transpose(0, 2, 1)}  # a view, (1, C, hw)

    def click() -> Results:
        out = decoder.run({**features, **prompts.run(prompt)})
        return {"masks": out["low_res_masks"][:, 1:], "iou": out["iou_predictions"][:, 1:]}

    return Contender("samrt", encode, click)


def pytorch_contender(model: Sam2Model, inputs: Inputs) -> Contender:
    """transformers as its documentation uses it: the embeddings once, then a call per click."""
    pixels = torch.from_numpy(inputs.pixels)
    points, labels = torch.from_numpy(inputs.point)[None], torch.ones((1, 1, 1), dtype=torch.int64)
    with torch.inference_mode():
        features = model.get_image_embeddings(pixels)

    def encode() -> Results:
        with torch.inference_mode():
            return {"image_embed": model.get_image_embeddings(pixels)[-1].flatten(2).numpy()}

    def click() -> Results:
        with torch.inference_mode():
            out = model(image_embeddings=features, input_points=points, input_labels=labels, multimask_output=True)
            return {"masks": out.pred_masks[0].numpy(), "iou": out.iou_scores[0].numpy()}

    return Contender("pytorch", encode, click)


def peer_contender(encoder_path: Path, decoder_path: Path, inputs: Inputs, threads: int) -> Contender:
    """samexporter's two graphs."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    encoder, decoder = (
        onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        for path in (encoder_path, decoder_path)
    )
    image = {"image": inputs.pixels}
    feeds = dict(zip(ENCODER_OUTPUTS, encoder.run(ENCODER_OUTPUTS, image), strict=True)) | {
        "point_coords": inputs.point,
        "point_labels": np.ones((1, 1), np.float32),
        "mask_input": np.zeros((1, 1, inputs.mask_side, inputs.mask_side), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }

    def encode() -> Results:
        embed = dict(zip(ENCODER_OUTPUTS, encoder.run(ENCODER_OUTPUTS, image), strict=True))["image_embed"]
        return {"image_embed": embed.reshape(*embed.shape[:2], -1)}

    def click() -> Results:
        masks, iou = decoder.run(["masks", "iou_predictions"], feeds)
        return {"masks": masks, "iou": iou}

    return Contender("samexporter", encode, click)


def checked_parity(contenders: tuple[Contender, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Task -> contender -> output -> relative L2 distance to samrt's, every one of them within `PARITY`."""
    ours, *others = contenders
    image, answer = ours.encode(), ours.click()
    errors: dict[str, dict[str, dict[str, float]]] = {"encoder": {ours.name: {}}, "click": {ours.name: {}}}
    for other in others:
        encoded, clicked = other.encode(), other.click()
        errors["encoder"][other.name] = {"image_embed": relative_l2(image["image_embed"], encoded["image_embed"])}
        errors["click"][other.name] = {
            "masks": relative_l2(np.clip(answer["masks"], -CLAMP, CLAMP), np.clip(clicked["masks"], -CLAMP, CLAMP)),
            "iou": relative_l2(answer["iou"], clicked["iou"]),
        }
    far = [
        f"{task} {name} {output}: {error:.1e}"
        for task, by_contender in errors.items()
        for name, by_output in by_contender.items()
        for output, error in by_output.items()
        if not error <= PARITY
    ]
    if far:
        sys.exit("the contenders do not compute the same: " + ", ".join(far))
    saturated = float(np.mean(np.abs(answer["masks"]) >= CLAMP))
    if saturated > 0.5:
        sys.exit(f"{saturated:.0%} of the mask logits are clamped: comparing them would prove little")
    return errors


def time_in_turns(calls: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, NDArray[np.float64]]:
    """Contender -> milliseconds of each run."""
    names = list(calls)
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(runs):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE_S)
            calls[name]()
            start = time.perf_counter_ns()
            calls[name]()
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: np.array(values) for name, values in times.items()}


def rows_from_times(
    task: str, times: Mapping[str, NDArray[np.float64]], errors: Mapping[str, dict[str, float]]
) -> list[Row]:
    """Statistics of one task."""
    ours = times["samrt"]
    rows = []
    for name, values in times.items():
        low, high = np.percentile(values / ours, (25, 75))
        rows.append(
            Row(
                task,
                name,
                len(values),
                float(np.median(values)),
                float(np.percentile(values, 95)),
                float(values.min()),
                float(np.median(values) / np.median(ours)),
                (float(low), float(high)),
                errors[name],
            )
        )
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    machine, versions = report["machine"], report["versions"]
    lines = [
        f"# {report['model']}: samrt and its peers",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {report['threads']} threads; "
        f"{machine['system']}; {report['date']}.",
        ", ".join(f"{name} {number}" for name, number in versions.items()) + ". fp32, batch 1, random weights.",
        "",
        "| task | contender | runs | median ms | p95 ms | times samrt (quartiles of paired ratios) | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        low, high = row["paired_ratio_quartiles"]
        ratio = "" if row["contender"] == "samrt" else f"{row['ratio_of_medians']:.2f} ({low:.2f} to {high:.2f})"
        error = ", ".join(f"{name} {value:.1e}" for name, value in row["relative_l2"].items())
        lines.append(
            f"| {row['task']} | {row['contender']} | {row['runs']} | {row['median_ms']:.2f} | {row['p95_ms']:.2f} "
            f"| {ratio} | {error} |"
        )
    return "\n".join(lines) + "\n"


def relative_l2(a: Array, b: Array) -> float:
    """Of arrays of one shape."""
    if a.shape != b.shape:
        sys.exit(f"the contenders' results differ in shape: {a.shape} and {b.shape}")
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


if __name__ == "__main__":
    main()
