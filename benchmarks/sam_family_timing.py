"""Encoder, click and 100 boxes of one bundle: every CPU backend beside PyTorch eager, in turns. Prints one JSON document.

    samrt export mobile-sam --random-weights 0 -o bundles/mobile-sam
    python benchmarks/sam_family_timing.py bundles/mobile-sam --threads 4

`sam_family.py` calls this for one model after another. PyTorch is the reference of `samrt bench --against pytorch`: the modules
the bundle was made from, computing as upstream does. The graphs' feeds are those of `samrt bench`: a 1080p picture, a click
in its middle. Before anything is timed, outputs are compared with PyTorch's. Each timed run comes after a pause, in which the
others' thread pools stop spinning, and, where runs are short, one that is not counted. Beside wall time stands
processor time, which leaves out waiting where other work shares the machine; it is only comparable at one thread, and there
speed and share of peak are in processor time too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import samrt
from samrt.bench import Contender, GraphTask, Peak, open_reference, probe_peak
from samrt.bench.contenders import Samrt, mask_iou, open_samrt, worst_error
from samrt.bench.tasks import clicks, flops_at, graph_tasks, made_up_picture
from samrt.bench.timing import SETTLE_S, Times, paired_ratio, rotated
from samrt.graphs import IMAGE_ENCODER, MASK_DECODER, MASKS, PROMPT_ENCODER, SCORES, absent_mask_hw, choose_form
from samrt.masks import choose_candidates
from samrt.prompts import to_tensors
from samrt.transforms import Frame
from samrt_engines import ProviderError
from samrt_export.reference import picture_logits

PYTORCH = "pytorch"
BACKENDS = {
    "onnxruntime fp32": ("onnxruntime", None),
    "openvino fp32": ("openvino", None),
    "openvino bf16": ("openvino", "bf16"),
}
SHORT_S = 1.0
"""Runs shorter than this have an uncounted one before them."""
BOXES = 100
PROBE_SIDE, PROBE_RUNS = 768, 200

Feeds = Mapping[str, Any]


@dataclass(frozen=True)
class Timed:
    """One contender at one task: wall and processor milliseconds of each run."""

    wall: Times
    cpu_ms: list[float]


def main() -> None:
    """Open all, compare, time, print."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()[0]
    picture = made_up_picture()
    peaks = [peak_of(options.threads)]
    with ExitStack() as stack:
        field, skipped = open_field(options.bundle, options.contenders, options.threads, stack)
        ours = next(contender for contender in field.values() if isinstance(contender, Samrt))
        tasks = {task.graph: task for task in reversed(graph_tasks(ours.model, picture)) if task.batch == 1}
        document: dict[str, Any] = {
            "threads": options.threads,
            "load_before": round(load_before, 1),
            "encoder": measure(field, [tasks[IMAGE_ENCODER]], options.runs),
            "click": measure(field, [tasks[PROMPT_ENCODER], tasks[MASK_DECODER]], options.clicks),
        }
        if options.box_runs:
            document["boxes"] = measure_boxes(field, ours.model, picture, options.box_runs)
        document["skipped"] = skipped
    peaks.append(peak_of(options.threads))
    peak = max(peaks, key=lambda one: one.gflops)
    for row in (*document["encoder"], *document["click"]):
        row["share_of_fp32_peak"] = round(row["gflops"] / peak.gflops, 3)
    document["peak"] = asdict(peak) | {"gflops": round(peak.gflops, 1)}
    print(json.dumps(document))


def peak_of(threads: int) -> Peak:
    """The best of many short products: on a machine that other work shares, one of them is left alone."""
    return probe_peak(threads, side=PROBE_SIDE, runs=PROBE_RUNS)


