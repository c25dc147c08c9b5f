"""``samrt demo``: the whole way on the shipped models: export, verify, segment, find, track, reconstruct; PNGs, a report."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

import samrt
from samrt.commands.output import json_text, write_whole
from samrt_export.demo_3d import MASK_FILE, PICTURE_FILE, POINTS_FILE, Solid, reconstruct_solids
from samrt_export.demo_3d import MODEL as MODEL_3D
from samrt_export.demo_3d import SHEET as OBJECT_SHEET
from samrt_export.demo_everything import FILE as EVERYTHING_FILE
from samrt_export.demo_everything import POINTS_PER_SIDE, Everything, find_everything
from samrt_export.demo_everything import SHEET as EVERYTHING_SHEET
from samrt_export.demo_video import SHEET as TRACK_SHEET
from samrt_export.demo_video import TrackedClip, track_clip
from samrt_export.export import ExportReport, export_model
from samrt_export.nano.clicks import box_around, corrective_click, innermost_point
from samrt_export.nano.evaluate import iou
from samrt_export.nano.scenes import HELD_OUT_SEED, Frame, scene_from_seed
from samrt_export.progress import Progress, silent
from samrt_export.verify import VerifyReport, verify_bundle

MODEL = "nano"
SIDE = 512
"""Pictures are drawn larger than the model's input, as pictures are in life."""
SCENES = (15, 25, 24, 17, 13, 23)
"""Held-out pictures that are pleasant to look at, as offsets from the first seed."""
UNPROMPTED = (0, 2, 5)
"""Of them those in which everything is found."""
SHEET, SHEET_COLUMNS = "demo.png", 3
TARGETS = ("onnxruntime-cpu",)
"""What the demo's bundles are for; tracing the forms for other targets would double its time."""


@dataclass(frozen=True)
class Shot:
    """One picture segmented: what was asked, the overlay, the IoU with the truth, and how long the answer took."""

    name: str
    caption: str
    iou: float
    decode_ms: float
    picture: NDArray[np.uint8]


@dataclass(frozen=True)
class DemoReport:
    """What the demo did."""

    out: Path
    export: ExportReport
    verify: VerifyReport
    encode_ms: float
    shots: tuple[Shot, ...]
    everything: Everything
    clip: TrackedClip
    export_3d: ExportReport
    solids: tuple[Solid, ...]
    seconds: float

    def summary(self) -> str:
        """A few lines for the terminal."""
        worst, clip, everything = max(row.relative_l2 for row in self.verify.rows), self.clip, self.everything
        lines = [
            f"exported and verified {MODEL}: largest relative error against PyTorch {worst:.1e}",
            f"segmented {len(self.shots)} pictures without PyTorch; encoding took {self.encode_ms:.0f} ms each",
            *(f"  {shot.caption.splitlines()[0]}: IoU {shot.iou:.3f}, {shot.decode_ms:.1f} ms" for shot in self.shots),
            f"found everything in {len(everything.pictures)} of them without a prompt: {everything.masks} masks of "
            f"{everything.things} things, IoU {everything.iou:.3f}, {everything.picture_s:.1f} s a picture",
            f"tracked {clip.objects} objects over {clip.frames} frames from a click each: "
            f"IoU {clip.region_similarity:.3f}, {clip.frame_ms:.0f} ms a frame",
            f"made {len(self.solids)} objects 3D from a picture each (the model knows these pictures by heart):",
            *(
                f"  {solid.kind}: {solid.voxels} voxels, {solid.faces} faces, {solid.gaussians} Gaussians, "
                f"{solid.mesh.chamfer:.2f} voxels off its surface, {solid.seconds:.1f} s"
                for solid in self.solids
            ),
            f"{self.seconds:.0f} s in all. Look at {SHEET}, {EVERYTHING_SHEET}, {TRACK_SHEET} and {OBJECT_SHEET} in {self.out}, "
            f"then read {self.out / 'report.md'}",
            f"Try: samrt segment {self.out / 'scene.png'} -b {self.out / 'bundle'} --point 256,256 -o mine.png",
            f"     samrt everything {self.out / 'scene.png'} -b {self.out / 'bundle'} -o mine",
        ]
        if clip.videos:
            x, y = clip.click
            lines.append(
                f"     samrt track {self.out / clip.videos[0]} -b {self.out / 'bundle'} --point {x:g},{y:g} -o mine.mp4"
            )
        lines.append(
            f"     samrt reconstruct {self.out / PICTURE_FILE} {self.out / MASK_FILE} -b {self.out / 'bundle-3d'} "
            f"--pointmap {self.out / POINTS_FILE} --seed 1 -o mine.glb"
        )
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The report to read."""
        rows = "\n".join(
            f"| {shot.caption.splitlines()[0]} | {shot.iou:.3f} | {shot.decode_ms:.1f} | [{shot.name}.png]({shot.name}.png) |"
            for shot in self.shots
        )
        parity = "\n".join(
            f"| {row.graph} | {row.form} | {row.output} | {row.relative_l2:.1e} |"
            for row in self.verify.rows
            if row.sizes == self.verify.rows[0].sizes or row.sizes.get("prompts") == 1
        )
        solids = "\n".join(
            f"| {solid.kind} | {solid.voxels} | {solid.faces} | {solid.mesh.chamfer:.2f} | "
            f"{solid.gaussian_centres.chamfer:.2f} | {solid.silhouette_iou:.3f} | {solid.seconds:.1f} | "
            f"[{solid.mesh_file}]({solid.mesh_file}), [{solid.gaussians_file}]({solid.gaussians_file}) |"
            for solid in self.solids
        )
        clip, everything = self.clip, self.everything
        links = ", ".join(f"[{name}]({name})" for name in clip.videos) or "no video: PyAV is not installed"
        return (
            f"# samrt demo\n\n![what {MODEL} saw]({SHEET})\n\n"
            f"Export {self.export.seconds:.1f} s, encoding {self.encode_ms:.0f} ms a picture ({SIDE} x {SIDE}).\n\n"
            f"| prompt | IoU with the truth | answer, ms | picture |\n|---|---|---|---|\n{rows}\n\n"
            f"## Everything\n\n![all masks of {len(everything.pictures)} pictures]({EVERYTHING_SHEET})\n\n"
            f"A grid of {POINTS_PER_SIDE} x {POINTS_PER_SIDE} points: {everything.masks} masks of {everything.things} things, "
            f"mean IoU of a thing's best mask {everything.iou:.3f}, {everything.picture_s:.1f} s a picture. "
            f"Those of the first picture as a COCO file: [{EVERYTHING_FILE}]({EVERYTHING_FILE}).\n\n"
            f"## A clip\n\n![{clip.objects} objects, a click each on the first frame]({TRACK_SHEET})\n\n"
            f"{clip.objects} objects over {clip.frames} frames from one click each on the first: mean IoU with the truth "
            f"{clip.region_similarity:.3f}, {clip.frame_ms:.0f} ms a frame. {links}.\n\n"
            f"## Objects\n\n![pictures, and the meshes made of them from four sides]({OBJECT_SHEET})\n\n"
            "Each from one picture, its mask and a pointmap. The shipped model learned these pictures by heart: this shows "
            "the way, not what it knows of other pictures. Distances from the true surface are in voxels.\n\n"
            "| object | voxels | faces | mesh off by | Gaussians off by | silhouette IoU | s | files |\n"
            f"|---|---|---|---|---|---|---|---|\n{solids}\n\n"
            f"## Graphs against PyTorch\n\n| graph | form | output | relative error |\n|---|---|---|---|\n{parity}\n"
        )

    def to_json(self) -> dict[str, object]:
        """The report for a machine."""
        return {
            "seconds": self.seconds,
            "export_s": self.export.seconds,
            "encode_ms": self.encode_ms,
            "verify": self.verify.to_json(),
            "everything": {key: value for key, value in asdict(self.everything).items() if key != "pictures"},
            "clip": {key: value for key, value in asdict(self.clip).items() if key != "pictures"},
            "objects": [
                {key: value for key, value in asdict(solid).items() if key != "views"} for solid in self.solids
            ],
            "shots": [{key: value for key, value in asdict(shot).items() if key != "picture"} for shot in self.shots],
        }


def run_demo(out: Path, *, seed: int = 0, progress: Progress = silent) -> DemoReport:
    """Export nano to ``out/bundle``, verify it, segment pictures by every kind of prompt and by none, track a clip; export
    nano-3d to ``out/bundle-3d`` and make objects 3D. Leaves PNGs, videos, a GLB, a PLY and reports.

    seed: moves on to other pictures. Raises any SamrtError of the steps.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:  # a trace is one thread's work
        in_3d = other.submit(export_model, MODEL_3D, out / "bundle-3d", targets=TARGETS, overwrite=True)
        report = _run(out, seed, progress, in_3d.result)
    return _write_reports(replace(report, seconds=time.perf_counter() - started))