def open_field(
    bundle: Path, names: list[str], threads: int, stack: ExitStack
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Name -> contender, PyTorch first; and what this machine cannot run, with the reason."""
    field: dict[str, Contender] = {PYTORCH: open_reference(PYTORCH, bundle, threads=threads)}
    skipped = {}
    for name in names:
        backend, precision = BACKENDS[name]
        try:
            field[name] = open_samrt(bundle, backend=backend, device="cpu", threads=threads, precision=precision)
        except ProviderError as error:  # a CPU without bf16
            skipped[name] = str(error)
    for contender in field.values():
        stack.callback(contender.close)
    return field, skipped


def measure(field: Mapping[str, Contender], tasks: list[GraphTask], runs: int) -> list[dict[str, Any]]:
    """A row for each contender: graphs run one after the other on the same feeds, compared with PyTorch's outputs."""

    def call(contender: Contender) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for task in tasks:
            made = {
                f"{task.graph}: {name}": out for name, out in contender.run_graph(task.graph, task.feeds).items()
            } | made
        return made

    def bound(contender: Contender) -> Callable[[], object]:
        return lambda: call(contender)

    theirs = call(field[PYTORCH])
    errors = {name: worst_error(call(one), theirs) for name, one in field.items() if name != PYTORCH}
    timed = in_turns({name: bound(contender) for name, contender in field.items()}, runs)
    rows = []
    for name, contender in field.items():
        work = sum(gflop(field, contender, task) for task in tasks)
        own = timed[name]
        took_ms = float(np.median(own.cpu_ms)) if torch.get_num_threads() == 1 else own.wall.median_ms
        speed = work / (took_ms / 1e3)
        rows.append(
            figures(name, timed)
            | {"ran_on": contender.ran_on(tasks[0].graph), "gflop": round(work, 2), "gflops": round(speed, 1)}
            | ({} if name == PYTORCH else {"relative_l2": errors[name]})
        )
    return rows


def in_turns(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Timed]:
    """Time every call ``runs`` times, each once in a round, in an order that rotates."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(runs):
        for name in rotated(list(calls), index):
            time.sleep(SETTLE_S)
            if wall[name] and wall[name][-1] < SHORT_S * 1e3:
                calls[name]()
            started, started_cpu = time.perf_counter(), time.process_time()
            calls[name]()
            wall[name].append((time.perf_counter() - started) * 1e3)
            cpu[name].append((time.process_time() - started_cpu) * 1e3)
    return {name: Timed(Times(np.array(wall[name]), np.array(wall[name])), cpu[name]) for name in calls}


def figures(name: str, timed: Mapping[str, Timed], base: str = PYTORCH) -> dict[str, Any]:
    """What is recorded of one contender's times; ratios are medians over the rounds, over 1 where it beats PyTorch."""
    own = timed[name]
    ratio = paired_ratio(timed[base].wall, own.wall)
    cpu = np.array(timed[base].cpu_ms) / np.array(own.cpu_ms)
    return {
        "contender": name,
        "runs": len(own.cpu_ms),
        "median_ms": round(own.wall.median_ms, 2),
        "min_ms": round(float(own.wall.run_ms.min()), 2),
        "cpu_ms": round(float(np.median(own.cpu_ms)), 2),
        "times_as_fast": round(ratio.median, 2),
        "times_as_fast_quartiles": [round(value, 2) for value in ratio.quartiles],
        "times_as_fast_cpu": round(float(np.median(cpu)), 2),
    }


def gflop(field: Mapping[str, Contender], contender: Contender, task: GraphTask) -> float:
    """The work of one run in the form it runs, 1e9 operations; PyTorch's modules do that of the plain form."""
    ours = next(one for one in field.values() if isinstance(one, Samrt))
    graph = ours.model.manifest.graphs[task.graph]
    if isinstance(contender, Samrt):
        backend = "openvino" if "openvino" in contender.ran_on(task.graph).lower() else "onnxruntime"
        form = choose_form(graph, task.graph, backend, "cpu")
    else:
        form = next((one for one in graph.forms if not one.targets), graph.forms[0])
    return (flops_at(graph, form, task.feeds) or 0.0) / 1e9


def measure_boxes(field: Mapping[str, Contender], model: samrt.Model, picture: Any, runs: int) -> list[dict[str, Any]]:
    """Masks at the picture's size for 100 boxes on one encoded picture: samrt in one call, PyTorch one box after another."""
    prompts = samrt.Prompts(boxes=made_up_boxes(picture))
    features = {name: one.model.encode(picture) for name, one in field.items() if isinstance(one, Samrt)}
    numbers = model.manifest.numbers
    frame = Frame((picture.shape[0], picture.shape[1]), numbers.image)
    feeds = to_tensors(prompts, (frame,), numbers.prompts, None, absent_mask_hw(model.manifest))
    known = {name: np.array(tensor) for name, tensor in next(iter(features.values())).tensors.items()}
    inputs = [spec.name for spec in model.manifest.graphs[MASK_DECODER].inputs]

    def one_by_one() -> Any:
        masks = np.empty((BOXES, 1, *frame.image_hw), np.bool_)
        for index in range(BOXES):
            prompt = {name: value[index : index + 1] for name, value in feeds.items()}
            every = {**known, **field[PYTORCH].run_graph(PROMPT_ENCODER, prompt)}
            made = field[PYTORCH].run_graph(MASK_DECODER, {name: every[name] for name in inputs})
            chosen = choose_candidates(made[MASKS], made[SCORES], numbers.masks, multimask=False)
            masks[index] = (picture_logits(torch.from_numpy(chosen.logits), frame) > numbers.masks.threshold).numpy()[0]
        return masks

    def at_once(name: str) -> Callable[[], Any]:
        contender = field[name]
        assert isinstance(contender, Samrt)
        return lambda: contender.model.decode(features[name], prompts, multimask=False).masks

    calls: dict[str, Callable[[], Any]] = {PYTORCH: one_by_one} | {name: at_once(name) for name in features}
    theirs = one_by_one()
    ious = {name: mask_iou(calls[name](), theirs) for name in features}
    timed = in_turns(calls, runs)
    return [
        {"boxes": BOXES} | figures(name, timed) | ({} if name == PYTORCH else {"smallest_mask_iou": ious[name]})
        for name in calls
    ]


def made_up_boxes(picture: Any) -> Any:
    """float32 (100, 4) xyxy: a grid of overlapping boxes."""
    height, width = picture.shape[:2]
    corner = clicks(picture, 16).points[:, 0] * 0.8  # of 16 places; 100 come of six sizes and shifts
    sizes = np.array([[width, height]], np.float32) * np.linspace(0.05, 0.3, 7)[:, None]
    boxes = np.concatenate([np.concatenate((corner, corner + size), axis=1) for size in sizes])
    return np.clip(boxes[:BOXES], 0, [width, height, width, height]).astype(np.float32)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5, help="of the image encoder")
    parser.add_argument("--clicks", type=int, default=40, help="runs of a click's two graphs")
    parser.add_argument("--box-runs", type=int, default=3, help="of 100 boxes; 0 leaves them out")
    parser.add_argument("--contenders", nargs="*", choices=list(BACKENDS), default=list(BACKENDS))
    options = parser.parse_args()
    if not options.contenders:
        parser.error("--contenders: name at least one")
    return options


if __name__ == "__main__":
    main()