def _run(out: Path, seed: int, progress: Progress, export_3d: Callable[[], ExportReport]) -> DemoReport:
    """export_3d: waits for the 3D bundle, which is made beside this."""
    exported = export_model(MODEL, out / "bundle", targets=TARGETS, overwrite=True, progress=progress)
    verified = verify_bundle(out / "bundle", progress=progress)
    progress("segmenting", 0, 1)
    frames = [scene_from_seed(HELD_OUT_SEED + seed + k).render(time=0.37 * (k % 16), size=SIDE) for k in SCENES]
    with samrt.load(out / "bundle") as model:
        encode_ms = _milliseconds(lambda: model.encode(frames[0].image))
        shots = tuple(_shots(model, frames))
        progress("finding everything", 0, 1)
        everything = find_everything(model, [frames[k] for k in UNPROMPTED], out)
        progress("tracking", 0, 1)
        clip = track_clip(model, out, side=SIDE)
    progress(f"exporting {MODEL_3D}", 0, 1)
    exported_3d = export_3d()
    progress("reconstructing", 0, 1)
    solids = reconstruct_solids(out / "bundle-3d", out)
    report = DemoReport(out, exported, verified, encode_ms, shots, everything, clip, exported_3d, solids, 0.0)
    _write_pictures(report, frames[0])
    return report


def _shots(model: samrt.Model, frames: list[Frame]) -> Iterator[Shot]:
    """One picture for each way to prompt."""
    yield _one_click(model, frames[0])
    yield _box(model, frames[1])
    yield _everything(model, frames[2])
    yield _corrected(model, frames[3])
    yield _mask_prompt(model, frames[4])
    yield _points_both(model, frames[5])


def _one_click(model: samrt.Model, frame: Frame) -> Shot:
    target = frame.mask(_largest(frame))
    point = innermost_point(target)
    return _shot("click", "One click", model, frame, samrt.Prompts(points=[point], labels=[1]), target)


def _box(model: samrt.Model, frame: Frame) -> Shot:
    target = frame.mask(_largest(frame))
    return _shot("box", "A box", model, frame, samrt.Prompts(boxes=box_around(target)), target, multimask=False)


def _everything(model: samrt.Model, frame: Frame) -> Shot:
    """All shapes at once, a click for each: one call."""
    targets = np.stack([frame.mask(label) for label in frame.visible])
    points = np.array([[innermost_point(target)] for target in targets])
    prompts = samrt.Prompts(points=points, labels=np.ones(points.shape[:2], np.int32))
    return _shot("many", f"{len(points)} prompts, one call", model, frame, prompts, targets)


def _corrected(model: samrt.Model, frame: Frame) -> Shot:
    """Clicks where the mask was wrong, each with the last logits as a mask prompt."""
    target = frame.mask(frame.visible[0])
    features = model.encode(frame.image)
    points, labels = [innermost_point(target)], [1]
    result = model.decode(features, samrt.Prompts(points=points, labels=labels)).best()
    before = iou(result.masks[0, 0], target)
    while len(points) < 4 and (click := corrective_click(result.masks[0, 0], target)) is not None:
        points.append(click[0])
        labels.append(click[1])
        prompts = samrt.Prompts(points=points, labels=labels, masks=result.logits[:, 0])
        result = model.decode(features, prompts, multimask=False)
    prompts = samrt.Prompts(points=points, labels=labels, masks=result.logits[:, 0])
    name = f"{len(points) - 1} corrective clicks (IoU {before:.3f} before)"
    return _shot("corrected", name, model, frame, prompts, target, multimask=False)


def _mask_prompt(model: samrt.Model, frame: Frame) -> Shot:
    """A coarse mask alone, as another model might give it: blocks of 32 pixels."""
    target = frame.mask(_largest(frame))
    blocks = target.reshape(SIDE // 32, 32, SIDE // 32, 32).mean((1, 3))
    mask_hw = model.manifest.numbers.prompts.mask_size_hw
    assert mask_hw is not None
    side = mask_hw[0]
    logits = np.kron(blocks * 20 - 10, np.ones((side * 32 // SIDE,) * 2)).astype(np.float32)
    return _shot("mask", "A coarse mask", model, frame, samrt.Prompts(masks=logits), target, multimask=False)


def _points_both(model: samrt.Model, frame: Frame) -> Shot:
    """On this, not on that."""
    ordered = sorted(frame.visible, key=lambda label: -int(frame.mask(label).sum()))
    target, other = frame.mask(ordered[0]), frame.mask(ordered[1])
    prompts = samrt.Prompts(points=[innermost_point(target), innermost_point(other)], labels=[1, 0])
    return _shot("points", "This, not that", model, frame, prompts, target)


def _shot(
    name: str,
    caption: str,
    model: samrt.Model,
    frame: Frame,
    prompts: samrt.Prompts,
    targets: NDArray[np.bool_],
    multimask: bool = True,
) -> Shot:
    """Answer the prompts, time the answer, compare with the truth, draw."""
    features = model.encode(frame.image)

    def answer() -> NDArray[np.bool_]:
        return model.decode(features, prompts, multimask=multimask).best().masks[:, 0]

    masks = answer()
    truth = targets if targets.ndim == 3 else targets[None]
    mean_iou = float(np.mean([iou(mask, target) for mask, target in zip(masks, truth, strict=True)]))
    picture = samrt.overlay(frame.image, masks, points=prompts.points, labels=prompts.labels, boxes=prompts.boxes)
    return Shot(name, f"{caption}\nIoU {mean_iou:.3f}", mean_iou, _milliseconds(answer), picture)


def _largest(frame: Frame) -> int:
    """The label with the largest visible area."""
    return max(frame.visible, key=lambda label: int(frame.mask(label).sum()))


def _milliseconds(call: Callable[[], object], runs: int = 7) -> float:
    """Median time of a call."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def _write_pictures(report: DemoReport, first: Frame) -> None:
    """Pictures and contact sheets."""
    _save_png(report.out / "scene.png", first.image)
    for shot in report.shots:
        _save_png(report.out / f"{shot.name}.png", shot.picture)
    sheet = samrt.grid(
        [shot.picture for shot in report.shots],
        SHEET_COLUMNS,
        [shot.caption for shot in report.shots],
        cell_px=380,
    )
    _save_png(report.out / SHEET, sheet)
    unprompted = report.everything
    sheet = samrt.grid(list(unprompted.pictures), SHEET_COLUMNS, list(unprompted.captions), cell_px=380)
    _save_png(report.out / EVERYTHING_SHEET, sheet)
    clip = samrt.grid(list(report.clip.pictures), SHEET_COLUMNS, list(report.clip.captions), cell_px=380)
    _save_png(report.out / TRACK_SHEET, clip)
    _save_png(report.out / OBJECT_SHEET, np.concatenate([solid.views for solid in report.solids]))


def _write_reports(report: DemoReport) -> DemoReport:
    write_whole(report.out / "report.md", report.to_markdown().encode())
    write_whole(report.out / "report.json", json_text(report.to_json()).encode())
    return report


def _save_png(path: Path, array: NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG", optimize=True)
    write_whole(path, buffer.getvalue())
